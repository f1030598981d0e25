"""The mixer of Mamba-2 (2405.21060, figure 6 left): every token reads a state that all tokens before it have written.

Names of parameters are those of state-spaces/mamba.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.ssd_scan import ssd_scan_from
from paperworks.layers.stretches import by_stretches

Memory = tuple[Tensor, Tensor]
"""the last inputs of the convolution [N, width - 1, channels], and the state of the scan"""


class CausalConv1d(nn.Conv1d):
    """Depthwise over the token and the width - 1 before it, on [N, L, C]; zeros stand before the first."""

    def __init__(self, channels: int, width: int = 4):
        super().__init__(channels, channels, width, groups=channels)

    def forward(self, x: Tensor, earlier: Tensor | None = None) -> Tensor:
        """earlier: [N, width - 1, C], the tokens before x where x goes on with a sequence."""
        length, before = x.shape[1], self.kernel_size[0] - 1
        x = x if earlier is None else torch.cat((earlier, x), 1)
        # tokens in a row are a channels-last map of one line, for which there is a quick kernel
        line = x.transpose(1, 2)[:, :, None]
        y = F.conv2d(
            line, self.weight[:, :, None], self.bias, padding=(0, before if earlier is None else 0), groups=self.groups
        )
        return y[:, :, 0, :length].transpose(1, 2)


class Mamba2(nn.Module):
    """[N, L, dim] -> the same. Linear in L.

    One product makes z, x, B, C and dt of each token; x, B and C go through a causal convolution and SiLU; x is scanned, gated
    by z, normed (after gating) and projected. state: numbers per channel that the scan remembers. head_dim: channels that share
    a decay.
    """

    def __init__(self, dim: int, state: int = 64, head_dim: int = 64, *, expand: int = 2, width: int = 4, eps: float = 1e-5):
        super().__init__()
        self.inner, self.state, self.head_dim, self.eps = expand * dim, state, head_dim, eps
        if head_dim < 1 or self.inner % head_dim:
            raise InputError(f"headdim={head_dim} does not divide {self.inner}, {expand} times the width {dim}")
        self.heads = self.inner // head_dim
        mixed = self.inner + 2 * state
        self.split = [self.inner, mixed, self.heads]
        self.in_proj = nn.Linear(dim, sum(self.split), bias=False)
        self.conv1d = CausalConv1d(mixed, width)
        # steps start between 1e-3 and 1e-1, evenly in their logarithm; dt_bias is what softplus maps onto them
        step = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm: nn.Module = nn.RMSNorm(self.inner, eps=eps)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # the norm is not in autocast's half precision
        return self.between(x, self.in_proj, lambda gated: self.out_proj(self.norm(gated.to(self.D.dtype))))

    def between(self, x: Tensor, enter: Callable[[Tensor], Tensor], leave: Callable[[Tensor], Tensor]) -> Tensor:
        """leave(mix(enter(x))). A long sequence goes through in stretches, each with the state that the one before left."""
        memory: Memory | None = None

        def step(part: Tensor) -> Tensor:
            nonlocal memory
            gated, memory = self.mix(enter(part), memory)
            return leave(gated)

        return by_stretches(step, x, sum(self.split))

    def mix(self, projected: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """What lies between the products: [N, L, z | x | B | C | dt] -> gated [N, L, inner], not normed yet, and what later
        tokens have to know."""
        z, mixed, dt = projected.split(self.split, -1)
        learning = torch.is_grad_enabled()
        earlier, state = memory or (None, None)
        x, B, C = F.silu(self.conv1d(mixed, earlier), inplace=not learning).split([self.inner, self.state, self.state], -1)
        y, state = ssd_scan_from(
            state,
            x.unflatten(2, (self.heads, self.head_dim)),
            dt,
            -torch.exp(self.A_log.float()),
            B[:, :, None],
            C[:, :, None],
            self.D,
            self.dt_bias,
            dt_softplus=True,
        )
        y = y.flatten(2)
        last = mixed[:, -(self.conv1d.kernel_size[0] - 1) :]
        return y * F.silu(z) if learning else y.mul_(F.silu(z)), (last, state)
