"""Copies are found, whatever their sign and size; silent channels are counted apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.analysis.channel_redundancy import channel_redundancy
from paperworks.errors import InputError


def noise(rows: int, channels: int) -> torch.Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(0))


def test_independent_channels_are_hardly_alike():
    found = channel_redundancy(noise(20_000, 8))
    assert found.similarity < 0.02 and found.dead == 0


@given(st.lists(st.floats(0.1, 10).flatmap(lambda size: st.sampled_from([size, -size])), min_size=2, max_size=6))
def test_copies_of_any_sign_and_size_are_alike(scales):
    one = noise(200, 1)
    found = channel_redundancy(torch.cat([scale * one + 3 for scale in scales], 1))
    assert found.similarity == pytest.approx(1)


def test_half_of_the_channels_repeat_the_others():
    x = noise(50_000, 4)
    # of 56 ordered pairs of different channels 8 are copies
    assert channel_redundancy(torch.cat((x, x), 1)).similarity == pytest.approx(8 / 56, abs=0.01)


def test_dead_channels_are_counted_and_left_out():
    x = noise(1000, 6)
    x[:, :2] = 7.0
    found = channel_redundancy(x)
    assert found.dead == pytest.approx(2 / 6) and found.similarity == pytest.approx(channel_redundancy(x[:, 2:]).similarity)


def test_maps_are_positions():
    maps = torch.randn(3, 5, 4, 4)
    assert channel_redundancy(maps) == channel_redundancy(maps.permute(0, 2, 3, 1).reshape(-1, 5))


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (3, 4, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="at least two rows"):
        channel_redundancy(torch.randn(shape))


def test_nothing_alive_is_said():
    with pytest.raises(InputError, match="nothing to compare"):
        channel_redundancy(torch.ones(5, 3))
