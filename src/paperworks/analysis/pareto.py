"""Choosing among measured networks: which of them no other beats, and what to enlarge next (2103.07579, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from paperworks.errors import InputError

Axis = Literal["depth", "width", "resolution"]


@dataclass(frozen=True)
class Point:
    """A trained network: its cost (seconds, operations), its accuracy, and what it is."""

    cost: float
    accuracy: float
    name: str = ""
    depth: float = 0.0
    width: float = 0.0
    resolution: float = 0.0


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point equals or beats in both cost and accuracy, by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def next_axis(epochs: float, *, overfitting: float = 100.0) -> Literal["depth", "width"]:
    """The paper's rule: deepen where training is long enough to overfit (a hundred epochs of ImageNet and more), widen else.
    The image size grows slowly in both."""
    if epochs <= 0:
        raise InputError(f"epochs={epochs} must be positive")
    return "depth" if epochs >= overfitting else "width"


@dataclass(frozen=True)
class Gains:
    """What enlarging each size has brought among measured networks."""

    per_doubling_of_cost: dict[Axis, float]
    """accuracy gained where the cost is doubled by this size alone"""
    cost_exponents: dict[Axis, float]
    """cost grows like the size to this power"""

    @property
    def axis(self) -> Axis:
        """The size to enlarge next: most accuracy for the same cost."""
        return max(self.per_doubling_of_cost, key=lambda axis: self.per_doubling_of_cost[axis])


def measured_axis(points: Sequence[Point]) -> Gains:
    """Which size is worth its cost, by least squares over measured points: accuracy and log2 cost, each as a sum over log2 of
    depth, width and resolution; the quotient of a size's two slopes is its gain per doubling of cost. A doubled width that
    brings more than a doubled depth may still be the worse choice, as it costs four times as much and not twice.

    Sizes that do not vary are left out. InputError where the points cannot tell the sizes apart, or where a size costs nothing.
    """
    import numpy as np

    axes: list[Axis] = [axis for axis in get_args(Axis) if len({getattr(point, axis) for point in points}) > 1]
    if any(getattr(point, axis) <= 0 for point in points for axis in axes) or any(point.cost <= 0 for point in points):
        raise InputError("sizes and costs must be positive")
    table = np.array([[1.0, *(np.log2(getattr(point, axis)) for axis in axes)] for point in points])
    if not axes or np.linalg.matrix_rank(table) < len(axes) + 1:
        raise InputError(f"{len(points)} points cannot tell {len(axes)} sizes apart: measure more networks")
    targets = np.array([[point.accuracy, np.log2(point.cost)] for point in points])
    slopes = np.linalg.lstsq(table, targets, rcond=None)[0][1:]
    gains, exponents = (dict(zip(axes, map(float, column))) for column in slopes.T)
    for axis, exponent in exponents.items():
        if exponent < 1e-6:
            raise InputError(f"cost does not grow with {axis} among these points: there is no gain per cost to tell")
    return Gains({axis: gains[axis] / exponents[axis] for axis in axes}, exponents)
