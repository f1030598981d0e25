from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from paperworks.training import fit, read_metrics
from paperworks.training.metrics import MetricsFile, Running
from tests.training.tiny import ADVERSARIAL, Adversarial, Classify, Pictures, config


def test_rows_behind_the_checkpoint_and_half_lines_go(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, 0)
    for step in (2, 4, 6):
        file.append({"step": step, "loss": 1.0 / step, "other": math.nan})
    with file.path.open("a") as end:
        end.write('{"step": 8, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4, 6]
    again = MetricsFile(tmp_path, 4)
    again.append({"step": 5})
    assert read_metrics(file.path) == [
        {"step": 2, "loss": 0.5, "other": None},
        {"step": 4, "loss": 0.25, "other": None},
        {"step": 5},
    ]


def test_nothing_logged_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == [] == read_metrics(tmp_path / "absent")


def test_means_are_weighted_and_leave_out_what_is_not_finite() -> None:
    running = Running()
    running.add("loss", torch.tensor(1.0), 3)
    running.add("loss", torch.tensor(torch.nan), 5)
    running.add("loss", torch.tensor(5.0), torch.tensor(1))
    assert running.take() == {"loss": (8.0, 4.0)}
    assert running.take() == {}


def test_a_row_holds_losses_rate_norm_speed_and_time(tmp_path: Path) -> None:
    fit(Classify(), Pictures(), config(6, log_every=4), tmp_path, label="")
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [4, 6]
    assert list(rows[0]) == ["step", "loss", "grad_norm", "lr", "images_per_second", "seconds", "skipped"]
    assert rows[1]["seconds"] > rows[0]["seconds"] > 0 and rows[0]["images_per_second"] > 0
    assert rows[0]["lr"] == pytest.approx(1e-3 * (0.5 + 0.5 * math.cos(math.pi * 3 / 5)))


def test_phases_have_names_of_their_own(tmp_path: Path) -> None:
    fit(Adversarial(), Pictures(), config(6, optimizers=ADVERSARIAL, log_every=3), tmp_path, label="")
    first, second = read_metrics(tmp_path)
    assert "d/loss" not in first, "the discriminator begins at step 4"
    assert {"g/loss", "g/grad_norm", "g/lr", "d/loss", "d/grad_norm", "d/lr"} <= set(second)
