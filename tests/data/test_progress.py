import sys

import pytest

from paperworks.data import progress
from paperworks.data.progress import watched


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_items_pass_unchanged_and_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(watched(iter("abc"), 3, "work")) == ["a", "b", "c"] and terminal.text == ""


def test_long_work_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    clock = iter(range(1000))
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(watched(range(5), 5, "reading pictures")) == list(range(5))
    assert "reading pictures" in terminal.text
