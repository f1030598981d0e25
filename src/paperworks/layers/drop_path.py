"""Stochastic depth (1603.09382): in training each sample skips a residual branch with a given probability.

`ScheduledDropPath` (1707.07012) lets the probability grow while training goes on; `Classify` tells it how far that is.
"""

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


class ScheduledDropPath(DropPath):
    """DropPath whose probability grows linearly over training: `rate` is reached at its end (1707.07012, section 3).

    How far training is, is told with `set_progress`; a network that nobody tells drops nothing.
    """

    current: Tensor
    """the probability now"""

    def __init__(self, rate: float = 0.0):
        super().__init__(rate)
        self.register_buffer("current", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return drop_samples(x, self.current.to(x.dtype), torch.rand(len(x), dtype=x.dtype, device=x.device))


def set_progress(network: nn.Module, step: int, steps: int) -> None:
    """Tell every ScheduledDropPath in `network` that training is at `step` of `steps`."""
    for module in network.modules():
        if isinstance(module, ScheduledDropPath):
            module.current.fill_(1 - kept_share(1 - module.rate, progress=step / max(1, steps)))


def kept_share(keep: float, depth: float = 1.0, progress: float = 1.0) -> float:
    """The probability of keeping a path: `keep` in the last cell at the end of training, nearer to 1 earlier.

    depth: (cell + 1) / cells; 1 for a schedule over steps only. progress: step / steps; 1 for a schedule over depth only.
    """
    return 1 - min(1.0, progress) * depth * (1 - keep)


def drop_samples(x: Tensor, rate: float | Tensor, uniform: Tensor) -> Tensor:
    """Samples whose number in `uniform` [N] (from [0, 1)) lies below `rate` become 0, the others are divided by 1 - rate."""
    kept = (uniform >= rate).to(x.dtype) / (1 - rate)
    return x * kept.view(-1, *[1] * (x.ndim - 1))


def linear_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates growing linearly over all blocks from 0 to `last`, a list per stage."""
    blocks = sum(depths)
    rates = iter([last * i / max(1, blocks - 1) for i in range(blocks)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
