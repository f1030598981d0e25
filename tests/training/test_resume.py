"""A run that was stopped, in whatever way, ends with the same bits as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paperworks.errors import InputError
from paperworks.training import Fitted, Objective, OptimizerConfig, ParameterRule, TrainConfig, checkpoint, fit, read_metrics
from tests.training.tiny import ADVERSARIAL, Adversarial, Classify, Pictures, config, equal
from tests.training.worker import BrokenOff, breaks_off

ROOT = Path(__file__).parents[2]
ROWS = ("images_per_second", "seconds")


def broken_off(objective: Objective, data: Any, settings: TrainConfig, folder: Path, at: int) -> None:
    with pytest.raises(BrokenOff):
        fit(objective, data, settings, folder, batch_transform=breaks_off(at), label="")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ROWS} for row in read_metrics(folder)]


def assert_same(one: Fitted, other: Fitted) -> None:
    assert equal(one.objective, other.objective)
    assert equal(one.averaged, other.averaged)
    assert rows(one.metrics.parent) == rows(other.metrics.parent)
    first, second = (torch.load(each.checkpoint / "state.pt", weights_only=True) for each in (one, other))
    assert str(first) == str(second)  # optimisers, loader, guard, extra state


CASES: dict[str, tuple[Callable[[], Objective], TrainConfig]] = {
    "phases": (Adversarial, config(14, batch_size=9, ema=0.9, optimizers=ADVERSARIAL, checkpoint_every=5, micro_batch=3)),
    "norm and dropout": (lambda: Classify(norm=True, dropout=0.3), config(14, batch_size=9, ema=0.9, checkpoint_every=5)),
} | {
    name: (Classify, config(14, batch_size=9, optimizers={"main": OptimizerConfig(name, lr=1e-2)}, checkpoint_every=5))  # type: ignore[arg-type]
    for name in ("sgd", "adam", "lamb", "lars", "adafactor", "adamp", "adadelta", "rmsprop")
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_continued_is_bit_equal(tmp_path: Path, case: str) -> None:
    """Five steps are half an epoch and more: the loader stands in the middle of the data."""
    make, settings = CASES[case]
    data = Pictures(70)
    whole = fit(make(), data, settings, tmp_path / "whole", label="")
    broken_off(make(), data, settings, tmp_path / "parts", at=8)  # after the checkpoint at 5, two steps are lost
    broken_off(make(), data, settings, tmp_path / "parts", at=6)  # continued from 5, saved at 10, broken off again
    parts = fit(make(), data, settings, tmp_path / "parts", label="")
    assert_same(whole, parts)
    assert [row["step"] for row in read_metrics(tmp_path / "parts")] == list(range(1, 15))


def test_ready_made_state_of_the_objective_comes_back(tmp_path: Path) -> None:
    make, settings = CASES["phases"]
    broken_off(make(), Pictures(70), settings, tmp_path, at=8)
    continued = make()
    fit(continued, Pictures(70), settings, tmp_path, label="")
    assert isinstance(continued, Adversarial)
    assert continued.turns == 14
    assert float(continued.teacher_steps) == 14
    assert not continued.teacher.weight.requires_grad and continued.discriminator[0].weight.requires_grad  # type: ignore[union-attr]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("function", ["save_file", "_checksum", "_flush", "os.rename", "shutil.rmtree", "prune"])
@pytest.mark.parametrize("before", [True, False])
def test_dying_anywhere_in_a_save_leaves_a_run_that_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, before: bool
) -> None:
    make, settings = CASES["norm and dropout"]
    whole = fit(make(), Pictures(70), settings, tmp_path / "whole", label="")
    holder = checkpoint if "." not in function else getattr(checkpoint, function.split(".")[0])
    name = function.split(".")[-1]
    original, calls = getattr(holder, name), 0

    def dies(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        saving_second = (tmp_path / "parts/checkpoints/step-0000005").exists()
        calls += saving_second
        if calls == 1 and before:
            raise Killed
        result = original(*arguments, **keywords)
        if calls == 1:
            raise Killed
        return result

    monkeypatch.setattr(holder, name, dies)
    with pytest.raises(Killed):
        fit(make(), Pictures(70), settings, tmp_path / "parts", label="")
    monkeypatch.undo()
    parts = fit(make(), Pictures(70), settings, tmp_path / "parts", label="")
    assert_same(whole, parts)
    left = sorted(path.name for path in (tmp_path / "parts/checkpoints").iterdir())
    assert left == ["step-0000014"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_damaged_checkpoint_is_passed_over_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    make, settings = CASES["norm and dropout"]
    settings = config(14, batch_size=9, ema=0.9, checkpoint_every=5, keep=3)
    whole = fit(make(), Pictures(70), settings, tmp_path / "whole", label="")
    broken_off(make(), Pictures(70), settings, tmp_path / "parts", at=13)
    newest = tmp_path / "parts/checkpoints/step-0000010"
    file = newest / "weights.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-7] ^= 4
        file.write_bytes(bytes(content))
    elif damage == "missing":
        (newest / "state.pt").unlink()
    else:
        (newest / "manifest.json").unlink()
    parts = fit(make(), Pictures(70), settings, tmp_path / "parts", label="tiny")
    assert_same(whole, parts)
    printed = capsys.readouterr().out
    assert "step-0000010 is passed over" in printed and "continuing from step 5" in printed


def test_finished_run_returns_at_once(tmp_path: Path) -> None:
    make, settings = CASES["phases"]
    first = fit(make(), Pictures(70), settings, tmp_path, label="")

    def never(batch: Any, generator: torch.Generator) -> Any:
        raise AssertionError("trained again")

    again = fit(make(), Pictures(70), settings, tmp_path, batch_transform=never, label="")
    assert equal(first.objective, again.objective) and equal(first.averaged, again.averaged)
    assert (again.step, again.seconds, again.metrics) == (14, first.seconds, first.metrics)
    assert equal(load_file(again.checkpoint / "weights.safetensors"), first.objective)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 6}, "batch_size"),
        ({"steps": 20}, "steps"),
        ({"optimizers": {"main": OptimizerConfig(lr=0.5)}}, "optimizers.main.lr"),
        ({"optimizers": {"main": OptimizerConfig(rules=(ParameterRule("bias"),))}}, "optimizers.main.rules"),
    ],
)
def test_folder_of_another_recipe_is_refused(tmp_path: Path, changed: dict[str, Any], field: str) -> None:
    settings = {"batch_size": 9, "checkpoint_every": 2}
    broken_off(Classify(), Pictures(), config(10, **settings), tmp_path, at=4)
    with pytest.raises(InputError, match=f"a run with {field} = "):
        fit(Classify(), Pictures(), config(**{"steps": 10} | settings | changed), tmp_path, label="")
    with pytest.raises(InputError, match="a run with samples = 60, but this one has 61"):
        fit(Classify(), Pictures(61), config(10, **settings), tmp_path, label="")
    with pytest.raises(InputError, match="a run with objective = 'Classify'"):
        fit(Adversarial(), Pictures(), config(10, optimizers=ADVERSARIAL, **settings), tmp_path, label="")


def test_folder_without_its_config_is_refused(tmp_path: Path) -> None:
    fit(Classify(), Pictures(), config(2), tmp_path, label="")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints but no config\.json"):
        fit(Classify(), Pictures(), config(2), tmp_path, label="")


def test_what_does_not_change_the_result_may_change(tmp_path: Path) -> None:
    whole = fit(Classify(), Pictures(), config(10), tmp_path / "whole", label="")
    broken_off(Classify(), Pictures(), config(10, checkpoint_every=4), tmp_path / "parts", at=6)
    parts = fit(Classify(), Pictures(), config(10, workers=1, keep=2, log_every=3), tmp_path / "parts", label="")
    assert equal(whole.objective, parts.objective)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    class Wider(Classify):
        __qualname__ = "Classify"

        def __init__(self) -> None:
            super().__init__()
            self.model[1] = torch.nn.Linear(64, 25)

    broken_off(Classify(), Pictures(), config(10, checkpoint_every=2), tmp_path, at=4)
    with pytest.raises(InputError, match=r"model\.1\.weight has shape \[24, 64\] there and \[25, 64\] here"):
        fit(Wider(), Pictures(), config(10, checkpoint_every=2), tmp_path, label="")


SCRIPT = """
import sys, time, torch
from tests.training.tiny import ADVERSARIAL, Adversarial, Pictures, config
from paperworks.training import fit
class Slow(Adversarial):
    def after_step(self, ctx):
        time.sleep(0.02)
        super().after_step(ctx)
Slow.__qualname__ = "Adversarial"
settings = config(60, batch_size=9, ema=0.9, optimizers=ADVERSARIAL, checkpoint_every=3, workers=1)
fit(Slow(), Pictures(70), settings, sys.argv[1], label="tiny")
"""


def start(folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while len(read_metrics(folder)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_kill_9_and_ctrl_c_in_real_processes(tmp_path: Path) -> None:
    settings = config(60, batch_size=9, ema=0.9, optimizers=ADVERSARIAL, checkpoint_every=3)
    whole = fit(Adversarial(), Pictures(70), settings, tmp_path / "whole", label="")
    folder = tmp_path / "parts"

    process = start(folder)
    wait_for_rows(folder, 7, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    process = start(folder)
    wait_for_rows(folder, 20, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the data worker gets it too
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "KeyboardInterrupt" in output
    done = len(read_metrics(folder))
    assert output.count("stopping after this step") == 1
    assert f"saved at step {done} of 60 in {folder}; the same command continues" in output
    assert (folder / f"checkpoints/step-{done:07d}").is_dir()

    parts = fit(Adversarial(), Pictures(70), settings, folder, label="")
    assert equal(whole.objective, parts.objective) and equal(whole.averaged, parts.averaged)
    assert rows(folder) == rows(tmp_path / "whole")
