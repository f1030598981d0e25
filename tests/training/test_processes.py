"""One process and two processes (gloo, started by torchrun) arrive at the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from paperworks.training import fit, read_metrics
from tests.training.tiny import Pictures, largest_difference
from tests.training.worker import CASES, run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("two processes")  # one launch for all tests
BROKEN_OFF = {"ddp-phases": 6, "shard": 4, "shard-phases": 7}
"""cases that are broken off in a step and continued"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    arguments = [f"{case}@{step}" for case, step in BROKEN_OFF.items()] + list(CASES)
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.training.worker", str(folder)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(two_processes: Path, tmp_path: Path, case: str) -> None:
    """Also when the two were broken off and started again on the way."""
    alone = run(tmp_path, case)
    for name, objective in (("raw", alone.objective), ("averaged", alone.averaged)):
        for rank in (0, 1):
            theirs = load_file(two_processes / f"{case}-{name}-{rank}.safetensors")
            assert largest_difference(objective, theirs) < 1e-6, f"{name} weights of process {rank}"
    evaluated = [read_metrics(folder)[-1]["eval/loss"] for folder in (tmp_path, two_processes / case)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)
    assert alone.averaged is alone.objective or largest_difference(alone.averaged, alone.objective) > 1e-5


@pytest.mark.parametrize("case", BROKEN_OFF)
def test_one_process_continues_what_two_began(two_processes: Path, case: str) -> None:
    """Checkpoints do not depend on how many processes wrote them, sharded or not."""
    assert (two_processes / f"half-{case}/checkpoints").is_dir()
    fitted = run(two_processes / f"half-{case}", case)
    theirs = load_file(two_processes / f"{case}-raw-0.safetensors")
    assert largest_difference(fitted.objective, theirs) < 1e-6


def test_a_finished_run_of_two_processes_loads_in_one(two_processes: Path) -> None:
    make, settings = CASES["shard"]
    finished = fit(make(), Pictures(), settings, two_processes / "shard", label="")
    assert largest_difference(finished.objective, load_file(two_processes / "shard-raw-0.safetensors")) == 0.0
