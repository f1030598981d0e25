"""Choosing among measured networks: which of them no other beats, and what to enlarge next (2103.07579, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from paperworks.errors import InputError


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


def measured_axis(points: Sequence[Point]) -> dict[str, float]:
    """Gain in accuracy per doubling of each size, by least squares over measured points: accuracy ~ log2 of depth, width and
    resolution. Sizes that do not vary are left out. InputError with fewer points than unknowns."""
    import numpy as np

    axes = [axis for axis in ("depth", "width", "resolution") if len({getattr(point, axis) for point in points}) > 1]
    if len(points) < len(axes) + 1 or not axes:
        raise InputError(f"{len(points)} points cannot tell {len(axes)} sizes apart: measure more networks")
    if any(getattr(point, axis) <= 0 for point in points for axis in axes):
        raise InputError("sizes must be positive")
    table = np.array([[1.0, *(np.log2(getattr(point, axis)) for axis in axes)] for point in points])
    solved = np.linalg.lstsq(table, np.array([point.accuracy for point in points]), rcond=None)[0]
    return dict(zip(axes, map(float, solved[1:])))
