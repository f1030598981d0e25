"""Power laws through measurements: y = a x^b, a straight line in log-log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperworks.errors import InputError


@dataclass(frozen=True)
class PowerLaw:
    """y = a x^b."""

    a: float
    b: float
    correlation: float
    """Pearson's, of log x and log y; NaN when y does not vary"""
    interval: tuple[float, float]
    """bootstrap interval of b"""

    def __call__(self, x: float) -> float:
        return self.a * x**self.b


def fit_power_law(
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor,
    *,
    level: float = 0.95,
    draws: int = 2000,
    generator: torch.Generator | None = None,
) -> PowerLaw:
    """Least squares of log y on log x, with every point of equal weight.

    `level` of the interval between quantiles of b over `draws` resamplings of the points; a resampling that picks one x
    only has no slope and is left out. Without a generator the draws are always the same.
    Raises InputError for fewer than 3 points, numbers that are not positive, or a single x.
    """
    logs = _logs("x", x), _logs("y", y)
    count = len(logs[0])
    if count != len(logs[1]) or count < 3:
        raise InputError(f"a power law needs at least 3 points (x, y), not {count} x and {len(logs[1])} y")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"level={level}, draws={draws}: the interval needs a level between 0 and 1 and at least one draw")
    slope, intercept = _lines(*(each[None] for each in logs))
    if not slope.isfinite().all():
        raise InputError(f"all points have x = {float(logs[0][0].exp()):g}: a power law needs different x")
    dx, dy = (each - each.mean() for each in logs)
    correlation = (dx @ dy) / (dx.norm() * dy.norm())

    generator = generator or torch.Generator().manual_seed(0)
    picked = torch.randint(count, (draws, count), generator=generator)
    slopes, _ = _lines(*(each[picked] for each in logs))
    slopes = slopes[slopes.isfinite()]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = slopes.quantile(tails).tolist() if len(slopes) else (-torch.inf, torch.inf)
    return PowerLaw(float(intercept.exp()), float(slope), float(correlation), (low, high))


def _lines(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of each row; NaN where all x of a row are equal."""
    dx = x - x.mean(1, keepdim=True)
    same = (x == x[:, :1]).all(1)
    slope = torch.where(same, torch.nan, (dx * y).sum(1) / dx.square().sum(1))
    return slope, y.mean(1) - slope * x.mean(1)


def _logs(name: str, values: Sequence[float] | Tensor) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64).flatten()
    if not (numbers.isfinite() & (numbers > 0)).all():
        raise InputError(f"{name} holds numbers that are not positive and finite: a power law has no place for them")
    return numbers.log()
