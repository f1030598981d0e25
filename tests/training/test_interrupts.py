from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from paperworks.training import Context, fit
from paperworks.training.interrupts import Interrupts
from tests.training.tiny import Classify, Pictures, config, equal


class Interrupted(Classify):
    """Gets a signal in the middle of step 4."""

    number = signal.SIGINT

    def after_step(self, ctx: Context) -> None:
        if ctx.step == 4:
            os.kill(os.getpid(), self.number)


Interrupted.__qualname__ = "Classify"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_step_is_finished_saved_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, error: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    objective = Interrupted()
    objective.number = number
    with pytest.raises(error):
        fit(objective, Pictures(), config(9), tmp_path / "a", label="tiny")
    assert signal.getsignal(number) is before
    said = capsys.readouterr().out
    assert f"saved at step 5 of 9 in {tmp_path / 'a'}; the same command continues" in said
    continued = fit(Classify(), Pictures(), config(9), tmp_path / "a", label="")
    assert equal(continued.objective, fit(Classify(), Pictures(), config(9), tmp_path / "b", label="").objective)


def test_second_ctrl_c_does_not_wait() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), Interrupts(said.append):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")
    assert said == ["stopping after this step (Ctrl-C again: at once, without saving)"]


def test_sigterm_after_ctrl_c_is_not_impatience() -> None:
    """torchrun passes both on."""
    with Interrupts(lambda line: None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted == signal.SIGINT


def test_training_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(fit(Classify(), Pictures(), config(2), tmp_path, label="").step))
    thread.start()
    thread.join(60)
    assert done == [2]
