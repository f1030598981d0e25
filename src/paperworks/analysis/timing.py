"""Wall times that can be compared: every side runs in turn in one process, so that whatever slows the machine slows all."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Work = Callable[[], Any]
Key = TypeVar("Key")


def seconds(work: Work, repeats: int = 1) -> float:
    """Mean wall time of `repeats` calls."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def alternate(works: Mapping[Key, Work], rounds: int = 15, warmup: int = 2, least: float = 0.05) -> dict[Key, list[float]]:
    """Seconds of each work in each round; the order turns around from round to round.

    warmup: untimed calls of each work first. least: seconds that one timing lasts at least (short work is repeated within it,
    by the same count in every round).
    """
    repeats = {}
    for name, work in works.items():
        for _ in range(warmup):
            work()
        repeats[name] = max(1, round(least / max(seconds(work), 1e-9)))
    times: dict[Key, list[float]] = {name: [] for name in works}
    collected = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            for name in list(works) if number % 2 == 0 else list(works)[::-1]:
                times[name].append(seconds(works[name], repeats[name]))
    finally:
        if collected:
            gc.enable()
    return times
