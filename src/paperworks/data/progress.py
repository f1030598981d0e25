"""A progress bar for whatever takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def watched(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The same items; after a second a bar with the time left appears on the terminal, and it goes away at the end."""
    bar, task = None, None
    begin = time.monotonic()
    try:
        for count, item in enumerate(items):
            if bar is not None and task is not None:
                bar.update(task, completed=count)
            elif time.monotonic() - begin > 1 and sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import Progress

                bar = Progress(transient=True, console=Console(stderr=True))
                task = bar.add_task(label, total=total, completed=count)
                bar.start()
            yield item
    finally:
        if bar is not None:
            bar.stop()
