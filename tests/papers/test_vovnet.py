"""Detection on VoVNet and its rivals: equal sizes, and what a claim measures."""

import pytest
import torch

from paperworks.analysis.counting import count_parameters
from paperworks.paper import Bench
from paperworks.papers import _vovnet_detection_claims as detection


def test_rivals_have_equal_parameters_and_equal_strides():
    bodies = [build() for build in detection.BODIES.values()]
    counts = [count_parameters(body) for body in bodies]
    assert max(counts) < 1.02 * min(counts)
    assert all([info["reduction"] for info in body.feature_info[-3:]] == [4, 8, 16] for body in bodies)


@pytest.mark.slow
def test_the_lead_is_over_the_best_rival_and_is_trained_once(tmp_path, monkeypatch):
    for name, value in {"TRAIN": 16, "TEST": 8, "STEPS": 2, "BATCH": 4}.items():
        monkeypatch.setattr(detection, name, value)
    fixed = {"VoVNet": 30.0, "DenseNet": 20.0, "ResNet": 33.0}
    monkeypatch.setattr(
        detection, "average_precision", lambda found, truth, areas: {"all": 1.0, "small": 0.0, "large": float(len(found))}
    )
    bench = Bench(tmp_path, (0,), "digits", say=lambda text: None)
    first = detection.against(bench, "large", ("DenseNet", "ResNet"))
    assert first.value == 0 and first.numbers["means"]["VoVNet"]["large"] == 8
    monkeypatch.setattr(detection, "fit", lambda *given, **named: pytest.fail("trained again"))
    monkeypatch.setattr(detection, "_trained", lambda bench, name, seed: dict.fromkeys(("all", "small", "large"), fixed[name]))
    assert detection.against(bench, "small", ("DenseNet", "ResNet")).value == pytest.approx(-3)
    assert detection.against(bench, "all", ("DenseNet",)).value == pytest.approx(10)


def test_scenes_hold_what_the_ranges_call_small_and_large():
    scenes = detection.open_scenes("digits", "test", 20, detection.SCENES, seed=0)
    for number in range(20):
        boxes = scenes[number]["boxes"]
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        assert (sides[:2] < detection.AREAS["small"][1]).all() and torch.isfinite(sides).all()
