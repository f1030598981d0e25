"""Contrastive gradients of a batch in pieces equal those of the whole batch, the temperature's included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paperworks.training import Context, fit, read_metrics
from tests.training.tiny import SGD, Contrast, Pictures, config, equal, largest_difference


@pytest.mark.parametrize("micro_batch", [1, 3, 6, None])
def test_gradient_is_that_of_the_whole_batch(tmp_path: Path, micro_batch: int | None) -> None:
    data = Pictures(12)
    expected = Contrast()
    losses = expected.loss({"image": data.images.float() / 255}, "main", Context(0, 1, 0))
    (losses.total / losses.count).backward()
    assert expected.temperature.grad is not None and abs(float(expected.temperature.grad)) > 1e-3
    with torch.no_grad():
        for parameter in expected.parameters():
            assert parameter.grad is not None
            parameter -= SGD.lr * parameter.grad

    settings = config(1, micro_batch=micro_batch, optimizers={"main": SGD})
    fitted = fit(Contrast(), data, settings, tmp_path, label="")
    assert largest_difference(fitted.objective, expected) < 1e-6
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(float(losses.total.detach() / 12), rel=1e-5)


def test_both_passes_draw_alike(tmp_path: Path) -> None:
    """With dropout the features of pass 2 must be those whose gradient pass 1 took: compare with one whole graph."""
    from paperworks.training.seeds import mixed_seed, seed_global

    data = Pictures(12)
    settings = config(1, micro_batch=4, optimizers={"main": SGD})
    fitted = fit(Contrast(dropout=0.4), data, settings, tmp_path, label="")

    from paperworks.data import Loader

    image = next(iter(Loader(data, 12, seed=0)))["image"].float() / 255
    expected, ctx, pieces = Contrast(dropout=0.4), Context(0, 1, 0), []
    for index in range(3):
        ctx.micro = index
        seed_global(mixed_seed(0, "two_pass", 0, 0, index), torch.device("cpu"))
        pieces.append(expected.encode({"image": image[4 * index : 4 * index + 4]}, "main", ctx))
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    losses = expected.pair_loss(whole, whole, 0, "main", ctx)
    (losses.total / losses.count).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            assert parameter.grad is not None
            parameter -= SGD.lr * parameter.grad
    assert largest_difference(fitted.objective, expected) < 1e-6


def test_running_statistics_move_once(tmp_path: Path) -> None:
    fitted = fit(Contrast(norm=True), Pictures(12), config(1, micro_batch=4, optimizers={"main": SGD}), tmp_path, label="")
    # two towers' worth of pictures per micro-batch, three micro-batches, once each
    assert int(fitted.objective.state_dict()["tower.2.num_batches_tracked"]) == 6


def test_bad_features_leave_no_trace(tmp_path: Path) -> None:
    class Bad(Contrast):
        def encode(self, batch, phase, ctx):  # type: ignore[no-untyped-def]
            features = super().encode(batch, phase, ctx)
            return {name: value * torch.nan for name, value in features.items()} if ctx.step == 0 else features

    fitted = fit(Bad(), Pictures(12), config(1, micro_batch=4), tmp_path, label="")
    assert fitted.skipped == 1 and equal(fitted.objective, Contrast())
