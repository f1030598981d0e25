"""Schedules against their closed forms, torch's own, and the recorded arrays of VAR's authors."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.training import OptimizerConfig, ScheduleConfig
from paperworks.training import schedules as s

KINDS = get_args(get_type_hints(ScheduleConfig)["kind"])
totals = st.integers(1, 400)
shares = st.floats(0.0, 1.0)


@st.composite
def settings(draw: st.DrawFn) -> tuple[ScheduleConfig, int]:
    total = draw(totals)
    config = ScheduleConfig(
        draw(st.sampled_from(KINDS)),
        warmup=draw(st.one_of(st.floats(0, 0.99), st.integers(1, total).map(float))),
        warmup_start=draw(shares),
        end=draw(shares),
        milestones=tuple(sorted(draw(st.lists(shares, max_size=3)))),
        gamma=draw(st.floats(0.01, 1.0)),
        flat=draw(st.floats(0.0, 0.95)),
        power=draw(st.floats(0.5, 3.0)),
    )
    return config, total


@given(settings())
def test_every_kind_rises_to_the_peak_and_falls_to_the_end(given: tuple[ScheduleConfig, int]) -> None:
    config, total = given
    rates = [s.rate(step, total, config) for step in range(total)]
    assert all(-1e-12 <= rate <= 1 + 1e-12 for rate in rates)
    up = s.warmup_steps(total, config) or (round(0.3 * total) if config.kind == "one_cycle" else 0)
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(rates[:up]))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rates[up:]))
    if up:
        assert rates[0] == pytest.approx(config.warmup_start)
    if up < total and config.kind != "step":
        assert rates[up] == pytest.approx(1.0) or up == total - 1
    if up < total - 1 and config.kind not in ("constant", "step"):
        assert rates[-1] == pytest.approx(config.end)


@given(totals, st.data())
def test_closed_forms(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    p = step / max(1, total - 1)

    def at(kind: str, **fields: float) -> float:
        return s.rate(step, total, ScheduleConfig(kind, **fields))  # type: ignore[arg-type]

    assert at("constant") == 1.0
    assert at("cosine", end=0.1) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * p)))
    assert at("linear", end=0.2) == pytest.approx(1 - 0.8 * p)
    assert at("polynomial", power=2.0, end=0.1) == pytest.approx(0.1 + 0.9 * (1 - p) ** 2)
    assert at("flat_linear", flat=0.25) == pytest.approx(min(1.0, (1 - p) / 0.75))
    fallen = max(0.0, p - 0.25) / 0.75
    assert at("flat_cosine", flat=0.25, end=0.1) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * fallen)))
    assert at("wsd", flat=0.5) == pytest.approx(1 - math.sqrt(max(0.0, 2 * p - 1)))


def test_warmup_is_a_line_in_steps_or_a_share() -> None:
    for warmup in (4, 0.4):
        config = ScheduleConfig("constant", warmup=warmup, warmup_start=0.2)
        assert [s.rate(step, 10, config) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_flat_cosine_warms_up_stays_and_falls() -> None:
    """xAR's: 100 epochs up, at the peak until epoch 600, half a cosine until 800."""
    config = ScheduleConfig("flat_cosine", warmup=1 / 8, flat=5 / 7, end=0.025)
    rates = [s.rate(step, 801, config) for step in (0, 50, 100, 350, 600, 700, 800)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 0.5125, 0.025], abs=1e-9)
    with pytest.raises(InputError, match="flat=1"):
        s.check(ScheduleConfig("flat_cosine", flat=1.0), "schedule", 10)


def test_steps_fall_at_the_milestones() -> None:
    config = ScheduleConfig("step", milestones=(0.5, 0.8), gamma=0.1)
    assert [s.rate(step, 10, config) for step in (0, 4, 5, 7, 8, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_one_cycle_is_torchs() -> None:
    """torch counts its rise from 0 to pct_start * total - 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=50, pct_start=0.3, div_factor=10)
    config = ScheduleConfig("one_cycle", warmup=0.3 * 50 - 1, warmup_start=0.1, end=0.1 / 1e4)
    for step in range(50):
        assert 2.0 * s.rate(step, 50, config) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        if step < 49:
            optimizer.step()
            theirs.step()


def test_wrong_kind_is_named() -> None:
    with pytest.raises(InputError, match="no schedule 'cosinus'"):
        s.rate(0, 1, ScheduleConfig("cosinus"))  # type: ignore[arg-type]


@given(st.floats(-2, 2), st.floats(-2, 2), totals)
def test_other_scalars_start_and_end_where_told(start: float, end: float, total: int) -> None:
    for schedule in (s.linear(start, end), s.cosine(start, end)):
        assert schedule(0, total) == pytest.approx(start, abs=1e-9)
        if total > 1:
            assert schedule(total - 1, total) == pytest.approx(end, abs=1e-9)
    assert s.constant(start)(3, total) == start
    assert s.scaled(start, ScheduleConfig("constant"))(0, total) == start
    assert [s.switched(1.0, 2.0, 0.5)(step, 10) for step in (0, 4, 5, 9)] == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(("kind", "recorded"), [("flat_linear", "lr_wd_lin0"), ("cosine", "lr_wd_cos")])
def test_recorded_rates_of_var(kind: str, recorded: str) -> None:
    from safetensors import safe_open

    root = Path(os.environ.get("PAPERWORKS_PARITY", Path(__file__).parents[3] / "shared/parity"))
    file = root / "var/transformer.safetensors"
    if not file.is_file():
        pytest.skip("recorded tensors are not here (PAPERWORKS_PARITY)")
    with safe_open(file, "pt") as tensors:
        expected = tensors.get_tensor(f"outputs/{recorded}")
    schedule = ScheduleConfig(kind, warmup=10, warmup_start=0.005, end=0.1, flat=0.05)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(lr=1.0, weight_decay=0.05, weight_decay_end=0.08)
    ours = [[s.rate(step, 100, schedule), s.weight_decay_at(step, 100, optimizer)] for step in range(0, 100, 7)]
    torch.testing.assert_close(torch.tensor(ours), expected, rtol=1e-5, atol=1e-7)
