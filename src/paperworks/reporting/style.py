"""How plots look: colours that colour-blind people can tell apart (Okabe and Ito), large type, few lines."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""beside the colours where a line has few points"""

SETTINGS: dict[str, Any] = {
    "figure.figsize": (7.2, 3.6),
    "figure.dpi": 100,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8a94",
    "grid.color": "#e6e6ea",
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "paperworks",
    "figure.constrained_layout.use": True,
}

NARROW = 4.2
"""inches: as wide as a phone shows without making the type smaller"""
LETTER = 0.092
"""inches that a letter of a label takes"""
FEW = 15
"""points up to which each gets a marker"""
POINTS = 400
"""points drawn per curve; more are averaged in groups"""
MANY_TICKS = 12
"""labels along an axis from which a plot is not squeezed"""


@contextmanager
def styled() -> Iterator[Any]:
    """matplotlib.pyplot with our settings and without a screen; what was set before holds again afterwards."""
    import matplotlib

    before = matplotlib.get_backend(auto_select=False)
    matplotlib.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    try:
        with pyplot.rc_context({**SETTINGS, "axes.prop_cycle": cycler(color=COLOURS)}):
            yield pyplot
    finally:
        if before and before.lower() != "agg":
            matplotlib.use(before, force=False)


def draw_curves(axes: Any, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """A line per name; long ones as averages of up to 400 groups of neighbours."""
    for number, (name, (xs, ys)) in enumerate(series.items()):
        marker = MARKERS[number % len(MARKERS)] if len(xs) < FEW else None
        axes.plot(_thinned(xs), _thinned(ys), label=name, marker=marker)


def legend_above(figure: Any, names: Sequence[str], narrow: bool = False) -> None:
    """The legend over the plot, where it covers no line; as many names side by side as fit."""
    letters = 42 if narrow else 74
    beside = max(1, letters // (max(map(len, names)) + 9))
    figure.legend(loc="outside upper left", ncols=min(len(names), beside))


def svgs(figure: Any) -> tuple[str, str | None]:
    """A figure as SVG addresses for a page, (as it is, as phones see it), and the figure closed.

    For phones it is drawn again in a smaller frame, so that its type stays as large; None when it has too much beside one
    another for that.
    """
    from matplotlib import pyplot

    wrap_labels(figure)
    wide, narrow = svg_uri(figure), None
    width, height = figure.get_size_inches()
    if _bears_squeezing(figure):
        figure.set_size_inches(NARROW, min(height, max(0.75 * NARROW, height * NARROW / width)))
        wrap_labels(figure)
        narrow = svg_uri(figure)
    pyplot.close(figure)
    return wide, narrow


def wrap_labels(figure: Any) -> None:
    """Break the words along axes and above them where they would be cut off."""
    for axes in figure.axes:
        place = axes.get_subplotspec()
        if place is None:
            continue
        rows, columns = place.get_gridspec().get_geometry()
        width, height = figure.get_size_inches()
        for label, inches in (
            (axes.xaxis.label, width / columns),
            (axes.yaxis.label, height / rows),
            (axes.title, width / columns),
        ):
            letters = max(8, int(0.75 * inches / LETTER))
            label.set_text("\n".join(textwrap.wrap(" ".join(label.get_text().split()), letters)))


def svg_uri(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _bears_squeezing(figure: Any) -> bool:
    for axes in figure.axes:
        place = axes.get_subplotspec()
        if place is not None and place.get_gridspec().ncols > 1:
            return False
        low, high = sorted(axes.get_xlim())
        if sum(low <= tick <= high for tick in axes.get_xticks()) > MANY_TICKS:
            return False
    return True


def _thinned(values: Sequence[float]) -> Sequence[float]:
    size = -(-len(values) // POINTS)
    if size <= 1:
        return values
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]
