"""Holes: their share, their kinds, that they are pure functions of (seed, index), and masks people give."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data.masks import HoleConfig, WithHoles, draw_hole, draw_holes, read_hole
from paperworks.errors import InputError


@given(st.integers(16, 48), st.integers(16, 48), st.floats(0.05, 0.5), st.integers(0, 1000), st.sampled_from(["hole", "known"]))
@settings(max_examples=25, deadline=None)
def test_a_hole_has_the_wanted_share(height, width, low, seed, drawn):
    config = HoleConfig((low, low + 0.3), boxes=0.5, halves=0.5, drawn=drawn, width=(0.05, 0.2), smallest=0.0)
    hole = draw_hole(height, width, config, np.random.default_rng(seed))
    assert hole.shape == (height, width) and hole.dtype == bool
    assert low - 0.1 <= hole.mean() <= low + 0.4


def test_holes_depend_on_seed_and_index_alone():
    config = HoleConfig()
    whole = draw_holes(range(6), (32, 32), config, seed=1)
    assert torch.equal(draw_holes([3, 4], (32, 32), config, seed=1), whole[3:5])
    assert not torch.equal(draw_holes(range(6), (32, 32), config, seed=2), whole)


def test_a_data_set_gets_a_hole_beside_every_image():
    images = [{"image": torch.zeros(3, 16, 16, dtype=torch.uint8), "label": 0} for _ in range(4)]
    data = WithHoles(images, 16, HoleConfig(), seed=0)
    found = data[2]
    assert found["hole"].shape == (16, 16) and found["hole"].dtype == torch.bool
    assert torch.equal(found["hole"], data[2]["hole"]) and len(data) == 4


def test_masks_are_black_and_white():
    white = torch.zeros(1, 8, 8, dtype=torch.uint8)
    white[:, 2:4] = 255
    assert int(read_hole(white, "mask.png").sum()) == 16
    with pytest.raises(InputError, match=r"mask\.png"):
        read_hole(torch.full((1, 8, 8), 100, dtype=torch.uint8), "mask.png")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HoleConfig((0.5, 0.2)), "share"),
        (HoleConfig(strokes=0.0), "none may be negative"),
        (HoleConfig(width=(0.3, 0.1)), "draw no strokes"),
    ],
)
def test_impossible_holes_are_named(config, message):
    with pytest.raises(InputError, match=message):
        draw_hole(16, 16, config, np.random.default_rng(0))
