"""Which parameter gets which rate and decay, and that state finds its parameters by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.training import Losses, Objective, OptimizerConfig, ParameterRule, ScheduleConfig, describe_groups, fit
from paperworks.training import optimizers as o
from tests.training.tiny import ADVERSARIAL, Adversarial, Classify, Masked, Pictures, config, equal


def groups_of(objective: Objective, settings: OptimizerConfig) -> dict[str, dict[str, float]]:
    named = o.phase_parameters(objective, objective.phases()[0], settings)
    return {
        name: {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        for group in o.parameter_groups(objective, named, settings)
        for name in group["names"]
    }


def test_no_decay_on_vectors_unless_a_rule_says_so() -> None:
    settings = OptimizerConfig(lr=1.0, weight_decay=0.1, rules=(ParameterRule(r"model\.5\.bias", weight_decay=0.2),))
    groups = groups_of(Classify(norm=True), settings)
    assert groups["model.1.weight"]["weight_decay"] == 0.1
    assert groups["model.1.bias"]["weight_decay"] == groups["model.2.weight"]["weight_decay"] == 0.0
    assert groups["model.5.bias"]["weight_decay"] == 0.2


def test_first_matching_rule_applies() -> None:
    rules = (ParameterRule("out", lr_scale=10.0), ParameterRule("bias", freeze=True), ParameterRule("blocks", lr_scale=0.5))
    groups = groups_of(Masked(), OptimizerConfig(lr=1.0, rules=rules))
    assert groups["out.bias"]["lr"] == 10.0 and groups["blocks.1.0.weight"]["lr"] == 0.5
    assert "blocks.1.0.bias" not in groups


def test_frozen_by_rule_stays_and_is_free_again_afterwards(tmp_path: Path) -> None:
    objective, start = Masked(), Masked()
    rules = (ParameterRule("blocks", freeze=True),)
    fit(objective, Pictures(), config(2, optimizers={"main": OptimizerConfig(rules=rules)}), tmp_path, label="")
    assert equal(objective.blocks, start.blocks) and not equal(objective.out, start.out)
    assert all(parameter.requires_grad for parameter in objective.parameters())


def test_layer_decay_by_block_number() -> None:
    class Stack(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(2, 2)
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
            self.head = nn.Linear(2, 2)

    groups = groups_of(Stack(), OptimizerConfig(lr=1.0, layer_decay=0.5))
    rates = [groups[f"{name}.weight"]["lr"] for name in ("embed", "blocks.0", "blocks.1", "blocks.2", "head")]
    assert rates == [0.0625, 0.125, 0.25, 0.5, 1.0]


def test_layer_decay_and_exemptions_of_a_timm_network_are_timms() -> None:
    from timm.optim import param_groups_layer_decay

    class Wrapped(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.model = timm.create_model("vit_tiny_patch16_224", num_classes=3)

    objective = Wrapped()
    ours = groups_of(objective, OptimizerConfig(lr=1.0, weight_decay=0.1, layer_decay=0.75))
    theirs = param_groups_layer_decay(
        objective.model, weight_decay=0.1, layer_decay=0.75, no_weight_decay_list=objective.model.no_weight_decay()
    )
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    for group in theirs:
        for parameter in group["params"]:
            mine = ours[names[id(parameter)]]
            assert mine["lr"] == pytest.approx(group["lr_scale"])
            assert mine["weight_decay"] == group["weight_decay"]


def test_table_for_a_dry_run() -> None:
    rows = describe_groups(Adversarial(), config(5, optimizers=ADVERSARIAL))
    assert {(row["phase"], row["optimizer"]) for row in rows} == {("g", "adamw"), ("d", "sgd"), ("-", "frozen")}
    assert sum(row["parameters"] for row in rows) == sum(parameter.numel() for parameter in Adversarial().parameters())
    decayed = next(row for row in rows if row["phase"] == "g" and row["weight_decay"] > 0)
    assert decayed["names"] == "generator.0.weight, generator.2.weight" and decayed["tensors"] == 2


def test_rates_are_set_from_the_schedule() -> None:
    settings = OptimizerConfig(
        lr=2.0,
        weight_decay=0.1,
        weight_decay_end=0.3,
        schedule=ScheduleConfig("linear"),
        rules=(ParameterRule("out", lr_scale=0.5), ParameterRule(r"blocks\.0\.0\.weight", weight_decay=0.7)),
    )
    objective = Masked()
    named = o.phase_parameters(objective, objective.phases()[0], settings)
    optimizer = o.build(objective, named, settings)
    o.set_rates(optimizer, settings, step=5, total=11)
    by_name = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert by_name["out.weight"]["lr"] == pytest.approx(0.5) and by_name["blocks.1.0.weight"]["lr"] == pytest.approx(1.0)
    assert by_name["out.weight"]["weight_decay"] == pytest.approx(0.2)
    assert by_name["out.bias"]["weight_decay"] == 0.0 and by_name["blocks.0.0.weight"]["weight_decay"] == 0.7


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_fused_update_is_torchs_plain_update(tmp_path: Path, name: str) -> None:
    """Scaling inside the fused kernel changes nothing: against a bare loop with the unfused optimiser."""
    settings = OptimizerConfig(name, lr=1e-2, weight_decay=0.05, nesterov=name == "sgd", schedule=ScheduleConfig("constant"))  # type: ignore[arg-type]
    fitted = fit(Classify(), Pictures(12), config(5, clip=0.1, optimizers={"main": settings}), tmp_path, label="")
    bare = Classify()
    decayed = [p for p in bare.parameters() if p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": [p for p in bare.parameters() if p.ndim == 1]}]
    make = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0, foreach=False),
        "adam": lambda: torch.optim.Adam(groups, lr=1e-2, foreach=False),
        "sgd": lambda: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True, foreach=False),
    }
    optimizer = make[name]()
    data = Pictures(12)
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(bare.model(data.images.float() / 255), data.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 0.1)
        optimizer.step()
    for key, value in fitted.objective.state_dict().items():
        torch.testing.assert_close(value, bare.state_dict()[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb", "lars", "adafactor", "adamp", "adadelta", "rmsprop"])
def test_every_optimiser_learns(tmp_path: Path, name: str) -> None:
    from paperworks.training import read_metrics

    lr = {"sgd": 0.3, "lars": 2.0, "lamb": 3e-2, "adadelta": 3.0}.get(name, 1e-2)
    chosen = OptimizerConfig(name, lr=lr, eps=1e-3 if name == "adadelta" else 1e-8)  # type: ignore[arg-type]
    fit(Classify(), Pictures(), config(80, optimizers={"main": chosen}), tmp_path, label="")
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_state_of_other_parameters_is_refused() -> None:
    settings = OptimizerConfig()
    first, second = Masked(2), Masked(3)
    one = o.build(first, dict(first.named_parameters()), settings)
    other = o.build(second, dict(second.named_parameters()), settings)
    with pytest.raises(InputError, match=r"trained other parameters, first blocks\.2\.0\.bias"):
        o.load_optimizer_state(other, o.optimizer_state(one))


def test_unusual_optimisers_are_not_sharded() -> None:
    objective = Masked()
    with pytest.raises(InputError, match="lamb does not go with parallel='shard'"):
        o.build(objective, dict(objective.named_parameters()), OptimizerConfig("lamb"), sharded=True)
    assert isinstance(Losses(torch.zeros(()), 1), Losses)
