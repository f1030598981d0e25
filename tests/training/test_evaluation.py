"""Evaluation sees the averaged weights in eval mode, and training notices nothing of it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from paperworks.errors import InputError
from paperworks.training import Context, Objective, fit, latest_weights, read_metrics
from tests.training.tiny import Classify, Pictures, config, equal


def test_training_does_not_notice(tmp_path: Path) -> None:
    def noisy(objective: Objective, ctx: Context) -> dict[str, float]:
        assert not any(module.training for module in objective.modules())
        assert not torch.is_grad_enabled()
        objective(
            {"image": torch.rand(4, 1, 8, 8), "label": torch.randint(0, 8, (4,))}, "main", ctx
        )  # draws, and a pass through the normalisation
        objective.train()
        random.random(), np.random.rand(), torch.randn(7)  # noqa: NPY002
        return {"drawn": float(torch.rand(()))}

    first, second = Classify(norm=True, dropout=0.3), Classify(norm=True, dropout=0.3)
    plain = fit(first, Pictures(), config(9, ema=0.9), tmp_path / "plain", label="")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index,union-attr]  # noqa: NPY002
    watched = fit(second, Pictures(), config(9, ema=0.9, eval_every=2), tmp_path / "watched", evaluate=noisy, label="")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index,union-attr]  # noqa: NPY002
    assert equal(plain.objective, watched.objective) and equal(plain.averaged, watched.averaged)
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])

    rows = [row for row in read_metrics(tmp_path / "watched") if "eval/drawn" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
    assert len({row["eval/drawn"] for row in rows}) == 5, "each evaluation has draws of its own"


def test_modes_that_an_objective_set_itself_survive(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Fixed(Classify):
        def train(self, mode: bool = True) -> Fixed:
            super().train(mode)
            self.model[2].eval()
            return self

        def after_step(self, ctx: Context) -> None:
            seen.append(self.model[2].training)
            seen.append(not self.model[4].training)

    fit(Fixed(norm=True), Pictures(), config(4, eval_every=1), tmp_path, evaluate=lambda o, c: {"x": 0.0}, label="")
    assert not any(seen)


def test_evaluation_holds_the_average_and_training_goes_on_with_the_weights(tmp_path: Path) -> None:
    held = {}

    def look(objective: Objective, ctx: Context) -> dict[str, float]:
        held[ctx.step + 1] = {name: value.clone() for name, value in objective.state_dict().items()}
        return {}

    fitted = fit(Classify(), Pictures(), config(6, ema=0.9, eval_every=3), tmp_path, evaluate=look, label="")
    assert equal(held[6], fitted.averaged) and not equal(held[6], fitted.objective)
    assert equal(latest_weights(tmp_path), fitted.averaged)
    assert equal(latest_weights(tmp_path, averaged=False), fitted.objective)
    Classify().model.load_state_dict(latest_weights(tmp_path, "model."))
    with pytest.raises(InputError, match=r"no weights below 'net\.'; there are model"):
        latest_weights(tmp_path, "net.")
    with pytest.raises(InputError, match="holds no checkpoint"):
        latest_weights(tmp_path / "elsewhere")


@pytest.mark.parametrize(("best", "step"), [("score", 4), ("-score", 6)])
def test_best_checkpoint_is_kept(tmp_path: Path, best: str, step: int) -> None:
    scores = {2: 1.0, 4: 3.0, 6: 0.5, 8: 2.0, 10: 1.5}
    fitted = fit(
        Classify(),
        Pictures(),
        config(10, eval_every=2, checkpoint_every=100),
        tmp_path,
        evaluate=lambda objective, ctx: {"score": scores[ctx.step + 1]},
        best=best,
        label="",
    )
    assert fitted.best == (scores[step], step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"step-{step:07d}", "step-0000010"]


def test_unknown_best_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best='fid': evaluate returns accuracy"):
        fit(Classify(), Pictures(), config(1), tmp_path, evaluate=lambda o, c: {"accuracy": 1.0}, best="fid", label="")


def test_a_failing_evaluation_leaves_the_weights_in_place(tmp_path: Path) -> None:
    def fails(objective: Objective, ctx: Context) -> dict[str, float]:
        raise ZeroDivisionError

    objective = Classify()
    with pytest.raises(ZeroDivisionError):
        fit(objective, Pictures(), config(5, ema=0.9), tmp_path / "a", evaluate=fails, label="")
    assert equal(objective, fit(Classify(), Pictures(), config(5), tmp_path / "b", label="").objective)
