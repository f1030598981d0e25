"""What a person sees while training runs: a bar on a terminal, a line every tenth of the way elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

NOT_LOSSES = ("step", "seconds", "lr", "grad_norm", "images_per_second", "skipped")
BAR = 16
"""width of the bar in characters"""


class TrainingProgress:
    """Shows label, step, losses, images per second and time left. Silent when `shown` is False or the label is empty."""

    def __init__(self, label: str, total: int, start: int, shown: bool = True, console: Console | None = None):
        self.console = console or Console()
        self.label, self.total, self.start = label, total, start
        self.shown = shown and bool(label)
        self._began = self._drawn = time.monotonic()
        self._losses = ""
        self._tenth = 10 * start // total
        self._bar: Progress | None = None
        if self.shown and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=BAR),
                TextColumn("{task.fields[text]}", markup=False),
                console=self.console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(escape(label), total=total, completed=start, text="")

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.update(self._task, refresh=True)
            self._bar.stop()

    def say(self, line: str) -> None:
        if self.shown:
            self.console.print(f"{self.label}: {line}", markup=False, highlight=False, soft_wrap=True)

    def advance(self, done: int) -> None:
        """After `done` steps; cheap enough for every step."""
        if not self.shown:
            return
        if self._bar:
            now = time.monotonic()
            if now - self._drawn > 0.2 or done == self.total:
                self._drawn = now
                self._bar.update(self._task, completed=done, text=self._text(done)[: self._room])
        elif 10 * done // self.total > self._tenth:
            self._tenth = 10 * done // self.total
            self.say(self._text(done))

    def losses(self, row: Mapping[str, Any]) -> None:
        """The newest row of metrics."""
        shown = [f"{name} {v:.4g}" for name, v in row.items() if isinstance(v, float) and _is_loss(name)][:4]
        speed = row.get("images_per_second")
        self._losses = "  ".join([f"{speed:.0f} img/s" if speed else "", *shown]).strip()

    def _text(self, done: int) -> str:
        return f"{done}/{self.total}  {self._time_left(done)} left  {self._losses}".rstrip()

    @property
    def _room(self) -> int:
        """Characters beside label and bar; what does not fit is cut at the end."""
        return max(10, self.console.width - len(self.label) - BAR - 2)

    def _time_left(self, done: int) -> str:
        seconds = (time.monotonic() - self._began) / max(1, done - self.start) * (self.total - done)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes}:{seconds:02d}"


def _is_loss(name: str) -> bool:
    return name.split("/")[-1] not in NOT_LOSSES
