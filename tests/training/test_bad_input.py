"""What cannot work fails before the first step, with the field's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.training import (
    Context,
    Losses,
    Objective,
    OptimizerConfig,
    ParameterRule,
    Phase,
    ScheduleConfig,
    TrainConfig,
    fit,
)
from tests.training.tiny import Adversarial, Classify, Pictures, config


def refused(match: str, folder: Path, objective: Objective | None = None, data: Any = None, **settings: Any) -> None:
    objective = objective or Classify()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in objective.parameters()]
    with pytest.raises(InputError, match=match):
        fit(objective, Pictures() if data is None else data, config(**{"steps": 5} | settings), folder, label="")
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert trainable == [parameter.requires_grad for parameter in objective.parameters()]


def test_batches(tmp_path: Path) -> None:
    refused("steps=0", tmp_path, steps=0)
    refused("batch_size=0", tmp_path, batch_size=0)
    refused(r"batch_size=61 is larger than the data set \(60 samples\)", tmp_path, batch_size=61)
    refused("micro_batch=5 does not divide the 12 samples of a process", tmp_path, micro_batch=5)
    refused("micro_batch=0", tmp_path, micro_batch=0)
    refused("train_data is empty", tmp_path, data=Pictures(0))
    refused("train_data must know its length, but generator has none", tmp_path, data=(i for i in range(3)))


def test_split_among_processes() -> None:
    from paperworks.training.batches import check_split

    with pytest.raises(InputError, match="batch_size=12 does not divide among 5 processes"):
        check_split(config(1), 60, world=5)
    with pytest.raises(InputError, match=r"micro_batch=4 does not divide the 6 samples of a process \(batch_size=12 over 2"):
        check_split(config(1, micro_batch=4), 60, world=2)
    check_split(config(1, micro_batch=3), 60, world=2)


def test_missing_column_names_it_and_what_is_there(tmp_path: Path) -> None:
    class Unlabelled(Pictures):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": self.images[index], "key": "x"}

    refused(r"Classify needs 'label' \(int64 \[B\]\) in every batch, but there is only image", tmp_path, data=Unlabelled())


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": torch.zeros(1, 8, 8), "label": 0.5}, r"needs 'label' as int64 \[B\], but it is float32"),
        ({"image": torch.zeros(8, 8), "label": 1}, r"needs 'image' as float NCHW .* but it is of shape \[12, 8, 8\]"),
        ({"image": torch.zeros(1, 8, 8), "label": torch.zeros(2).long()}, r"needs 'label' .* of shape \[12, 2\]"),
        ({"image": torch.zeros(1, 8, 8, dtype=torch.int64), "label": 1}, "needs 'image' .* but it is int64"),
    ],
)
def test_wrong_column(tmp_path: Path, sample: dict[str, Any], message: str) -> None:
    class Fixed(Pictures):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return sample

    refused(message, tmp_path, data=Fixed())


def test_batch_transform_that_changes_the_count(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch\['image'\] holds 6 samples where 12 were expected"):
        fit(
            Classify(),
            Pictures(),
            config(2),
            tmp_path,
            batch_transform=lambda batch, generator: {name: value[:6] for name, value in batch.items()},
            label="",
        )


def test_phases_and_optimisers(tmp_path: Path) -> None:
    refused("phase 'g' asks for optimizers.g; there is main", tmp_path, objective=Adversarial())
    frozen = Classify()
    frozen.requires_grad_(False)
    refused("phase 'main' has no trainable parameter", tmp_path, objective=frozen)

    class Misnamed(Classify):
        def phases(self) -> tuple[Phase, ...]:
            return (Phase(modules=("modle",)),)

    refused("phase 'main': no parameter lies below module 'modle' of Misnamed", tmp_path, objective=Misnamed())

    class Phaseless(Classify):
        def phases(self) -> tuple[Phase, ...]:
            return ()

    refused("Phaseless has no phases", tmp_path, objective=Phaseless())
    rules = (ParameterRule("model"), ParameterRule("pos_embed", weight_decay=0.0))
    refused("pattern 'pos_embed' matches no parameter", tmp_path, optimizers={"main": OptimizerConfig(rules=rules)})
    rules = (ParameterRule("", freeze=True),)
    refused("no trainable parameter", tmp_path, optimizers={"main": OptimizerConfig(rules=rules)})
    refused("neither a group_matcher nor", tmp_path, optimizers={"main": OptimizerConfig(layer_decay=0.5)})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (ScheduleConfig(warmup=6), "optimizers.main.schedule.warmup=6 does not fit into steps=5"),
        (ScheduleConfig(warmup=-1), "optimizers.main.schedule.warmup=-1"),
        (ScheduleConfig("wsd", flat=1.0), "optimizers.main.schedule.flat=1.0"),
        (ScheduleConfig("step", milestones=(30.0,)), "optimizers.main.schedule.milestones"),
    ],
)
def test_schedules(tmp_path: Path, schedule: ScheduleConfig, message: str) -> None:
    refused(message, tmp_path, optimizers={"main": OptimizerConfig(schedule=schedule)})


def test_a_whole_batch_method_is_not_cut_up(tmp_path: Path) -> None:
    class Whole(Classify):
        needs_full_batch = True

    refused("micro_batch: Whole compares samples of the whole batch", tmp_path, objective=Whole(), micro_batch=3)


def test_a_loss_that_is_no_losses(tmp_path: Path) -> None:
    class Plain(Classify):
        def loss(self, batch, phase, ctx):  # type: ignore[no-untyped-def]
            return super().loss(batch, phase, ctx).total

    with pytest.raises(TypeError, match=r"Plain\.loss must return Losses, not Tensor"):
        fit(Plain(), Pictures(), config(1), tmp_path, label="")


def test_state_that_could_not_be_loaded_safely_is_named(tmp_path: Path) -> None:
    class Odd(Classify):
        def extra_state(self) -> dict[str, Any]:
            return {"queue": [nn.Identity()]}

    with pytest.raises(TypeError, match=r"state\['objective'\]\['queue'\]\[0\] is a Identity"):
        fit(Odd(), Pictures(), config(1), tmp_path, label="")


def test_settings_make_the_round_trip_through_json() -> None:
    import json

    from paperworks.config import from_plain, override, to_plain

    settings = TrainConfig(
        steps=7,
        batch_size=3,
        ema=0.99,
        optimizers={
            "g": OptimizerConfig(
                "lamb",
                rules=(ParameterRule("bias", weight_decay=0.1), ParameterRule("head", lr_scale=2.0, freeze=True)),
                schedule=ScheduleConfig("step", warmup=0.1, milestones=(0.5, 0.8)),
                layer_decay=0.7,
            ),
            "d": OptimizerConfig("sgd"),
        },
    )
    assert from_plain(TrainConfig, json.loads(json.dumps(to_plain(settings)))) == settings
    changed = override(settings, ["optimizers.g.lr=0.5", "steps=9"])
    assert (changed.optimizers["g"].lr, changed.steps) == (0.5, 9)
    with pytest.raises(InputError, match="batch_sise"):
        override(settings, ["batch_sise=4"])


def test_same_recipe_gives_the_same_run(tmp_path: Path) -> None:
    import json

    from paperworks.config import from_plain, to_plain

    settings = config(4, ema=0.9)
    again = from_plain(TrainConfig, json.loads(json.dumps(to_plain(settings))))
    one = fit(Classify(dropout=0.2), Pictures(), settings, tmp_path / "a", label="")
    torch.manual_seed(99)  # what the caller has drawn before does not matter
    other = fit(Classify(dropout=0.2), Pictures(), again, tmp_path / "b", label="")
    assert all(torch.equal(value, other.objective.state_dict()[name]) for name, value in one.objective.state_dict().items())
    assert Context(3, 9, 0).rng("a").initial_seed() != Context(3, 9, 0).rng("b").initial_seed()
    assert isinstance(Losses(torch.zeros(()), 1).logs, dict)
