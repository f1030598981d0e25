from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperworks.training import Objective, fit
from paperworks.training.ema import Average
from tests.training.tiny import Adversarial, Classify, Pictures, config, equal


class Holder(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def average(holder: Holder, decay: float = 0.9, warmup: bool = False) -> Average:
    return Average(holder, {"weight"}, decay, warmup)


def test_follows_the_recurrence() -> None:
    holder = Holder()
    ema, expected = average(holder), torch.zeros(3)
    for step in range(5):
        with torch.no_grad():
            holder.weight.fill_(step + 1.0)
            holder.mean.fill_(2.0 * step)
            holder.count += 1
        ema.update()
        expected = 0.9 * expected + 0.1 * (step + 1.0)
    with ema.applied():
        torch.testing.assert_close(holder.weight.detach(), expected)
        assert int(holder.count) == 5 and holder.mask[1] == -torch.inf and 0 < float(holder.mean[0]) < 8
    assert holder.weight[0] == 5.0 and float(holder.mean[0]) == 8.0


def test_warmup_forgets_the_start() -> None:
    holder = Holder()
    ema, expected = average(holder, decay=0.999, warmup=True), torch.zeros(3)
    for n in range(6):
        with torch.no_grad():
            holder.weight.fill_(float(n))
        ema.update()
        decay = min(0.999, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    with ema.applied():
        torch.testing.assert_close(holder.weight.detach(), expected)


def test_applied_is_undone_even_after_an_error() -> None:
    holder = Holder()
    ema = average(holder)
    with torch.no_grad():
        holder.weight.fill_(7.0)
    with pytest.raises(ZeroDivisionError), ema.applied():
        assert holder.weight[0] == 0.0
        raise ZeroDivisionError
    assert holder.weight[0] == 7.0


def test_tied_weights_are_averaged_once(tmp_path: Path) -> None:
    class Tied(Classify):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 24), nn.Linear(64, 24)
            self.second.weight = self.first.weight

        def loss(self, batch: Any, phase: str, ctx: Any) -> Any:
            losses = super().loss(batch, phase, ctx)
            flat = batch["image"].flatten(1)
            losses.total = losses.total + self.first(flat).square().sum() + self.second(flat).square().sum()
            return losses

    fitted = fit(Tied(), Pictures(), config(4, ema=0.5), tmp_path, label="")
    state = fitted.averaged.state_dict()
    assert torch.equal(state["first.weight"], state["second.weight"])
    again = fit(Tied(), Pictures(), config(4, ema=0.5), tmp_path, label="")
    assert equal(again.averaged, fitted.averaged)
    assert isinstance(again.averaged, Tied) and again.averaged.first.weight is again.averaged.second.weight


def test_what_nothing_trains_is_shared(tmp_path: Path) -> None:
    from tests.training.tiny import ADVERSARIAL

    fitted = fit(Adversarial(), Pictures(), config(6, ema=0.9, optimizers=ADVERSARIAL), tmp_path, label="")
    raw, averaged = fitted.objective.state_dict(), fitted.averaged.state_dict()
    differs = {name for name, value in raw.items() if not torch.equal(value, averaged[name])}
    assert all(name.startswith(("generator", "discriminator", "teacher_steps")) for name in differs)
    assert any(name.startswith("generator") for name in differs)
    assert isinstance(averaged["frozen.weight"], Tensor)
