"""GroupMamba: a run with a teacher, the compared networks, rules."""

from dataclasses import replace

import pytest
import torch

from paperworks.paper import Bench, Measured, Recipe, Run, verdict
from paperworks.papers import _groupmamba_claims as claims
from paperworks.papers._classification import Trained
from paperworks.papers._recognition_claims import millions
from paperworks.papers.groupmamba import paper
from paperworks.training import TrainConfig

TINY = {"stem_hidden_dim": 4, "embed_dims": [16, 16], "mlp_ratios": [1, 1], "depths": [1, 1]}


def test_a_run_with_a_teacher(tmp_path, jpeg_folder):
    recipe = paper.recipes["distil"](data=str(jpeg_folder), kind="soft")
    network = replace(recipe.config.network, arguments={**recipe.config.network.arguments, **TINY})
    config = replace(recipe.config, network=network, training=TrainConfig(4, 16, ema=0.9, eval_every=2), watch=50)
    run = Run.open(tmp_path / "run", slug="groupmamba", recipe="distil", arguments={}, config=config, command="paperworks run")
    run.execute(Recipe(config, recipe.stages), say=lambda _: None)
    assert run.result("teacher")["network"] == "resnet20_cifar" and 0 <= run.result("teacher")["top1"] <= 1
    trained = Trained.of(run).objective
    assert trained.model.distillation and trained.logits(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    assert "Confusion" in (run.folder / "report.html").read_text()


def test_compared_networks_have_equal_parameters():
    counted = {
        name: millions(lambda b=build: b(10))
        for name, build in vars(claims).items()
        if name in ("grouped", "one_direction", "four_directions")
    }
    assert counted["one_direction"] == counted["grouped"] == pytest.approx(counted["four_directions"], rel=0.05)
    with torch.no_grad():
        assert claims.four_directions(10).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert 30.5 < claims.vmamba_parameters((2, 2, 5, 2), 2) / 1e6 < 31.5  # published as 31 M
    assert 29.5 < claims.vmamba_parameters((2, 2, 8, 2), 1) / 1e6 < 30.5  # published as 30 M


def test_a_distilled_student_is_measured_once(tmp_path, monkeypatch):
    budget = replace(claims.FEW, images=64, test_images=50, epochs=1, batch=32)
    monkeypatch.setattr(claims, "FEW", budget)
    monkeypatch.setattr(claims, "SMALL", {**claims.SMALL, "embed_dims": (16, 16), "depths": (1, 1)})
    bench = Bench(tmp_path, seeds=(0,), say=lambda _: None)
    found = claims.distillation_gains(bench)
    assert set(found.numbers["accuracy"]) == {"distilled", "labels alone", "teacher"}
    monkeypatch.setattr(claims, "fit", None)
    assert claims.distillation_gains(bench).per_seed == found.per_seed


def test_rules():
    def holds(id: str, measured: Measured) -> bool:
        return "not" not in verdict(paper.claims[id], measured)

    near, far = ({"points behind all in four directions": points} for points in (0.5, 1.5))
    assert holds("c5", Measured(1.2, "", numbers=near)) and not holds("c5", Measured(1.2, "", numbers=far))
    assert holds("c7", Measured(0.5, "", per_seed=[0.0, 1.0])) and not holds("c7", Measured(0.5, "", per_seed=[-0.5, 1.5]))
    assert holds("c10", Measured(4.5, "", numbers={"operations": [4.0, 4.0]}))
    assert not holds("c10", Measured(15.0, "", numbers={"operations": [4.0, 4.0]}))
