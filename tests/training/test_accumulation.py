"""The gradient does not depend on how a batch is cut up."""

from pathlib import Path

import pytest
import torch
from torch import nn

from paperworks.training import Context, Objective, fit
from tests.training.tiny import SGD, Masked, Pictures, config, largest_difference


def batch_of(data: Pictures) -> dict[str, torch.Tensor]:
    return {"image": data.images.float() / 255, "label": data.labels}


@pytest.mark.parametrize("micro_batch", [1, 3, None])
def test_gradient_is_that_of_the_mean_over_all_items(tmp_path: Path, micro_batch: int | None) -> None:
    data = Pictures(12)
    expected = Masked()
    losses = expected.loss(batch_of(data), "main", Context(0, 1, 0))
    (losses.total / losses.count).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            assert parameter.grad is not None
            parameter -= SGD.lr * parameter.grad

    fitted = fit(Masked(), data, config(1, micro_batch=micro_batch, optimizers={"main": SGD}), tmp_path, label="")
    assert largest_difference(fitted.objective, expected) < 1e-6
    moved = largest_difference(fitted.objective, Masked())
    assert moved > 1e-3


def test_logged_loss_is_weighted_by_items(tmp_path: Path) -> None:
    from paperworks.training import read_metrics

    data = Pictures(12)
    losses = Masked().loss(batch_of(data), "main", Context(0, 1, 0))
    mean = float(losses.total.detach() / losses.count)
    for name, micro in (("whole", None), ("pieces", 2)):
        fit(Masked(), data, config(1, micro_batch=micro), tmp_path / name, label="")
        row = read_metrics(tmp_path / name)[0]
        assert row["error"] == pytest.approx(mean, rel=1e-5)
        assert row["loss"] == pytest.approx(mean, rel=1e-5)


def test_clip_bounds_the_gradient_of_the_mean(tmp_path: Path) -> None:
    start, fitted = (
        Masked(),
        fit(Masked(), Pictures(12), config(1, micro_batch=3, clip=0.01, optimizers={"main": SGD}), tmp_path, label=""),
    )
    before, after = start.state_dict(), fitted.objective.state_dict()
    step = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
    assert float(step) == pytest.approx(0.01 * SGD.lr, rel=1e-3)


def test_parameters_a_loss_does_not_reach_stay_as_they_are(tmp_path: Path) -> None:
    class Partly(Masked):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)

    objective = Partly()
    before = objective.unused.weight.detach().clone()
    fit(objective, Pictures(12), config(3), tmp_path, label="")
    assert torch.equal(objective.unused.weight, before)


def test_a_phase_whose_loss_touches_nothing_is_harmless(tmp_path: Path) -> None:
    class Nothing(Masked):
        def loss(self, batch, phase, ctx):  # type: ignore[no-untyped-def]
            losses = super().loss(batch, phase, ctx)
            losses.total = losses.total.detach()
            return losses

    objective: Objective = Nothing()
    fit(objective, Pictures(12), config(2), tmp_path, label="")
    assert largest_difference(objective, Masked()) == 0.0
