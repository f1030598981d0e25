"""ResNet-RS: the published training row by row of its table, and what its claim about training methods compares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Bench, Measured
from paperworks.papers import _resnet_rs_claims as methods
from paperworks.papers import _resnet_rs_scaling as scaling
from paperworks.papers import resnet_rs
from paperworks.papers._classification import build_network
from paperworks.papers._resnet_rs_pareto import RESNET_RS
from paperworks.training.optimizers import parameter_groups, phase_parameters

published = resnet_rs.paper.recipes["paper"]


@pytest.mark.parametrize(("depth", "size"), list(RESNET_RS))
def test_every_row_of_the_table_is_a_recipe(depth: int, size: int) -> None:
    config = published(f"resnetrs{depth}", size=size).config
    assert config.image_size == size
    assert config.network.arguments["drop_rate"] == (0.4 if size == 320 else 0.25)
    assert config.augment.magnitude == (10 if size == 160 else 15)
    assert (config.augment.probability, config.augment.deviation) == (1.0, 0.0)
    with torch.device("meta"):
        network = build_network(config.network, 1000, 0)
    rates = [module.rate for name, module in network.named_modules() if name.endswith("drop_path") and hasattr(module, "rate")]
    assert max(rates, default=0.0) == pytest.approx(0.1 if depth >= 200 else 0.0)


def test_the_largest_size_is_the_default_and_others_are_refused() -> None:
    assert published("resnetrs350").config.image_size == 320 and published("resnetrs101").config.image_size == 192
    with pytest.raises(InputError, match="not in the paper's table: 256, 320"):
        published("resnetrs350", size=224)
    with pytest.raises(InputError, match=r"resnetrs50, resnetrs101, .*resnetrs420"):
        published("resnetrs300")


def test_only_norms_go_without_weight_decay_and_statistics_are_the_last_batch_s() -> None:
    config = published().config
    small = replace(config.network, arguments={**config.network.arguments, "layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]})
    network = build_network(small, 3, 0)
    objective = Classify(network)
    optimizer = config.training.optimizers["main"]
    groups = parameter_groups(objective, phase_parameters(objective, objective.phases()[0], optimizer), optimizer)
    decayed = {name for group in groups if group["weight_decay"] == 4e-5 for name in group["names"]}
    norms = {
        f"model.{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    assert {name for name, _ in objective.named_parameters()} - decayed == norms
    assert {"model.fc.bias", "model.layer1.0.se.fc1.bias", "model.layer4.0.se.fc2.bias"} <= decayed
    assert {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {1.0}


def test_both_trainings_take_the_same_steps_and_the_recipe_decays_less() -> None:
    baseline, recipe = (side.config(4000, 0) for side in (methods.BASELINE, methods.RECIPE))
    assert baseline.steps == recipe.steps == round(15 * 4000 / 64)
    one, other = baseline.optimizers["main"], recipe.optimizers["main"]
    assert (one.name, one.lr, one.momentum) == (other.name, other.lr, other.momentum)
    assert (one.schedule.kind, other.schedule.kind) == ("step", "cosine")
    assert other.weight_decay < one.weight_decay and baseline.ema is None and recipe.ema is not None


def test_a_side_is_trained_once(tmp_path: Path) -> None:
    def build(classes: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))

    sides = {
        "plain": (build, replace(methods.BASELINE, images=64, test_images=40, epochs=2, batch=32)),
        "recipe": (build, replace(methods.RECIPE, images=64, test_images=40, epochs=2, batch=32)),
    }
    bench = Bench(tmp_path, seeds=(0,), say=lambda _: None)
    found = methods.top1(bench, sides)
    assert all(0 <= values[0] <= 100 and len(values) == 1 for values in found.values())
    (tmp_path / "plain-0" / "accuracy.json").write_text(json.dumps({"top1": 12.5}))
    assert methods.top1(bench, sides)["plain"] == [12.5]


def test_the_recipe_must_gain_and_gain_more() -> None:
    rule = resnet_rs.paper.claims["c1"].rule

    def measured(recipe: list[float], architecture: list[float]) -> Measured:
        ahead = [a - b for a, b in zip(recipe, architecture)]
        return Measured(0.0, "", per_seed=ahead, numbers={"recipe": recipe})

    assert rule(measured([0.5, 0.3], [0.1, 0.2]))
    assert not rule(measured([0.5, 0.2], [0.1, 0.2]))
    assert not rule(measured([0.5, -0.1], [0.1, -0.4]))


def test_what_scaling_rules_compare_takes_equal_operations() -> None:
    shapes = [scaling._macs(scaling._network(*shape, 10), 32) for shape in scaling.SHAPES.values()]
    sizes = [scaling._macs(scaling._network((2, 2, 2, 2), c, 10), size) for size, c in scaling.RESOLUTIONS.items()]
    for found in (shapes, sizes):
        assert max(found) < 1.02 * min(found)


def test_scaling_rules_name_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"deep, long": 3.0, "wide, long": 1.0, "16 pixels": 1.0, "20 pixels": 5.0, "24 pixels": 4.0}
    monkeypatch.setattr(scaling, "top1", lambda bench, sides: {name: [points.get(name, 0.0)] * 2 for name in sides})
    bench = Bench(tmp_path, (0, 1), "digits")
    assert scaling.depth_or_width(bench).value == 2.0
    best = scaling.resolutions(bench)
    assert best.value == 20 and best.per_seed == [20, 20] and scaling.below_compound(best)


def test_images_are_resized_where_a_size_is_given(tmp_path: Path) -> None:
    seen = []

    class Watching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape[-1])
            return super().forward(x)

    quick = replace(methods.BASELINE, images=40, test_images=20, epochs=1, batch=20, size=12)
    bench = Bench(tmp_path, (0,), "digits")
    methods.top1(bench, {"small": (lambda classes: Watching(nn.Flatten(), nn.Linear(3 * 12 * 12, classes)), quick)})
    assert set(seen) == {12}
