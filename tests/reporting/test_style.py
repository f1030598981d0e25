import base64
import xml.etree.ElementTree as xml

import pytest

from paperworks.reporting.style import COLOURS, POINTS, draw_curves, styled, svgs


def inches(uri: str) -> float:
    """Width of an SVG address; that it parses is part of what is tested."""
    root = xml.fromstring(base64.b64decode(uri.partition("base64,")[2]))
    return float(root.attrib["width"].removesuffix("pt")) / 72


def test_settings_and_screen_are_put_back():
    import matplotlib

    before = matplotlib.rcParams["font.size"], matplotlib.get_backend()
    with styled() as pyplot:
        assert matplotlib.rcParams["font.size"] == 12 and matplotlib.get_backend().lower() == "agg"
        figure, axes = pyplot.subplots()
        assert axes.plot([1, 2])[0].get_color() == COLOURS[0]
        pyplot.close(figure)
    assert (matplotlib.rcParams["font.size"], matplotlib.get_backend()) == before


def test_plots_are_drawn_again_for_phones():
    with styled() as pyplot:
        figure, axes = pyplot.subplots()
        axes.plot([1, 2, 3])
        axes.set_ylabel("a label that is far too long for the height of such a plot")
        wide, narrow = svgs(figure)
        assert "\n" in axes.get_ylabel()
        assert inches(wide) == pytest.approx(7.2) and narrow is not None and inches(narrow) == pytest.approx(4.2)
        assert not pyplot.get_fignums()


def test_crowded_plots_are_not_squeezed():
    with styled() as pyplot:
        beside, _ = pyplot.subplots(1, 2)
        labelled, axes = pyplot.subplots()
        axes.bar(range(20), range(20))
        axes.set_xticks(range(20), [f"layer {i}" for i in range(20)])
        assert svgs(beside)[1] is None and svgs(labelled)[1] is None


def test_long_curves_are_averaged_not_picked_from():
    with styled() as pyplot:
        figure, axes = pyplot.subplots()
        draw_curves(axes, {"zigzag": (range(10_000), [i % 2 for i in range(10_000)]), "short": ([0, 1], [0, 1])})
        long, short = axes.get_lines()
        assert len(long.get_xdata()) <= POINTS and set(long.get_ydata()) <= {0.48, 0.52, 0.5}
        assert short.get_marker() == "s" and list(short.get_xdata()) == [0, 1]
        pyplot.close(figure)
