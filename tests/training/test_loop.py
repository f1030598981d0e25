"""What an objective is given and when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paperworks.training import Batch, Context, Losses, Objective, OptimizerConfig, Phase, fit
from tests.training.tiny import ADVERSARIAL, SGD, Adversarial, Classify, Pictures, config, equal, largest_difference


def test_phases_take_their_turns_and_train_only_what_is_theirs(tmp_path: Path) -> None:
    turns: list[tuple[int, str]] = []

    class Watched(Adversarial):
        def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
            turns.append((ctx.step, phase))
            mine = {"g": self.generator, "d": self.discriminator}[phase]
            for parameter in self.parameters():
                assert parameter.requires_grad == any(parameter is own for own in mine.parameters())
            return super().loss(batch, phase, ctx)

    objective = Watched()
    fitted = fit(objective, Pictures(), config(8, optimizers=ADVERSARIAL), tmp_path, label="")
    assert turns == [
        (0, "g"), (1, "g"), (2, "g"), (3, "g"), (4, "g"), (4, "d"), (5, "g"), (6, "g"), (6, "d"), (7, "g"),
    ]  # fmt: skip
    assert equal(objective.frozen, Adversarial().frozen)
    assert not objective.frozen.weight.requires_grad and objective.generator[0].weight.requires_grad  # type: ignore[union-attr]
    assert fitted.objective is objective and not objective.training and fitted.averaged is objective


def test_two_phases_are_two_bare_loops(tmp_path: Path) -> None:
    """Against the step written out by hand."""
    optimizers = {
        name: OptimizerConfig("sgd", lr=lr, momentum=0.0, schedule=SGD.schedule) for name, lr in (("g", 0.02), ("d", 0.1))
    }
    data = Pictures(12)
    fitted = fit(Adversarial(noise=False), data, config(6, optimizers=optimizers), tmp_path, label="")

    bare = Adversarial(noise=False)
    batch = {"image": data.images.float() / 255}
    for step in range(6):
        for phase, module, lr in (("g", bare.generator, 0.02), ("d", bare.discriminator, 0.1)):
            if phase == "d" and (step < 3 or step % 2):
                continue
            losses = bare.loss(batch, phase, Context(step, 6, 0))
            parameters = list(module.parameters())
            gradients = torch.autograd.grad(losses.total / losses.count, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients):
                    parameter -= lr * gradient
        with torch.no_grad():
            bare.after_step(Context(step, 6, 0))
    assert largest_difference(fitted.objective, bare) < 1e-6


def test_pictures_arrive_as_floats_and_schedules_as_values(tmp_path: Path) -> None:
    seen: list[float] = []

    class Looks(Classify):
        def schedules(self) -> dict[str, Any]:
            return {"temperature": lambda step, total: 10.0 * step / total}

        def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
            assert type(batch["image"]) is torch.Tensor and batch["image"].dtype == torch.float32
            assert 0.9 < float(batch["image"].max()) <= 1.0 and batch["label"].dtype == torch.int64
            seen.append(ctx.values["temperature"])
            return super().loss(batch, phase, ctx)

    fit(Looks(), Pictures(), config(5), tmp_path, label="")
    assert seen == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_batch_transform_sees_the_whole_share_once_with_its_own_draws(tmp_path: Path) -> None:
    calls: list[tuple[int, float]] = []

    def transform(batch: Batch, generator: torch.Generator) -> Batch:
        calls.append((len(batch["image"]), float(torch.rand((), generator=generator))))
        return batch | {"image": batch["image"].flip(0), "label": batch["label"].flip(0)}

    settings = config(3, micro_batch=4)
    fit(Classify(), Pictures(), settings, tmp_path / "a", batch_transform=transform, label="")
    assert [count for count, _ in calls] == [12, 12, 12] and len({draw for _, draw in calls}) == 3
    first = list(calls)
    calls.clear()
    fit(Classify(), Pictures(), config(3), tmp_path / "b", batch_transform=transform, label="")
    assert calls == first, "the same draws, however the batch is cut"


def test_micro_batches_cut_everything_that_has_a_row_per_sample(tmp_path: Path) -> None:
    class Nested(Pictures):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(index) | {"name": f"picture {index}", "mask": self.images[index] > 100}

    def pack(batch: Batch, generator: torch.Generator) -> Batch:
        return batch | {"pair": (batch["label"], {"mask": batch["mask"]}), "strength": torch.tensor(0.5)}

    class Checks(Classify):
        def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
            assert len(batch["image"]) == len(batch["name"]) == len(batch["pair"][0]) == len(batch["pair"][1]["mask"]) == 3
            assert torch.equal(batch["pair"][0], batch["label"]) and float(batch["strength"]) == 0.5
            return super().loss(batch, phase, ctx)

    fit(Checks(), Nested(), config(1, micro_batch=3), tmp_path, batch_transform=pack, label="")


def test_draws_differ_between_steps_micro_batches_and_seeds(tmp_path: Path) -> None:
    draws: list[float] = []

    class Draws(Classify):
        def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
            draws.append(float(torch.rand((), generator=ctx.rng("x"))))
            draws.append(float(torch.rand(())))
            return super().loss(batch, phase, ctx)

    fit(Draws(), Pictures(), config(3, micro_batch=4), tmp_path / "a", label="")
    fit(Draws(), Pictures(), config(3, micro_batch=4, seed=1), tmp_path / "b", label="")
    assert len(set(draws)) == 36


def test_callers_random_numbers_are_not_touched(tmp_path: Path) -> None:
    objective = Classify(dropout=0.5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(objective, Pictures(), config(3), tmp_path, label="")
    assert torch.equal(torch.rand(3), expected)


class Convolutions(Objective):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(8))
        self.net(torch.zeros(1, 1, 8, 8))

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        return Losses.mean(nn.functional.cross_entropy(self.net(batch["image"]), batch["label"]), len(batch["label"]))


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_trains_where_the_caller_has_turned_gradients_off(tmp_path: Path, quiet: Any) -> None:
    alone, within = Classify(), Classify()
    fit(alone, Pictures(), config(3), tmp_path / "alone", label="")
    with quiet():
        fit(within, Pictures(), config(3), tmp_path / "within", label="")
    assert equal(alone, within) and not equal(alone, Classify())


def test_channels_last_and_resume(tmp_path: Path) -> None:
    plain = fit(Convolutions(), Pictures(), config(4), tmp_path / "plain", label="")
    settings = config(4, channels_last=True, checkpoint_every=2, keep=9)
    last = fit(Convolutions(), Pictures(), settings, tmp_path / "last", label="")
    assert last.objective.net[2].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,index]
    assert largest_difference(plain.objective, last.objective) < 1e-5
    shutil.rmtree(tmp_path / "last/checkpoints/step-0000004")
    again = fit(Convolutions(), Pictures(), settings, tmp_path / "last", label="")
    assert equal(again.objective, last.objective)


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    plain = fit(Convolutions(), Pictures(), config(4), tmp_path / "plain", label="")
    compiled = fit(Convolutions(), Pictures(), config(4, compile=True), tmp_path / "compiled", label="")
    assert largest_difference(plain.objective, compiled.objective) < 1e-4
    assert compiled.objective.net._compiled_call_impl is None  # type: ignore[union-attr]


def test_workers_make_no_difference(tmp_path: Path) -> None:
    one = fit(Classify(), Pictures(), config(4), tmp_path / "a", label="")
    other = fit(Classify(), Pictures(), config(4, workers=2), tmp_path / "b", label="")
    assert equal(one.objective, other.objective)


def test_one_optimiser_setting_may_serve_two_phases(tmp_path: Path) -> None:
    class Bilevel(Classify):
        def phases(self) -> tuple[Phase, ...]:
            return (Phase("lower", modules=("model.1",)), Phase("upper", modules=("model.5",), every=2))

    objective = Bilevel()
    fit(objective, Pictures(), config(3), tmp_path, label="")
    start = Classify().state_dict()
    assert all(not torch.equal(value, start[name]) for name, value in objective.state_dict().items())
