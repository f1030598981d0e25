"""How a ratio is measured: both sides run alternately in one process, so that whatever slows the machine slows both.

A benchmark is `benchmarks/<name>.py` with `run() -> list[Row]`. Both sides of a row get the same weights and inputs, and the
entry checks that they agree before it times them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from paperworks.analysis.timing import Work, alternate
from paperworks.paper import versions, write_json

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ours is: the median over rounds of peer's time / our time, and its quartiles."""

    median: float
    low: float
    high: float
    ours_seconds: float
    peer_seconds: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table."""

    what: str
    """the job: model, batch, size"""
    ours: str
    peer: str
    ratio: Ratio
    target: float | None = None
    """smallest acceptable median, where one was set beforehand"""
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio.median >= self.target


def compare(ours: Work, peer: Work, rounds: int = 15, warmup: int = 2, least: float = 0.05) -> Ratio:
    """Time both sides alternately (`paperworks.analysis.timing.alternate` explains the arguments)."""
    times = alternate({"ours": ours, "peer": peer}, rounds, warmup, least)
    ratios = [slow / fast for fast, slow in zip(times["ours"], times["peer"])]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if rounds > 1 else (ratios[0],) * 3
    return Ratio(median(ratios), low, high, median(times["ours"]), median(times["peer"]), rounds)


def quietly(model: Callable[[Any], Any], given: Any, bf16: bool = False) -> Callable[[], Any]:
    """model(given) in inference mode, under bfloat16 autocast if asked for."""

    def work() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(given)

    return work


def agree(ours: Tensor, theirs: Tensor, allowed: float = 1e-5) -> None:
    """AssertionError where outputs differ by more than `allowed` of the largest one: a timing would mean nothing."""
    difference = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    if difference > allowed:
        raise AssertionError(f"outputs differ by {difference:.3g} of the largest one; a timing would mean nothing")


def machine() -> dict[str, Any]:
    """What a timing depends on besides the code."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return {"processor": name, "threads": torch.get_num_threads(), "simd": torch.backends.cpu.get_cpu_capability()}


def show(name: str, rows: Sequence[Row], console: Console) -> None:
    table = Table("what", "ours", "peer", "ours ms", "peer ms", "ratio", "quartiles", "target", title=name)
    for row in rows:
        ratio = row.ratio
        verdict = "" if row.target is None else f"{row.target:g}x {'met' if row.met else 'MISSED'}"
        table.add_row(
            row.what,
            row.ours,
            row.peer,
            f"{ratio.ours_seconds * 1e3:.1f}",
            f"{ratio.peer_seconds * 1e3:.1f}",
            f"{ratio.median:.2f}x",
            f"{ratio.low:.2f}-{ratio.high:.2f}",
            verdict,
        )
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"[dim]{row.what}, {row.ours}: {row.note}[/dim]")


def store(name: str, rows: Sequence[Row], folder: Path | None = None) -> Path:
    """results/benchmarks/<name>.json: rows, machine, versions."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    plain = json.loads(json.dumps([asdict(row) | {"met": row.met} for row in rows]))
    write_json(path, {"name": name, "machine": machine(), "versions": versions(), "rows": plain})
    return path
