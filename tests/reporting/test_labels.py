from itertools import combinations

import pytest

from paperworks.reporting.labels import label_points
from paperworks.reporting.style import styled

CROWDS = {
    "one place": {name: (1.0, 1.0) for name in ("first", "second", "third")},
    "a row": {f"network {number}": (1.0 + 0.01 * number, 2.0) for number in range(6)},
    "corners": {"low": (1.0, 1.0), "a rather long name": (10.0, 10.0), "high": (1.0, 10.0)},
}


@pytest.mark.parametrize("crowd", CROWDS)
def test_names_cover_neither_one_another_nor_the_frame(crowd):
    places = CROWDS[crowd]
    with styled() as pyplot:
        figure, axes = pyplot.subplots()
        axes.scatter(*zip(*places.values()))
        label_points(axes, places)
        figure.draw_without_rendering()
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        frame = figure.bbox
        pyplot.close(figure)
    assert boxes.keys() == places.keys()
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes.values())
