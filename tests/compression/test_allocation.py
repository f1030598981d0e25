from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.compression.allocation import (
    SCHEMES,
    allocate,
    allocate_rd,
    apply_allocation,
    erk_amounts,
    lamp_scores,
    unif_plus_amounts,
    uniform_amounts,
    weight_budget,
)
from paperworks.compression.distortion import measure_curves, ratio_grid
from paperworks.compression.knapsack_reference import brute_force
from paperworks.compression.sparsity import kept_counts, sparsity
from paperworks.errors import InputError


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 7))


IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30, deadline=None)
@given(scheme=st.sampled_from(sorted(SCHEMES)), target=st.floats(0.05, 0.75), seed=st.integers(0, 5))
def test_every_scheme_reaches_the_target_to_rounding(scheme, target, seed):
    model = small_net(seed)
    allocation = allocate(model, scheme, target)
    assert allocation.sparsity == pytest.approx(target, abs=3 / 1490)
    apply_allocation(model, allocation)
    assert tuple(kept_counts(model, allocation.layers)) == allocation.kept


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_pruning_further_never_lets_a_layer_grow_back(scheme):
    model = small_net()
    first = allocate(model, "global", 0.4)
    apply_allocation(model, first)
    second = allocate(model, scheme, 0.7)
    apply_allocation(model, second)
    assert sparsity(model) == pytest.approx(0.7, abs=3 / 1490)
    assert all(after <= before for before, after in zip(first.kept, kept_counts(model, second.layers)))


def test_rd_is_the_optimum_within_the_budget():
    model = small_net()
    curves = measure_curves(model, IMAGES, ratios=ratio_grid(9))
    for target in (0.3, 0.62, 0.9):
        allocation = allocate_rd(curves, target)
        budget = weight_budget(sum(curve.layer.numel for curve in curves), target)
        _, best = brute_force([c.worst for c in curves], [c.kept for c in curves], budget)
        assert allocation.predicted == pytest.approx(best, rel=1e-9) and allocation.gap == 0
        assert sum(allocation.kept) <= budget
    assert allocate_rd(curves, 0.5, measure="mean").predicted < allocate_rd(curves, 0.5).predicted


def test_rd_goes_on_from_a_pruned_network():
    model = small_net()
    first = allocate_rd(measure_curves(model, IMAGES), 0.4)
    apply_allocation(model, first)
    assert sparsity(model) == pytest.approx(first.sparsity)
    curves = measure_curves(model, IMAGES)
    second = allocate_rd(curves, 0.8)
    apply_allocation(model, second)
    assert tuple(kept_counts(model, second.layers)) == second.kept
    assert all(after <= before for before, after in zip(first.kept, second.kept)) and sparsity(model) >= 0.8
    with pytest.raises(InputError, match=r"already at a sparsity of 0\.4.*asked for 0\.3"):
        allocate_rd(curves, 0.3)
    with pytest.raises(InputError, match="released solver needs one grid"):
        allocate_rd(curves, 0.8, solver="released")


def test_the_released_solver_is_reachable_by_name():
    curves = measure_curves(small_net(), IMAGES, ratios=ratio_grid(9))
    assert allocate_rd(curves, 0.3, solver="released").predicted == pytest.approx(allocate_rd(curves, 0.3).predicted, rel=0.2)


def test_lamp_scores_by_their_definition():
    weight = torch.tensor([[3.0, -1.0], [2.0, 0.0]])
    assert lamp_scores(weight).flatten().tolist() == pytest.approx([1.0, 1 / 14, 4 / 13, 0.0])


def test_erk_freezes_what_would_exceed_a_whole_layer():
    weights = [torch.randn(8, 3, 3, 3), torch.randn(64, 64, 3, 3), torch.randn(10, 64)]
    amounts = erk_amounts(weights, 0.9)
    assert amounts[0] == 0 and amounts[2] < amounts[1]
    kept = sum((1 - a) * w.numel() for a, w in zip(amounts, weights))
    assert kept == pytest.approx(0.1 * sum(w.numel() for w in weights), abs=2)


def test_unif_plus_spares_the_first_convolution_and_a_fifth_of_the_last_layer():
    weights = [torch.randn(8, 3, 3, 3), torch.randn(64, 64, 3, 3), torch.randn(10, 64)]
    first, middle, last = unif_plus_amounts(weights, 0.95)
    assert first == 0 and last == pytest.approx(0.8) and 0.95 < middle < 1
    assert unif_plus_amounts([torch.randn(4, 4), torch.randn(4, 4)], 0.5) == [0.5, 0.5]
    with pytest.raises(InputError, match=r"Unif\+ cannot reach"):
        unif_plus_amounts(weights, 0.999)


def test_uniform_takes_the_same_share_of_what_is_left():
    half = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert uniform_amounts([half, torch.ones(4)], 0.5) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5])
def test_impossible_targets_are_refused(target):
    with pytest.raises(InputError, match="target sparsity"):
        allocate(small_net(), "uniform", target)


def test_unknown_schemes_are_named():
    with pytest.raises(InputError, match=r"no allocation scheme 'lmap'"):
        allocate(small_net(), "lmap", 0.5)
