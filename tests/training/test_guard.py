"""What is not finite never reaches weights or statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperworks.training import Batch, Context, DivergedError, Losses, OptimizerConfig, fit, read_metrics
from tests.training.tiny import SGD, Classify, Pictures, config, equal

OPTIMIZERS = ("adamw", "adam", "sgd", "lamb", "lars", "adafactor", "adamp", "adadelta", "rmsprop")


class BadGradient(torch.autograd.Function):
    """Identity whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


class Poisoned(Classify):
    """In the steps named, the picture, the loss or only the gradient is not finite."""

    def __init__(self, kind: str, steps: set[int]):
        super().__init__(norm=True)
        self.kind, self.steps = kind, steps

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        bad = ctx.step in self.steps
        if bad and self.kind == "picture":
            batch = batch | {"image": batch["image"] * torch.nan}
        losses = super().loss(batch, phase, ctx)
        if bad and self.kind == "loss":
            losses.total = losses.total + torch.inf
        if bad and self.kind == "gradient":
            losses.total = BadGradient.apply(losses.total)
        return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["picture", "loss", "gradient"])
def test_bad_steps_leave_no_trace(tmp_path: Path, kind: str, name: str) -> None:
    """The very first step is bad, and a later one: weights and statistics stay what they were; then training goes on."""
    optimizer = OptimizerConfig(name, lr=1e-2)  # type: ignore[arg-type]
    settings = config(6, optimizers={"main": optimizer}, micro_batch=4, ema=0.9)
    untouched = fit(Poisoned(kind, {0}), Pictures(), config(1, optimizers={"main": optimizer}), tmp_path / "one", label="")
    assert untouched.skipped == 1
    assert equal(
        {k: v for k, v in untouched.objective.state_dict().items() if "num_batches" not in k},
        {k: v for k, v in Poisoned(kind, {0}).state_dict().items() if "num_batches" not in k},
    )

    fitted = fit(Poisoned(kind, {0, 3}), Pictures(), settings, tmp_path / "six", label="")
    assert fitted.skipped == 2
    for each in (fitted.objective, fitted.averaged):
        assert all(torch.isfinite(value).all() for value in each.state_dict().values())
    assert not equal(fitted.objective, Poisoned(kind, {0}))
    rows = read_metrics(tmp_path / "six")
    assert [row["skipped"] for row in rows] == [1, 1, 1, 2, 2, 2]
    if kind != "gradient":
        assert rows[1]["loss"] > 0
    state = torch.load(fitted.checkpoint / "state.pt", weights_only=True)["optimizers"]["main"]["state"]
    moments = [value for each in state.values() for value in each.values() if isinstance(value, Tensor)]
    assert all(torch.isfinite(value).all() for value in moments)


def test_a_skipped_update_is_no_update(tmp_path: Path) -> None:
    """With plain SGD the bad step may as well not have been: the other steps make the same moves."""
    settings = config(3, optimizers={"main": SGD})
    without = fit(Poisoned("gradient", {2}), Pictures(), settings, tmp_path / "a", label="")
    two = fit(Poisoned("gradient", set()), Pictures(), config(2, optimizers={"main": SGD}), tmp_path / "b", label="")
    parameters = dict(two.objective.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in without.objective.named_parameters())


def test_stop(tmp_path: Path) -> None:
    objective = Poisoned("loss", {4})
    with pytest.raises(DivergedError, match=r"phase 'main' was not finite at step 4; the weights were kept\. Lower"):
        fit(objective, Pictures(), config(9, non_finite="stop"), tmp_path, label="")
    assert all(torch.isfinite(value).all() for value in objective.state_dict().values())


def test_too_many_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="at step 6 nor in the 3 updates before"):
        fit(Poisoned("loss", {0, *range(3, 20)}), Pictures(), config(20, max_skipped=3), tmp_path / "row", label="")
    every_second = set(range(0, 20, 2))
    fitted = fit(Poisoned("loss", every_second), Pictures(), config(20, max_skipped=1), tmp_path / "other", label="")
    assert fitted.skipped == 10


def test_a_replaced_buffer_is_reported(tmp_path: Path) -> None:
    class Replaces(Classify):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def after_step(self, ctx: Context) -> None:
            self.seen = self.seen + 1

    with pytest.raises(RuntimeError, match=r"buffer seen was replaced by a new tensor; write into it with copy_\(\)"):
        fit(Replaces(), Pictures(), config(2), tmp_path, label="")


def test_a_step_without_items_changes_nothing_by_itself(tmp_path: Path) -> None:
    class Empty(Classify):
        def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
            return Losses(self.model(batch["image"]).sum() * 0.0, 0)

    objective = Empty()
    fitted = fit(objective, Pictures(), config(2, optimizers={"main": SGD}), tmp_path, label="")
    assert fitted.skipped == 0 and equal(objective, Classify())
    assert isinstance(objective.model, nn.Sequential)
