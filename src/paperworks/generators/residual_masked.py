"""ResGen (2412.10208): all masked residual tokens of a position are predicted at once, as the distribution of their SUM.

A position's tokens are masked from the deepest level upwards. The network sees the sum of the visible code vectors and how many
there are, and gives a Gaussian mixture over the sum of the masked ones; a drawn vector is quantised with the missing levels'
code books. The number of network passes depends neither on depth nor on length. There is no public code: what the paper leaves
open (mixture head, counts per position, confidence) is chosen here and configurable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.adaln_transformer import AdaLNBlock, AdaLNHeadNorm, init_adaln_transformer
from paperworks.layers.pretrained import Pretrained
from paperworks.layers.transformer import full_attention

LOG_STD = (-7.0, 7.0)


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture per position over vectors [C]."""

    logits: Tensor
    """[..., K]"""
    mean: Tensor
    """[..., K, C], or [K, C] for all positions"""
    log_std: Tensor
    """[..., K]: one scale for all channels of a component"""
    offset: Tensor | None = None
    """[..., C], added to all means of a position"""

    def negative_log_likelihood(self, target: Tensor) -> Tensor:
        """Nats [...] of target [..., C]: -log sum_k softmax(logits)_k N(target; mean_k, exp(log_std_k)^2 I).

        Differences are squared by their expansion, in double precision: [..., K] numbers instead of [..., K, C], and exact also
        where components are very narrow."""
        squared = self._squared_distances(target.double()[..., None, :])[..., 0, :]
        return -torch.logsumexp(self._weights() - squared / (2 * (2 * self._scale()).exp()), -1).float()

    def log_densities(self, targets: Tensor) -> Tensor:
        """log p [..., n] of n targets [..., n, C] at each position, in single precision; less exact where components are very
        narrow, so for ranking only."""
        squared = self._squared_distances(targets)
        return torch.logsumexp(self._weights()[..., None, :] - squared / (2 * (2 * self._scale()).exp())[..., None, :], -1)

    def mean_of(self, chosen: Tensor) -> Tensor:
        """[..., C] of the component `chosen` int64 [...] at each position."""
        if self.mean.ndim == 2:
            found = self.mean[chosen]
        else:
            where = chosen[..., None, None].expand(*chosen.shape, 1, self.mean.shape[-1])
            found = self.mean.gather(-2, where)[..., 0, :]
        return found if self.offset is None else found + self.offset

    def std_of(self, chosen: Tensor) -> Tensor:
        """[..., 1]: deviation of the component, within the bounds that the likelihood has too."""
        return self._scale().gather(-1, chosen[..., None]).exp()

    def _scale(self) -> Tensor:
        return self.log_std.clamp(*LOG_STD)

    def _weights(self) -> Tensor:
        """[..., K]: log of each component's share over its normalising constant."""
        return self.logits.log_softmax(-1) - self.mean.shape[-1] * (self._scale() + math.log(2 * math.pi) / 2)

    def _squared_distances(self, targets: Tensor) -> Tensor:
        """[..., n, K] of targets [..., n, C], in their precision."""
        mean = self.mean.to(targets.dtype)
        points = targets if self.offset is None else targets - self.offset[..., None, :].to(targets.dtype)
        squared = points.square().sum(-1)[..., None] + mean.square().sum(-1)[..., None, :]
        return (squared - 2 * points @ mean.transpose(-1, -2)).clamp(min=0)


class ResidualMaskedTransformer(nn.Module, Pretrained):
    """`positions` x `depth` residual tokens of a class; label `num_classes` is no class.

    mixtures: components of the head. Their means are learned vectors plus an offset that the network predicts per position.
    scales: [depth + 1], deviation of the masked sum when so many levels are masked; targets are divided by it
    (`set_scales`), since residuals shrink with depth.
    """

    scales: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        positions: int = 64,
        depth: int = 8,
        code_channels: int = 64,
        dim: int = 1152,
        layers: int = 24,
        heads: int = 16,
        mixtures: int = 1024,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        if dim % heads:
            raise InputError(f"dim={dim} does not divide into {heads} heads")
        if mixtures < 1 or depth < 1 or positions < 1:
            raise InputError(f"{positions} positions x {depth} levels with {mixtures} components: at least 1 of each")
        self.num_classes, self.positions, self.depth, self.code_channels = num_classes, positions, depth, code_channels
        self.dim, self.mixtures = dim, mixtures
        self.embed = nn.Linear(code_channels, dim)
        self.visible_embed = nn.Embedding(depth + 1, dim)
        self.class_emb = nn.Embedding(num_classes + 1, dim)
        self.position_embed = nn.Parameter(torch.empty(1, positions, dim))
        self.blocks = nn.ModuleList(AdaLNBlock(dim, heads, mlp_ratio) for _ in range(layers))
        self.head_nm = AdaLNHeadNorm(dim)
        self.head = nn.Linear(dim, mixtures)
        self.offset = nn.Linear(dim, code_channels)
        self.spread = nn.Linear(dim, 1)
        self.component_mean = nn.Parameter(torch.randn(mixtures, code_channels))
        self.component_log_std = nn.Parameter(torch.full((mixtures,), -0.5))
        self.register_buffer("scales", torch.ones(depth + 1))
        std = (1 / dim / 3) ** 0.5
        nn.init.trunc_normal_(self.position_embed, std=std)
        init_adaln_transformer(self, self.blocks, self.head, self.head_nm, std=std)

    @torch.no_grad()
    def set_scales(self, vectors: Tensor) -> None:
        """From code vectors of data, [N, positions, depth, C]."""
        for masked in range(1, self.depth + 1):
            self.scales[masked] = vectors[:, :, self.depth - masked :].sum(2).std().clamp(min=1e-4)

    def forward(self, labels: Tensor, visible_sum: Tensor, visible: Tensor) -> Mixture:
        """labels [B], visible_sum [B, L, C] of the code vectors still seen, visible int64 [B, L] how many -> mixture over the
        masked sum divided by its scale."""
        self.check(labels, visible)
        condition = self.class_emb(labels)
        weight = self.embed.weight
        x = self.embed(visible_sum.to(weight.dtype)) + self.visible_embed(visible) + self.position_embed
        for block in self.blocks:
            assert isinstance(block, AdaLNBlock)
            x = block(x, block.modulation(condition), full_attention)
        x = self.head_nm(x, condition)
        log_std = self.component_log_std + self.spread(x)
        return Mixture(self.head(x).float(), self.component_mean.float(), log_std.float(), self.offset(x).float())

    def check(self, labels: Tensor, visible: Tensor) -> None:
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= self.num_classes):
            raise InputError(f"labels must lie in 0..{self.num_classes - 1}, or be {self.num_classes} for no class")
        if visible.shape[1] != self.positions or int(visible.max()) > self.depth:
            raise InputError(
                f"{visible.shape[1]} positions with up to {int(visible.max())} levels, the network was built for "
                f"{self.positions} x {self.depth}: give it this tokenizer's tokens"
            )


# --- masks ------------------------------------------------------------------------------------------------------------


def keep_mask(masked: Tensor, depth: int) -> Tensor:
    """bool [..., depth], True for the levels that stay when the deepest `masked` [...] are hidden."""
    if masked.numel() and not (int(masked.min()) >= 0 and int(masked.max()) <= depth):
        raise InputError(f"masked counts go from {int(masked.min())} to {int(masked.max())}, there are {depth} levels")
    return torch.arange(depth, device=masked.device) < depth - masked[..., None]


def visible_counts(keep: Tensor) -> Tensor:
    """int64 [...]: how many levels are visible. InputError when a fine level is visible below a hidden coarse one."""
    counts = keep.sum(-1)
    if not torch.equal(keep, keep_mask(keep.shape[-1] - counts, keep.shape[-1])):
        raise InputError("a fine level cannot be visible while a coarser one of its position is masked")
    return counts


def draw_masked_counts(rows: int, positions: int, depth: int, total: Tensor, generator: torch.Generator) -> Tensor:
    """int64 [rows, positions]: how many tokens each position loses when `total` [rows] of all positions x depth are drawn
    without replacement (the multivariate hypergeometric distribution)."""
    if bool((total > positions * depth).any()):
        raise InputError(f"{int(total.max())} tokens cannot be masked, there are {positions} x {depth}")
    order = torch.rand(rows, positions * depth, generator=generator, device=generator.device).argsort(1).argsort(1)
    return (order < total[:, None]).view(rows, positions, depth).sum(2)


def log_probability_of_counts(masked: Tensor, depth: int) -> Tensor:
    """log of prod_i C(depth, k_i) / C(L depth, n), [...] of counts [..., L] (float64)."""
    counts = masked.double()
    total = counts.sum(-1)
    whole = torch.tensor(float(masked.shape[-1] * depth), dtype=torch.float64)
    return _log_choose(torch.tensor(float(depth), dtype=torch.float64), counts).sum(-1) - _log_choose(whole, total)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def cosine_total(progress: Any, count: int) -> Any:
    """Tokens still masked at progress r in [0, 1] of sampling, ceil(cos(pi r / 2) count)."""
    if isinstance(progress, Tensor):
        return (torch.cos(progress * math.pi / 2) * count).ceil().long().clamp(0, count)
    return min(count, max(0, math.ceil(math.cos(progress * math.pi / 2) * count - 1e-9)))
