"""Stochastic depth (1603.09382): in training each sample skips a residual branch with a given probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperworks.errors import InputError


class DropPath(nn.Module):
    """[N, ...] -> [N, ...]: whole samples become 0 with probability `rate`, the others are divided by 1 - rate, so that the
    expectation stays. Identity in evaluation."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"drop-path rate {rate}: it is a probability below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return drop_samples(x, self.rate, torch.rand(len(x), dtype=x.dtype, device=x.device))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def drop_samples(x: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Samples whose number in `uniform` [N] (from [0, 1)) lies below `rate` become 0, the others are divided by 1 - rate."""
    kept = (uniform >= rate).to(x.dtype) / (1 - rate)
    return x * kept.view(-1, *[1] * (x.ndim - 1))


def linear_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates growing linearly over all blocks from 0 to `last`, a list per stage."""
    blocks = sum(depths)
    rates = iter([last * i / max(1, blocks - 1) for i in range(blocks)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
