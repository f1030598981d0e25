"""The knapsack against enumeration, HiGHS, and its own promises: never overspend, prove the optimum, break ties one way."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.compression.knapsack import Solution, front, solve
from paperworks.compression.knapsack_reference import brute_force, integer_programme
from paperworks.errors import InputError


def random_instance(seed: int):
    """Up to five layers of up to five choices; values rounded so that ties happen; costs need not fall or rise."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, rng.integers(1, 6))
    distortions = [rng.random(k).round(rng.integers(1, 4)) for k in sizes]
    costs = [rng.integers(0, 40, k) for k in sizes]
    lower = [int(rng.integers(0, k)) for k in sizes] if seed % 2 else None
    budget = int(sum(c.max() for c in costs) * rng.random())
    return distortions, costs, budget, lower


def pruning_instance(layers: int, weights: int, seed: int = 0):
    """Curves shaped like measured ones (steep, not quite monotone) over 101 ratios, layer sizes spread like a ResNet's."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 1.2, layers)
    sizes = np.maximum(100, share / share.sum() * weights).astype(np.int64)
    ratio = np.arange(101) / 100
    distortions = [
        np.expm1(rng.uniform(3, 9) * ratio ** rng.uniform(1, 3)) * rng.lognormal(-3, 1) * rng.lognormal(0, 0.1, 101)
        for _ in sizes
    ]
    costs = [n - np.floor(ratio * n).astype(np.int64) for n in sizes]
    return distortions, costs, sizes


def solve_or_none(*args, **kwargs) -> Solution | None:
    try:
        return solve(*args, **kwargs)
    except InputError:
        return None


@pytest.mark.parametrize("block", range(4))
def test_200_random_instances_equal_enumeration_choice_for_choice(block):
    for seed in range(50 * block, 50 * block + 50):
        distortions, costs, budget, lower = random_instance(seed)
        ours = solve_or_none(distortions, costs, budget, lower=lower)
        try:
            choices, objective = brute_force(distortions, costs, budget, lower=lower)
        except InputError:
            assert ours is None
            continue
        assert ours is not None and ours.choices == choices and ours.exact
        assert ours.objective == pytest.approx(objective, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9), cells=st.integers(1, 50), close=st.booleans())
def test_never_overspends_and_its_bound_is_true(seed, cells, close):
    distortions, costs, budget, lower = random_instance(seed)
    rough = solve_or_none(distortions, costs, budget, lower=lower, method="bucketed", cells=cells, close=close)
    best = solve_or_none(distortions, costs, budget, lower=lower, method="exact")
    assert (rough is None) == (best is None)
    if rough is None:
        return
    spent = sum(int(c[i]) for c, i in zip(costs, rough.choices))
    assert spent == rough.cost <= budget
    assert rough.objective == pytest.approx(sum(d[i] for d, i in zip(distortions, rough.choices)))
    assert rough.lower_bound <= best.objective + 1e-12 and best.objective <= rough.objective + 1e-12
    if lower is not None:
        assert all(i >= low for i, low in zip(rough.choices, lower))
    if close:
        assert rough.objective == pytest.approx(best.objective, abs=1e-12)


def test_rounding_up_alone_is_near_and_closing_proves_the_optimum():
    distortions, costs, sizes = pruning_instance(54, 25_500_000)
    budget = int(0.2 * sizes.sum())
    rough = solve(distortions, costs, budget, close=False)
    closed = solve(distortions, costs, budget)
    assert rough.cost <= budget and closed.cost <= budget
    assert closed.exact and closed.objective <= rough.objective <= 1.02 * closed.objective
    assert budget - closed.cost < budget - rough.cost


def test_agrees_with_highs():
    distortions, costs, sizes = pruning_instance(12, 300_000, seed=3)
    budget = int(0.3 * sizes.sum())
    ours = solve(distortions, costs, budget)
    choices, objective = integer_programme(distortions, costs, budget)
    assert sum(int(c[i]) for c, i in zip(costs, choices)) <= budget
    assert ours.objective <= objective * (1 + 1e-9) and ours.objective == pytest.approx(objective, rel=2e-3)


def test_front_is_the_answer_at_every_budget():
    distortions, costs, _, _ = random_instance(11)
    curve = front(distortions, costs)
    assert (np.diff(curve.objectives) <= 0).all()
    for budget, objective in zip(curve.budgets, curve.objectives):
        best = solve(distortions, costs, int(budget))
        assert best.objective == pytest.approx(objective, abs=1e-12)
        assert curve.choices(int(budget)) == best.choices
    with pytest.raises(InputError, match="below the cheapest"):
        curve.choices(int(curve.budgets[0]) - 1)


def test_rounded_front_never_promises_too_much():
    distortions, costs, sizes = pruning_instance(10, 1_000_000)
    curve = front(distortions, costs, cells=500)
    for budget in (sizes.sum() // 10, sizes.sum() // 2):
        choices = curve.choices(int(budget))
        assert sum(int(c[i]) for c, i in zip(costs, choices)) <= budget


def test_equal_objectives_take_the_smallest_choices():
    assert solve([[1.0, 1.0, 1.0], [2.0, 2.0]], [[5, 3, 1], [4, 4]], 9).choices == (0, 0)
    assert solve([[1.0, 1.0, 1.0], [2.0, 2.0]], [[5, 3, 1], [4, 4]], 7).choices == (1, 0)


def test_fifty_four_layers_of_101_ratios_take_under_a_second():
    distortions, costs, sizes = pruning_instance(54, 25_500_000)
    start = time.perf_counter()
    solve(distortions, costs, int(0.2 * sizes.sum()))
    assert time.perf_counter() - start < 1.0


def test_additions_are_linear_in_layers_and_cells():
    def additions(layers: int, cells: int) -> int:
        one = np.linspace(0, 1, 20)
        cost = np.arange(20)[::-1]
        return solve([one] * layers, [cost] * layers, 10 * layers, method="bucketed", cells=cells, close=False).operations

    assert additions(40, 4000) / additions(20, 4000) == pytest.approx(2, rel=0.05)
    assert additions(20, 8000) / additions(20, 4000) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(distortions=[[0.0, 1.0]], costs=[[5, 3]], budget=2), "cheapest choices allowed already cost 3"),
        (dict(distortions=[[0.0, 1.0]], costs=[[5, 3]], budget=4, lower=[2]), "no choice is allowed"),
        (dict(distortions=[], costs=[], budget=4), "0 distortion curves"),
        (dict(distortions=[[0.0]], costs=[[1], [2]], budget=4), "1 distortion curves for 2"),
        (dict(distortions=[[0.0, 1.0]], costs=[[1]], budget=4), "equally long"),
        (dict(distortions=[[0.0, float("nan")]], costs=[[1, 2]], budget=4), "not a number"),
        (dict(distortions=[[0.0, 1.0]], costs=[[1.5, 2]], budget=4), "whole numbers"),
        (dict(distortions=[[0.0, 1.0]], costs=[[1, 2]], budget=4, lower=[0, 0]), "2 lower bounds for 1"),
    ],
)
def test_malformed_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        solve(**arguments)


def test_an_infinite_distortion_forbids_a_choice():
    assert solve([[float("inf"), 3.0, 1.0]], [[0, 0, 9]], 5).choices == (1,)


def test_enumeration_refuses_what_would_never_end():
    with pytest.raises(InputError, match="too many to enumerate"):
        brute_force([np.zeros(101)] * 10, [np.zeros(101)] * 10, 1)
