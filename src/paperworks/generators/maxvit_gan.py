"""MaxViT as an image generator: the block turned around (grid, block, MBConv) at every resolution, from one latent vector.

The paper (2204.01697, generation section) released no code for this form, and its details were not at hand. What stands here
is OUR SPECIFICATION: a dense seed map; per resolution learned positions, a look at a few latent tokens, blocks in the reversed
order with batch norm where the classifier has LayerNorm; pixel shuffle between resolutions; colours at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.layers.autoencoder import to_unit
from paperworks.layers.mbconv import MBConv
from paperworks.layers.multi_axis import AxisBlock
from paperworks.layers.pretrained import Pretrained


class ChannelsLastBatchNorm(nn.BatchNorm1d):
    """Batch norm of [N, H, W, C] over all positions."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, 2)).view_as(input)


class LookAtLatents(nn.Module):
    """x + attention(norm(x), latents): every position of [N, H, W, C] looks at the tokens [N, T, D]."""

    def __init__(self, dim: int, latent_dim: int, head_dim: int):
        super().__init__()
        self.heads = dim // head_dim
        self.norm = ChannelsLastBatchNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(latent_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        q = self.q(self.norm(x)).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(latents).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(seen.transpose(1, 2).flatten(2)).view_as(x)


class ReversedBlock(nn.Module):
    """[N, H, W, C] -> the same: first far (grid), then near (block), then neighbours (MBConv)."""

    def __init__(self, dim: int, window: int, head_dim: int, mlp_ratio: float, expand: float):
        super().__init__()
        self.dim = dim
        far, near = (
            AxisBlock(dim, axis, window, head_dim=head_dim, mlp_ratio=mlp_ratio, norm=ChannelsLastBatchNorm)
            for axis in ("grid", "block")
        )
        self.grid: nn.Module = far
        self.block: nn.Module = near
        self.conv: nn.Module = MBConv(dim, dim, expand=expand, eps=1e-5, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.block(self.grid(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Resolution(nn.Module):
    """Everything at one resolution; `inputs` channels arrive at half of it (None: the seed has this resolution)."""

    def __init__(self, inputs: int | None, dim: int, side: int, latent_dim: int, head_dim: int, blocks: Sequence[nn.Module]):
        super().__init__()
        self.widen = nn.Linear(inputs // 4, dim) if inputs else nn.Identity()
        self.doubled = inputs is not None
        self.positions = nn.Parameter(torch.randn(1, side, side, dim) * 0.02)
        self.look = LookAtLatents(dim, latent_dim, head_dim)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        if self.doubled:
            x = F.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        return self.blocks(self.look(self.widen(x) + self.positions, latents))


class MaxViTGenerator(nn.Module, Pretrained):
    """Latents [N, latent] from a standard normal -> images [N, channels, size, size] in [-1, 1].

    dims: widths from the first to the last resolution, each twice the one before; the last is `size`. depth: blocks at each.
    tokens: latent tokens that all resolutions look at.
    """

    def __init__(
        self,
        size: int = 128,
        channels: int = 3,
        dims: Sequence[int] = (320, 192, 160, 128, 64),
        depth: int = 2,
        *,
        latent: int = 128,
        tokens: int = 16,
        token_dim: int = 256,
        window: int = 8,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        expand: float = 4.0,
    ):
        super().__init__()
        first = size >> (len(dims) - 1)
        if first < 2 or first << (len(dims) - 1) != size:
            raise InputError(f"size={size} is not {len(dims) - 1} doublings of a map of at least 2 pixels")
        for dim in dims:
            if dim % head_dim or dim % 4:
                raise InputError(f"a width of {dim} does not divide into heads of {head_dim}, or into 4 for the pixel shuffle")
        self.latent, self.first, self.size, self.tokens = latent, first, size, tokens
        self.seed = nn.Linear(latent, first * first * dims[0])
        self.to_tokens = nn.Linear(latent, tokens * token_dim)
        resolutions = []
        for index, dim in enumerate(dims):
            inputs = dims[index - 1] if index else None
            blocks = [ReversedBlock(dim, window, head_dim, mlp_ratio, expand) for _ in range(depth)]
            resolutions.append(Resolution(inputs, dim, first << index, token_dim, head_dim, blocks))
        self.resolutions = nn.ModuleList(resolutions)
        self.norm = ChannelsLastBatchNorm(dims[-1])
        self.to_colours = nn.Linear(dims[-1], channels)

    def forward(self, latents: Tensor) -> Tensor:
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise InputError(f"the generator takes latents [N, {self.latent}], not {list(latents.shape)}")
        x = self.seed(latents).view(len(latents), self.first, self.first, -1)
        tokens = self.to_tokens(latents).unflatten(1, (self.tokens, -1))
        for resolution in self.resolutions:
            x = resolution(x, tokens)
        return torch.tanh(self.to_colours(F.gelu(self.norm(x), approximate="tanh"))).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def sample(self, count: int, seed: int = 0, first: int = 0, batch_size: int = 100) -> Tensor:
        """Images [count, channels, size, size] in [0, 1]; image i depends on (seed, first + i) alone."""
        made = []
        for start in range(0, count, batch_size):
            rows = min(batch_size, count - start)
            latents = Draws.seeded(seed, rows, first + start).normal("latents", (rows, self.latent))
            made.append(to_unit(self(latents.to(self.seed.weight))))
        return torch.cat(made)

    @torch.no_grad()
    def settle(self, generator: torch.Generator, batches: int = 20, batch_size: int = 64) -> None:
        """Measure the batch norms' statistics anew, for weights that were averaged over training."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        training = self.training
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches
        self.train()
        for _ in range(batches):
            self(torch.randn(batch_size, self.latent, generator=generator).to(self.seed.weight))
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        self.train(training)
