"""Power laws through measurements: y = a x^b, a straight line in log-log, or y = a x^b + c, which levels off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperworks.errors import InputError


@dataclass(frozen=True)
class PowerLaw:
    """y = a x^b + c."""

    a: float
    b: float
    correlation: float
    """Pearson's, of log x and log (y - c); NaN when y does not vary"""
    interval: tuple[float, float]
    """bootstrap interval of b"""
    c: float = 0.0
    """what is left however large x grows (with a negative b); 0 unless an offset was asked for"""

    def __call__(self, x: float) -> float:
        return self.a * x**self.b + self.c

    def curve(self, low: float, high: float, points: int = 50) -> tuple[list[float], list[float]]:
        """(xs, ys) to draw the law between `low` and `high`, evenly spaced in log x."""
        if not 0 < low < high < math.inf or points < 2:
            raise InputError(f"a curve needs 0 < low < high and 2 points, not {low:g}, {high:g} and {points}")
        xs = [low * (high / low) ** (number / (points - 1)) for number in range(points)]
        return xs, [self(x) for x in xs]


def fit_power_law(
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor,
    *,
    offset: bool = False,
    level: float = 0.95,
    draws: int = 2000,
    generator: torch.Generator | None = None,
) -> PowerLaw:
    """Least squares of log y on log x, with every point of equal weight.

    `offset`: look for a floor c >= 0 too, by least squares of log y on log (a x^b + c).
    `level` of the interval between quantiles of b over `draws` resamplings of the points; a resampling that picks too few
    different x (one; two with an offset) has no exponent and is left out. Without a generator the draws are always the same.
    Raises InputError for fewer than 3 points (4 with an offset), numbers that are not positive, or a single x.
    """
    logs = _logs("x", x), _logs("y", y)
    count, needed = len(logs[0]), 4 if offset else 3
    if count != len(logs[1]) or count < needed:
        raise InputError(f"a power law needs at least {needed} points (x, y), not {count} x and {len(logs[1])} y")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"level={level}, draws={draws}: the interval needs a level between 0 and 1 and at least one draw")
    different = len(logs[0].unique())
    if different < needed - 1:
        given = f"all points have x = {float(logs[0][0].exp()):g}" if different == 1 else f"there are {different} different x"
        raise InputError(f"{given}: a power law needs {'three' if offset else 'two'} different x")
    generator = generator or torch.Generator().manual_seed(0)
    picked = torch.randint(count, (draws, count), generator=generator)
    if offset:
        log_a, b, floor = _levelling(*logs, [(*_line(logs[0], _above(logs[1], part)), part) for part in FLOORS])
        enough = [rows for rows in picked if len(logs[0][rows].unique()) > 2]
        slopes = torch.tensor([_levelling(logs[0][r], logs[1][r], [(log_a, b, floor)])[1] for r in enough], dtype=torch.float64)
    else:
        (log_a, b), floor = _line(*logs), 0.0
        slopes, _ = _lines(*(each[picked] for each in logs))
        slopes = slopes[slopes.isfinite()]
    dx, dy = (each - each.mean() for each in (logs[0], _above(logs[1], floor)))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = slopes.quantile(tails).tolist() if len(slopes) else (-torch.inf, torch.inf)
    correlation = float((dx @ dy) / (dx.norm() * dy.norm()))
    return PowerLaw(math.exp(log_a), b, correlation, (low, high), floor * float(logs[1].min().exp()))


FLOORS = (0.0, 0.5, 0.9, 0.99)
"""where the search for a floor begins, as shares of the smallest y: there may be several local optima"""


def _levelling(log_x: Tensor, log_y: Tensor, starts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """(log a, b, c as a share of the smallest y) of the best fit from any of the starts."""
    from scipy.optimize import least_squares

    smallest = log_y.min()

    def residuals(guess: Sequence[float]) -> Tensor:
        law = torch.as_tensor(guess[0] + guess[1] * log_x, dtype=torch.float64)
        floor = torch.tensor(max(guess[2], 1e-300), dtype=torch.float64).log() + smallest
        return torch.logaddexp(law, floor) - log_y

    bounds = ([-math.inf, -math.inf, 0.0], [math.inf, math.inf, 1.0])
    found = [least_squares(residuals, start, bounds=bounds, x_scale="jac") for start in starts]
    log_a, b, floor = min(found, key=lambda each: each.cost).x.tolist()
    return log_a, b, min(floor, 1 - 1e-9)


def _above(log_y: Tensor, floor: float) -> Tensor:
    """log (y - c)."""
    return (log_y.exp() - floor * log_y.min().exp()).log()


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """(intercept, slope)."""
    slope, intercept = _lines(x[None], y[None])
    return float(intercept), float(slope)


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
