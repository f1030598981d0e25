"""Ctrl-C and a scheduler's SIGTERM: finish the step, save, and go."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within the block the first SIGINT or SIGTERM only sets `wanted`; a second Ctrl-C interrupts at once."""

    def __init__(self, say: Callable[[str], None]):
        self.wanted: int | None = None
        """the signal that came"""
        self._say = say
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker that was forked from here: the main process decides
        if self.wanted == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = self.wanted or number
        self._say("stopping after this step (Ctrl-C again: at once, without saving)")

    def leave(self) -> None:
        """After saving: what the signal would have done."""
        if self.wanted == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
