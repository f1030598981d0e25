from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from paperworks.training import Batch, Context, Losses, autocast, bf16_is_fast, fit
from paperworks.training.precision import LossScale, resolve
from tests.training.tiny import Classify, Pictures, config


def test_autocast_computes_in_the_format_named() -> None:
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    for precision, dtype in (("32", torch.float32), ("bf16", torch.bfloat16), ("16", torch.float16)):
        with autocast(precision):  # type: ignore[arg-type]
            assert (left @ right).dtype == dtype
    with autocast():
        assert (left @ right).dtype == (torch.bfloat16 if bf16_is_fast() else torch.float32)


def test_auto_is_resolved_once_and_kept_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run begun on one machine computes in the same format on the next."""
    from paperworks.training import loop

    seen: list[torch.dtype] = []

    class Watches(Classify):
        def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
            seen.append(self.model(batch["image"]).dtype)
            if ctx.step == 3 and len(seen) == 4:
                raise KeyError
            return super().loss(batch, phase, ctx)

    settings = config(5, precision="auto", checkpoint_every=2)
    monkeypatch.setattr(loop, "resolve", lambda precision, device: "bf16")
    with pytest.raises(KeyError):
        fit(Watches(), Pictures(), settings, tmp_path, label="")
    monkeypatch.setattr(loop, "resolve", lambda precision, device: "32")
    fit(Watches(), Pictures(), settings, tmp_path, label="")
    assert set(seen) == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["computed_in"] == "bf16"
    assert resolve("32", torch.device("cpu")) == "32"


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_weights_stay_float32_and_learn(tmp_path: Path, precision: str) -> None:
    from paperworks.training import read_metrics

    fitted = fit(Classify(), Pictures(), config(60, precision=precision), tmp_path, label="")
    assert all(value.dtype == torch.float32 for value in fitted.objective.state_dict().values())
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    assert fitted.skipped == 0


def test_scale_of_the_loss_is_halved_after_overflow_and_doubled_when_calm() -> None:
    scale = LossScale(torch.device("cpu"), active=True, start=1024.0, patience=3)
    yes, no = torch.tensor(True), torch.tensor(False)
    history = []
    for finite in (no, yes, yes, yes, no, yes):
        scale.update(finite)
        history.append(float(scale.scale))
    assert history == [512, 512, 512, 1024, 512, 512]
    other = LossScale(torch.device("cpu"), active=True)
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict()


def test_overflow_of_the_scaled_loss_is_no_divergence(tmp_path: Path) -> None:
    """The first scale is far too large for this loss: it is searched for, without counting as bad steps."""

    class Steep(Classify):
        def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
            losses = super().loss(batch, phase, ctx)
            return Losses(losses.total * 1e34, losses.count)

    fitted = fit(Steep(), Pictures(), config(12, precision="16", non_finite="stop"), tmp_path, label="")
    scale = torch.load(fitted.checkpoint / "state.pt", weights_only=True)["scale"]["scale"]
    assert scale < 2.0**16 and fitted.skipped == 0
