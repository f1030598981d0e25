"""Names beside the points of a plot, where they cover neither one another nor other points."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

DISTANCES = (5, 14, 24, 36)
"""points (1/72 inch) up or down from the point"""


def label_points(axes: Any, places: Mapping[str, tuple[float, float]], fontsize: float = 8) -> None:
    """Write every name right or left of its place (data coordinates), the nearest free spot first; a name that was moved gets a
    thin line to its point. Axes must have their scale and limits already."""
    figure = axes.figure
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    dots = {name: axes.transData.transform(place) for name, place in places.items()}
    taken = [(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in dots.values()]
    frame = figure.bbox
    for name in sorted(places, key=lambda name: (dots[name][1], dots[name][0])):
        x, y = dots[name]
        width, height = 0.62 * fontsize * len(name) * scale, 1.2 * fontsize * scale
        best: tuple[int, float, float, tuple[float, float, float, float]] | None = None
        for distance, sign, side in product(DISTANCES, (1, -1), (1, -1)):
            left = x + 5 * scale if side == 1 else x - 5 * scale - width
            middle = y + sign * distance * scale
            box = (left, middle - height / 2, left + width, middle + height / 2)
            hits = sum(_overlap(box, other) for other in taken)
            hits += 2 * (box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1)
            if best is None or hits < best[0]:
                best = (hits, side, sign * distance, box)
        assert best is not None
        _, beside, above, box = best
        taken.append(box)
        moved = abs(above) > DISTANCES[0]
        axes.annotate(
            name,
            places[name],
            xytext=(5 * beside, above),
            textcoords="offset points",
            fontsize=fontsize,
            ha="left" if beside > 0 else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#8a8a94", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2} if moved else None,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
