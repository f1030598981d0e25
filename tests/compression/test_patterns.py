from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.compression.patterns import Filters, OutOfEach, SingleWeights, count, kept_weights
from paperworks.errors import InputError


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), ratio=st.floats(0, 1))
def test_single_weights_remove_the_smallest_and_only_them(seed, ratio):
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    pattern = SingleWeights()
    keep = pattern.rank(weight.abs()) >= count(ratio, pattern.units(tuple(weight.shape)))
    assert int(keep.sum()) == 60 - int(ratio * 60) == kept_weights(pattern, (5, 3, 2, 2), ratio)
    if keep.any() and not keep.all():
        assert weight.abs()[~keep].max() <= weight.abs()[keep].min()


def test_filters_go_whole_and_by_their_sum():
    weight = torch.tensor([[3.0, 3.0], [0.0, 5.0], [1.0, 1.0]])
    keep = (Filters().rank(weight.abs()) >= 1).expand_as(weight)
    assert keep.tolist() == [[True, True], [True, True], [False, False]]
    assert kept_weights(Filters(), (3, 2), 0.7) == 2


def test_two_out_of_each_four():
    weight = torch.tensor([[4.0, -1.0, 2.0, 3.0, 0.5, 0.1, -9.0, 1.0]])
    keep = OutOfEach(4).rank(weight.abs()) >= count(0.5, 4)
    assert keep.tolist() == [[True, False, False, True, False, False, True, True]]
    with pytest.raises(InputError, match="groups of 4"):
        OutOfEach(4).units((3, 3))


def test_ties_are_broken_by_position():
    assert SingleWeights().rank(torch.ones(4)).tolist() == [0, 1, 2, 3]


def test_counts_round_down_and_stay_inside():
    assert [count(r, 10) for r in (-0.5, 0, 0.19, 0.2, 1, 2)] == [0, 0, 1, 2, 10, 10]
