"""Scenes: boxes lie around the ink, pixels carry the pictures' classes, everything follows from seed and number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data import open_images
from paperworks.data.scenes import SceneConfig, Scenes, open_scenes
from paperworks.errors import InputError

CONFIG = SceneConfig(48, ((8, 12), (16, 20)))


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return open_scenes("digits", "train", 200, CONFIG, seed=3)


def test_a_scene_is_a_function_of_seed_and_number(scenes):
    again, other = (open_scenes("digits", "train", 200, CONFIG, seed=seed) for seed in (3, 4))
    first, same, different = scenes[17], again[17], other[17]
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["image"], different["image"])


@given(st.integers(0, 199))
@settings(max_examples=30, deadline=None)
def test_boxes_are_tight_around_ink_of_their_class(number):
    scene = open_scenes("digits", "train", 200, CONFIG, seed=3)[number]
    assert scene["image"].shape == (3, 48, 48) and scene["image"].dtype == torch.uint8
    assert len(scene["boxes"]) == len(scene["labels"]) == 2
    overlapping = _overlap(*scene["boxes"].tolist())
    for (left, top, right, bottom), label in zip(scene["boxes"].int().tolist(), scene["labels"].tolist()):
        assert 0 <= left < right <= 48 and 0 <= top < bottom <= 48
        inside = scene["pixel"][top:bottom, left:right] == label + 1
        if not overlapping:
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    assert not scene["pixel"].bool()[_outside(scene["boxes"])].any()


def test_what_is_pasted_stands_out(scenes):
    for number in range(20):
        scene = scenes[number]
        grey = scene["image"].float().mean(0) / 255
        for left, top, right, bottom in scene["boxes"].int().tolist():
            part, ink = grey[top:bottom, left:right], scene["pixel"][top:bottom, left:right] > 0
            if ink.any() and (~ink).any():
                assert abs(part[ink].mean() - part[~ink].mean()) > 0.08


def test_one_class_when_not_told_apart():
    found = open_scenes("digits", "test", 5, SceneConfig(48, ((16, 20),), told_apart=False), seed=0)
    assert len(found.classes) == 1
    assert all(found[number]["labels"].eq(0).all() and found[number]["pixel"].max() == 1 for number in range(5))


def test_a_black_picture_is_named():
    digits = open_images("digits", split="test", channels=1)
    black = digits.subset(torch.arange(2))
    black.reader = type(digits.reader)(torch.zeros(len(digits), 1, 8, 8, dtype=torch.uint8), list(digits.reader.keys))
    with pytest.raises(InputError, match=r"digits/\d+ is black"):
        Scenes(black, [torch.zeros(3, 64, 64, dtype=torch.uint8)], 3, CONFIG, seed=0)[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SceneConfig(48, ()), "sides"),
        (SceneConfig(48, ((20, 60),)), "ranges of 4 to 48"),
        (SceneConfig(48, ((8, 8),), contrast=0.9), "contrast"),
        (SceneConfig(4000, ((8, 8),)), "at least 4000 pixels"),
    ],
)
def test_impossible_scenes_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        open_scenes("digits", "train", 3, config, seed=0)


def _overlap(a: list[float], b: list[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _outside(boxes: torch.Tensor) -> torch.Tensor:
    outside = torch.from_numpy(np.ones((48, 48), dtype=bool))
    for left, top, right, bottom in boxes.int().tolist():
        outside[top:bottom, left:right] = False
    return outside
