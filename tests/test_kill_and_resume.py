"""The command line's promise: a run that is killed outright in any stage ends, when given again, with the same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = [
    "tokenizer.ch=8",
    "tokenizer.ch_mult=[1,1,2,2]",
    "tokenizer.groups=4",
    "tokenizer.vocab_size=32",
    "tokenizer.z_channels=4",
    "copies=1",
    "sampling.images=20",
    "transformer.depth=1",
    "transformer.embed_dim=64",
    "transformer.num_heads=1",
    *(
        f"{stage}_training.{setting}"
        for stage in ("tokenizer", "transformer")
        for setting in ("steps=40", "batch_size=16", "checkpoint_every=5")
    ),
]


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "paperworks", "run", "var", "--out", str(folder), "--set", *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PAPERWORKS_RESULTS": str(folder.parent / "results")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_in(folder: Path, stage: str) -> None:
    process = start(folder)
    deadline = time.monotonic() + 200
    while not list((folder / stage / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint of {stage} appeared"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / stage / "model").exists(), "the stage had ended before the signal came"


def finish(folder: Path) -> None:
    process = start(folder)
    words, _ = process.communicate(timeout=280)
    assert process.returncode == 0, words


@pytest.mark.slow
def test_killed_in_each_stage_a_var_run_ends_with_the_same_weights(tmp_path):
    finish(tmp_path / "whole")
    kill_in(tmp_path / "killed", "tokenizer")
    kill_in(tmp_path / "killed", "transformer")
    finish(tmp_path / "killed")
    for stage in ("tokenizer", "transformer"):
        weights = f"{stage}/model/model.safetensors"
        assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "killed" / weights).read_bytes(), stage
    assert (tmp_path / "killed" / "report.html").is_file()
