"""Which networks are worth having, and what to enlarge."""

from itertools import pairwise, product

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


def grid(gains, exponents, unit=1.0):
    """Networks of three sizes each in which accuracy and log cost are sums over the log sizes."""
    steps = list(product(range(3), repeat=3))
    return [
        Point(
            unit * 2.0 ** sum(e * k for e, k in zip(exponents, step)),
            60 + sum(g * k for g, k in zip(gains, step)),
            depth=10 * 2.0 ** step[0],
            width=2.0 ** step[1],
            resolution=160 * 2.0 ** step[2],
        )
        for step in steps
    ]


AXES = ("depth", "width", "resolution")
three = st.tuples(*[st.floats(-5, 5)] * 3)


@given(three, st.tuples(*[st.floats(0.5, 3)] * 3), st.floats(1e-3, 1e3))
def test_gains_are_per_doubling_of_cost_whatever_its_unit(gains, exponents, unit):
    found = measured_axis(grid(gains, exponents, unit))
    assert found.cost_exponents == pytest.approx(dict(zip(AXES, exponents)), abs=1e-6)
    wanted = {axis: gain / exponent for axis, gain, exponent in zip(AXES, gains, exponents)}
    assert found.per_doubling_of_cost == pytest.approx(wanted, abs=1e-6)
    assert wanted[found.axis] == pytest.approx(max(wanted.values()), abs=1e-6)


def test_the_size_that_gains_most_is_not_recommended_when_it_costs_more_than_it_brings():
    found = measured_axis(grid(gains=(2, 3, 1), exponents=(1, 2, 2)))
    assert found.axis == "depth"
    assert found.per_doubling_of_cost == pytest.approx({"depth": 2, "width": 1.5, "resolution": 0.5})


def test_sizes_that_do_not_vary_are_left_out():
    points = [Point(2.0**d, 60 + d, depth=2**d, width=1, resolution=160) for d in range(3)]
    assert list(measured_axis(points).per_doubling_of_cost) == ["depth"]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([Point(1, 60, depth=1)], "measure more"),
        ([Point(2.0**k, 60 + k, depth=2**k, width=2**k) for k in range(4)], "cannot tell 2 sizes apart"),
        ([Point(1, 60, depth=1), Point(1, 61, depth=2)], "does not grow with depth"),
        ([Point(0, 60, depth=1), Point(1, 61, depth=2)], "must be positive"),
        ([Point(1, 60, depth=0), Point(2, 61, depth=2)], "must be positive"),
    ],
)
def test_points_that_say_nothing_are_refused(points, message):
    with pytest.raises(InputError, match=message):
        measured_axis(points)
