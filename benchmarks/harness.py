"""How a ratio is measured: both sides run alternately in one process, so that whatever slows the machine slows both.

A benchmark is `benchmarks/<name>.py` with `run() -> list[Row]`. Both sides of a row get the same weights and inputs, and the
entry checks that they agree before it times them.
"""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from paperworks.paper import versions, write_json

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"

Work = Callable[[], Any]


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


def seconds(work: Work, repeats: int = 1) -> float:
    """Mean wall time of `repeats` calls."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def compare(ours: Work, peer: Work, rounds: int = 15, warmup: int = 2, least: float = 0.05) -> Ratio:
    """Time both sides alternately; the order swaps from round to round.

    rounds: pairs of timings. warmup: untimed calls of each side first. least: seconds that one timing lasts at least
    (short work is repeated within it, by the same count for a side in every round).
    """
    sides = (ours, peer)
    repeats = []
    for side in sides:
        for _ in range(warmup):
            side()
        repeats.append(max(1, round(least / max(seconds(side), 1e-9))))
    times: tuple[list[float], list[float]] = ([], [])
    collected = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                times[which].append(seconds(sides[which], repeats[which]))
    finally:
        if collected:
            gc.enable()
    ratios = [slow / fast for fast, slow in zip(*times)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if rounds > 1 else (ratios[0],) * 3
    return Ratio(median(ratios), low, high, median(times[0]), median(times[1]), rounds)


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
