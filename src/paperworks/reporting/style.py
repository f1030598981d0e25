"""How plots look: colours that colour-blind people can tell apart (Okabe and Ito), large type, few lines."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

SETTINGS: dict[str, Any] = {
    "figure.figsize": (7.2, 3.6),
    "figure.dpi": 100,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6ea",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "paperworks",
    "figure.constrained_layout.use": True,
}


@contextmanager
def styled() -> Iterator[Any]:
    """matplotlib.pyplot with our settings, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    with pyplot.rc_context({**SETTINGS, "axes.prop_cycle": cycler(color=COLOURS)}):
        yield pyplot


def svg(figure: Any) -> str:
    """A figure as inline SVG, and the figure closed."""
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
