"""Flags come from functions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from paperworks.cli.flags import defaults, described, parse


def recipe(
    data: str = "default", *, minutes: float = 8.0, size: int | None = None, norm: bool = True, fast: bool = False
) -> None:
    """Trains it.

    Longer text.

    Args:
        data: your images
    """


def verb(run: object, picture: Path, *, mode: Literal["a", "b"] = "a", layers: tuple[int, ...] = (1, 2)) -> None:
    """Uses it."""


def test_types_defaults_and_choices_are_those_of_the_parameters() -> None:
    assert parse("p", [], recipe) == [{"data": "default", "minutes": 8.0, "size": None, "norm": True, "fast": False}]
    words = ["--data", "my photos", "--minutes", "2", "--size", "32", "--no-norm", "--fast"]
    assert parse("p", words, recipe) == [{"data": "my photos", "minutes": 2.0, "size": 32, "norm": False, "fast": True}]
    (found,) = parse("p", ["--picture", "a.png", "--mode", "b", "--layers", "3", "4"], verb, skip=1)
    assert found == {"picture": Path("a.png"), "mode": "b", "layers": (3, 4)}


def test_several_functions_share_one_line_and_get_their_own_arguments() -> None:
    first, second = parse("p", ["--mode", "b", "--picture", "x", "--data", "d"], recipe, verb, skip=1)
    assert first["data"] == "d" and second == {"picture": Path("x"), "mode": "b", "layers": (1, 2)}


def test_functions_of_the_same_name_go_together() -> None:
    def recipe(other: int = 1) -> None: ...

    assert parse("p", ["--other", "2", "--fast"], globals()["recipe"], recipe)[1] == {"other": 2}


def test_a_flag_defined_twice_is_a_mistake_in_the_code() -> None:
    with pytest.raises(TypeError, match="--data is defined by both of recipe, recipe"):
        parse("p", [], recipe, recipe)


@pytest.mark.parametrize("words", [["--minutes", "soon"], ["--nope"], ["--mode", "c"]])
def test_usage_errors_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse("p", [*words, "--picture", "x"], recipe, verb, skip=1)
    assert leave.value.code == 2


def test_help_names_every_flag_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse("paperworks run p", ["--help"], recipe)
    out = capsys.readouterr().out
    assert leave.value.code == 0 and "usage: paperworks run p" in out and "your images" in out and "--no-norm" in out


def test_flags_are_described_in_one_line() -> None:
    assert described(recipe) == ("--data default  --minutes 8.0  --size  --no-norm  --fast", "Trains it.")
    assert described(verb, skip=1) == ("--picture (required)  --mode a  --layers 1 2", "Uses it.")
    assert defaults(recipe)["minutes"] == 8.0
