"""How values, tables and results of verbs are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paperworks.cli import output

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        ("20", "x", "20x"),
        ("1.31", "% points", "1.31% points"),
        ("1.80", "FID", "1.80 FID"),
        ("-", "points", "-"),
        ("12", "-", "12"),
    ],
)
def test_values_are_shown_with_their_unit(value: str, unit: str, text: str) -> None:
    assert output.with_unit(value, unit) == text


def test_the_range_over_seeds_is_shown_when_there_are_several() -> None:
    assert output.seeds(0.123456, [], "-") == "0.1235"
    assert output.seeds(2.0, [2.0], "x") == "2x"
    assert output.seeds(2.0, [2.5, 1.5], "x") == "2x (1.5 to 2.5)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (1234567, "1,234,567"),
        (5000.0, "5,000"),
        (0.000123456, "0.0001235"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ([1, 2.5], "1, 2.5"),
        (Path("a/b"), "a/b"),
    ],
)
def test_cells(value: Any, text: str) -> None:
    assert output.shown(value) == text


def test_brackets_in_a_table_are_text(capsys: Captured) -> None:
    output.table({"a": "a"}, [{"a": "[bold]not markup[/bold]"}])
    assert "[bold]not markup[/bold]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Path("runs/a.png"), "runs/a.png"),
        ([Path("a.png"), Path("b.png")], "a.png\nb.png"),
        ({"accuracy": 0.5}, "0.5"),
        ([{"name": "conv1", "kept": 0.25}, {"name": "conv2", "kept": 1.0}], "conv2"),
        ("done", "done"),
    ],
)
def test_what_a_verb_returned_is_printed_for_people_and_for_programs(value: Any, text: str, capsys: Captured) -> None:
    output.result(value, in_json=False)
    assert text in capsys.readouterr().out
    output.result(value, in_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(value, default=str))


def test_nothing_is_printed_for_a_verb_that_returned_nothing(capsys: Captured) -> None:
    output.result(None, in_json=False)
    assert capsys.readouterr().out == ""
