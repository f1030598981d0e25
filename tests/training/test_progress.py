from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from paperworks.training import fit
from paperworks.training.progress import TrainingProgress
from tests.training.tiny import Classify, Pictures, config


def test_a_line_every_tenth_when_not_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Classify(), Pictures(), config(40), tmp_path, label="digits")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"digits: 4/40  \d+:\d\d left  \d+ img/s  loss \S+", lines[0])
    assert lines[-1].startswith("digits: 40/40")


def test_silent_without_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Classify(), Pictures(), config(5), tmp_path, label="")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_bar_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with TrainingProgress("var", total=50, start=10, console=console) as progress:
        progress.losses({"step": 30, "g/loss": 0.5, "g/lr": 1e-3, "images_per_second": 123.4, "seconds": 9.0})
        progress.advance(50)
        progress.say("[bold]as it is[/bold]")
    shown = screen.getvalue()
    assert "50/50" in shown and "g/loss 0.5" in shown and "123 img/s" in shown and "[bold]as it is" in shown
    assert "lr" not in shown and "seconds" not in shown


def test_only_the_first_process_shows_anything() -> None:
    screen = io.StringIO()
    with TrainingProgress("var", 10, 0, shown=False, console=Console(file=screen)) as progress:
        progress.advance(5)
        progress.say("hello")
    assert screen.getvalue() == ""
