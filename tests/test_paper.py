"""The vocabulary: runs that resume, claims whose verdict is computed, papers that register their parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.paper import (
    Bench,
    Card,
    ClaimText,
    Measured,
    Paper,
    Recipe,
    Run,
    Stage,
    at_least,
    at_most,
    equals,
    next_free,
    verdict,
    versions,
    write_json,
)


@dataclass(frozen=True)
class Config:
    data: str = "default"
    dim: int = 8


def make_run(folder: Path, config: Config | None = None, **changes: Any) -> Run:
    given = {"slug": "fake", "recipe": "laptop", "arguments": {"minutes": 1.0}, "command": "paperworks run fake"}
    return Run.open(folder, **{**given, **changes}, config=config or Config())


def silent(line: str) -> None:
    pass


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_carries_out_its_stages_in_order_and_keeps_what_they_return(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    said: list[str] = []
    first = Stage("first", lambda config, run: {"dim": config.dim, "where": run.stage_folder("first")})
    second = Stage("second", lambda config, run: {"twice": 2 * run.result("first")["dim"]})
    run.execute(Recipe(Config(dim=5), [first, second, Stage("third", lambda config, run: None)]), say=said.append)

    again = Run.load(tmp_path / "run")
    assert again.finished and again.slug == "fake"
    assert again.result("first") == {"dim": 5, "where": str(tmp_path / "run" / "first")}
    assert again.result("second") == {"twice": 10}
    assert again.result("third") == {}
    assert said == ["[1/3] first", "[2/3] second", "[3/3] third"]
    assert list(again.seconds) == ["first", "second", "third"]
    assert again.record["command"] == "paperworks run fake" and again.record["versions"]["python"]


def test_after_an_exception_the_run_goes_on_with_the_stage_that_failed(tmp_path: Path) -> None:
    calls = []

    def second(config: Config, run: Run) -> None:
        calls.append("second")
        if len(calls) == 2:
            raise RuntimeError("out of luck")

    recipe = Recipe(Config(), [Stage("first", lambda config, run: calls.append("first")), Stage("second", second)])
    run = make_run(tmp_path / "run")
    with pytest.raises(RuntimeError, match="out of luck"):
        run.execute(recipe, say=silent)
    assert not Run.load(tmp_path / "run").finished
    with pytest.raises(InputError, match=r"stage 'second' .* has not finished"):
        run.result("second")

    said: list[str] = []
    resumed = make_run(tmp_path / "run")
    resumed.execute(recipe, say=said.append)
    assert calls == ["first", "second", "second"]
    assert said == ["[1/2] first: already done", "[2/2] second"]
    assert resumed.finished and resumed.record["sittings"] == 2


def test_a_killed_process_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
from paperworks.paper import Recipe, Run, Stage
@dataclass(frozen=True)
class Config:
    dim: int = 8
def second(config, run):
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"dim": run.result("first")["dim"] + 1}
run = Run.open(Path(sys.argv[1]), slug="fake", recipe="laptop", arguments={}, config=Config(), command="")
run.execute(Recipe(Config(), [Stage("first", lambda config, run: {"dim": config.dim}), Stage("second", second)]))
"""
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    assert subprocess.run([*words, "kill"], capture_output=True).returncode == -9
    done = subprocess.run([*words, "live"], capture_output=True, text=True, check=True)
    assert "first: already done" in done.stdout
    assert Run.load(tmp_path / "run").result("second") == {"dim": 9}


def test_opening_a_run_of_another_configuration_names_the_first_field_and_the_remedies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = make_run(folder)
    (run.stage_folder("train") / "weights").write_text("trained")
    with pytest.raises(InputError, match=r"another dim \(8, now 9\).*--out.*--fresh to move on to .*run-2"):
        make_run(folder, Config(dim=9))
    with pytest.raises(InputError, match=r'another recipe \("laptop", now "paper"\)'):
        make_run(folder, recipe="paper")
    with pytest.raises(InputError, match=r'another slug \("fake", now "other"\)'):
        make_run(folder, slug="other")
    with pytest.raises(InputError, match=r"another arguments.minutes \(1.0, now 2.0\)"):
        make_run(folder, arguments={"minutes": 2.0})
    assert make_run(folder, command="another spelling").record["command"] == "paperworks run fake"


def test_a_run_that_stopped_before_it_wrote_anything_gives_way(tmp_path: Path) -> None:
    make_run(tmp_path / "run", Config(data="mistyped")).stage_folder("train")
    assert make_run(tmp_path / "run", Config(data="right")).record["config"]["data"] == "right"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds other files but no run"):
        make_run(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        make_run(tmp_path / "thesis.tex")
    with pytest.raises(InputError, match="cannot hold a run"):
        make_run(tmp_path / "thesis.tex" / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"slug": "fake"}'])
def test_a_damaged_record_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match="is not the record of a run"):
        Run.load(tmp_path)


def test_what_is_not_a_run_is_one_clear_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"is not a run: it has no run\.json"):
            Run.load(folder)


def test_the_next_free_folder_leaves_the_others_alone(tmp_path: Path) -> None:
    assert next_free(tmp_path / "var") == tmp_path / "var"
    (tmp_path / "var").mkdir()
    assert next_free(tmp_path / "var") == tmp_path / "var-2"
    (tmp_path / "var-2").mkdir()
    assert next_free(tmp_path / "var") == tmp_path / "var-3"


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    run = make_run(tmp_path / "run")

    def again(config: Config, run: Run) -> None:
        make_run(tmp_path / "run").execute(Recipe(config, []), say=silent)

    with pytest.raises(InputError, match="another command is at work"):
        run.execute(Recipe(Config(), [Stage("again", again)]), say=silent)
    run.execute(Recipe(Config(), []), say=silent)  # the lock is gone with the failed attempt


def test_only_the_first_process_of_several_writes_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = make_run(tmp_path / "run")
    run.execute(Recipe(Config(), [Stage("first", lambda config, run: {"dim": 8})]), say=silent)
    assert run.result("first") == {"dim": 8}
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_gives_its_configuration_back(tmp_path: Path) -> None:
    make_run(tmp_path / "run", Config("photos", 3))
    assert Run.load(tmp_path / "run").config(Config) == Config("photos", 3)


def test_json_is_written_aside_first(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_versions_are_named_without_importing_anything() -> None:
    assert {"python", "torch"} <= set(versions())


# --- claims -----------------------------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers, min_size=1), numbers)
def test_a_threshold_must_be_met_by_every_seed(values: list[float], threshold: float) -> None:
    measured = Measured(sum(values) / len(values), scale="toy", per_seed=values)
    assert at_least(threshold)(measured) == (min(values) >= threshold)
    assert at_most(threshold)(measured) == (max(values) <= threshold)
    assert measured.spread == (min(values), max(values))


@given(numbers, st.floats(1e-6, 0.5))
def test_equality_is_exact_unless_a_tolerance_is_given(value: float, relative: float) -> None:
    assert equals(value)(Measured(value, scale="any"))
    assert not equals(value)(Measured(value + 1, scale="any"))
    assert equals(100.0, relative=relative)(Measured(100 * (1 - 0.9 * relative), scale="any"))
    assert not equals(100.0, relative=relative)(Measured(100 * (1 + relative) + 1e-6, scale="any"))
    assert equals(value, absolute=0.5)(Measured(value - 0.49, scale="any"))


@pytest.mark.parametrize("rule", [at_least(-1e9), at_most(1e9), equals(0.0, absolute=1e9)])
def test_what_is_not_a_number_never_holds(rule: Callable[[Measured], bool]) -> None:
    assert not rule(Measured(float("nan"), scale="any"))
    assert not rule(Measured(1.0, scale="any", per_seed=[1.0, float("nan")]))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("exact", 10.0, "holds"),
        ("exact", 9.0, "does not hold"),
        ("capability", 10.0, "holds"),
        ("direction", 10.0, "direction holds"),
        ("direction", 9.0, "direction does not hold"),
        ("cluster", 10.0, "direction holds"),
        ("cluster", 9.0, "direction does not hold"),
    ],
)
def test_the_verdict_is_computed_from_the_rule_and_the_kind(kind: Any, value: float, expected: str) -> None:
    paper = Paper(Card("fake", "Fake", 2020, "2001.00001", "generation", "", "", (ClaimText("c1", "Is ten", "10", "x", kind),)))

    @paper.claim("c1", rule=at_least(10.0), says="at least 10x")
    def measure(bench: Bench) -> Measured:
        return Measured(value, scale="any")

    claim = paper.claims["c1"]
    assert verdict(claim, claim.measure(Bench(Path("unused")))) == expected


# --- papers -----------------------------------------------------------------------------------------------------------


def test_a_claim_must_be_on_the_card_or_bring_its_own_statement() -> None:
    paper = Paper(Card("fake", "Fake", 2020, "2001.00001", "generation", "", ""))
    with pytest.raises(KeyError, match="no claim 'c1'"):
        paper.claim("c1", rule=at_least(1.0), says="")
    paper.claim("own", rule=at_least(1.0), says="", statement="Our own", kind="capability")(lambda bench: Measured(1.0, "any"))
    assert paper.claims["own"].text == ClaimText("own", "Our own", "-", "-", "capability")


def test_a_recipe_is_built_from_its_arguments_and_then_overridden() -> None:
    paper = Paper(Card("fake", "Fake", 2020, "2001.00001", "generation", "", ""))

    @paper.recipe("laptop")
    def laptop(data: str = "default", *, dim: int = 8) -> Recipe:
        return Recipe(Config(data, dim), [])

    assert paper.build_recipe("laptop", {"dim": 3}).config == Config(dim=3)
    assert paper.build_recipe("laptop", {"dim": 3}, ["dim=4", "data=photos"]).config == Config("photos", 4)
    with pytest.raises(InputError, match="no recipe 'lapto'; did you mean 'laptop'"):
        paper.build_recipe("lapto", {})


def test_a_value_may_have_a_unit_of_its_own():
    assert Measured(0.7, "any").unit is None and Measured(0.7, "any", unit="x error").unit == "x error"
