"""The example in docs/train.md is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paperworks.training import Fitted, read_metrics

PAGE = Path(__file__).parents[2] / "docs/train.md"


def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example
    names: dict[str, object] = {"__name__": "example"}
    exec(example[1], names)
    fitted = names["fitted"]
    assert isinstance(fitted, Fitted) and fitted.step == 400
    assert read_metrics(tmp_path / "runs/digits")[-1]["eval/accuracy"] > 0.9
