"""Which networks are worth having, and what to enlarge."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.analysis.pareto import Point, measured_axis, next_axis, pareto_front
from paperworks.errors import InputError


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_no_point_of_the_front_is_beaten_and_every_other_one_is(pairs):
    points = [Point(float(cost), float(accuracy)) for cost, accuracy in pairs]
    front = pareto_front(points)
    assert all(a.cost < b.cost and a.accuracy < b.accuracy for a, b in pairwise(front))
    for point in points:
        assert any(other.cost <= point.cost and other.accuracy >= point.accuracy for other in front)


def test_long_training_deepens_and_short_training_widens():
    assert next_axis(350) == "depth" and next_axis(10) == "width"
    with pytest.raises(InputError, match="positive"):
        next_axis(0)


def test_gains_per_doubling_are_recovered():
    points = [Point(1, 60 + 2 * d + 3 * w, depth=2**d, width=2**w, resolution=160) for d in range(3) for w in range(3)]
    assert measured_axis(points) == pytest.approx({"depth": 2, "width": 3})
    with pytest.raises(InputError, match="measure more"):
        measured_axis(points[:1])
