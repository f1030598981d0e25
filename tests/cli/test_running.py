"""run, and the verbs on runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paperworks.cli import main
from paperworks.paper import Paper, Run
from paperworks.reporting import results

Captured = pytest.CaptureFixture[str]


def test_a_run_ends_with_its_report_and_times(fake: Paper, capsys: Captured) -> None:
    assert main(["run", "fake"]) == 0
    out = capsys.readouterr().out
    assert "report: runs/fake/report.html" in out and "train" in out and "together" in out
    run = Run.load("runs/fake")
    assert run.finished and run.record["command"] == "paperworks run fake"
    assert run.record["arguments"] == {"data": "default", "minutes": 1.0, "verbose": False}
    assert set(results.load("fake")["run"]["seconds"]) == {"train", "report"}


def test_a_finished_run_is_not_run_again(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    capsys.readouterr()
    assert main(["run", "fake"]) == 0
    out = capsys.readouterr().out
    assert "runs/fake is finished" in out and "runs/fake/report.html" in out and "--fresh" in out


def test_an_interrupted_run_says_how_to_go_on_and_does(fake: Paper, capsys: Captured) -> None:
    words = ["run", "fake", "--minutes", "2", "--set", "model.dim=3", "model.kind=interrupted"]
    assert main(words) == 130
    assert "to go on: paperworks run fake --minutes 2 --set model.dim=3 model.kind=interrupted" in capsys.readouterr().err
    assert Path("runs/fake/train/weights.txt").read_text() == "3"
    assert main(words) == 130
    assert "train: already done" in capsys.readouterr().out
    assert not results.load("fake")


def test_the_time_of_a_changed_or_resumed_run_is_not_stored(fake: Paper) -> None:
    assert main(["run", "fake", "--set", "model.dim=3"]) == 0
    assert main(["run", "fake", "--minutes", "2", "--out", "slow"]) == 0
    run = Run.load("runs/fake")
    del run.record["stages"]["report"], run.record["finished"]
    run.save()
    assert main(["run", "fake", "--set", "model.dim=3"]) == 0
    assert not results.load("fake")


def test_another_configuration_needs_another_folder(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    assert main(["run", "fake", "--set", "model.dim=3"]) == 2
    err = capsys.readouterr().err
    assert "another model.dim (8, now 3)" in err and "--out" in err and "--fresh" in err
    assert main(["run", "fake", "--set", "model.dim=3", "--out", "elsewhere/mine"]) == 0
    assert main(["run", "fake", "--set", "model.dim=3", "--fresh"]) == 0
    dims = {
        folder: Run.load(folder).record["config"]["model"]["dim"] for folder in ("runs/fake", "elsewhere/mine", "runs/fake-2")
    }
    assert dims == {"runs/fake": 8, "elsewhere/mine": 3, "runs/fake-2": 3}


def test_after_fresh_the_way_to_go_on_names_the_folder(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    assert main(["run", "fake", "--fresh", "--set", "model.kind=interrupted"]) == 130
    assert "paperworks run fake --set model.kind=interrupted --out runs/fake-2" in capsys.readouterr().err


def test_other_recipes_have_their_own_folder_and_flags(fake: Paper, capsys: Captured) -> None:
    assert main(["run", "fake", "--recipe", "paper", "--depth", "4"]) == 0
    assert Run.load("runs/fake-paper").record["config"]["model"]["dim"] == 4
    assert main(["run", "fake", "--recipe=paper", "--minutes", "4"]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_flags_of_the_recipe_are_in_the_help(fake: Paper, capsys: Captured) -> None:
    assert main(["run", "fake", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--minutes FLOAT" in out and "how long it may take" in out and "--set" in out and "--fresh" in out


def test_a_wrong_source_can_be_corrected_without_ceremony(fake: Paper, capsys: Captured) -> None:
    assert main(["run", "fake", "--data", "typo"]) == 2
    assert capsys.readouterr().err == "paperworks: no folder called typo\n"
    assert main(["run", "fake", "--data", "right"]) == 0


# --- verbs on runs ----------------------------------------------------------------------------------------------------


def test_a_verb_gets_the_run_and_its_flags(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    capsys.readouterr()
    assert main(["sample", "runs/fake", "--count", "9", "--style", "wild"]) == 0
    assert capsys.readouterr().out == "sampling 9 wild\nruns/fake/samples.png\n"


def test_numbers_are_a_table_or_json(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    capsys.readouterr()
    assert main(["evaluate", "runs/fake"]) == 0
    assert "0.5" in capsys.readouterr().out
    assert main(["evaluate", "runs/fake", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"loss": 0.5, "images": 5000} and "evaluating" in err


def test_a_verb_the_paper_lacks_names_those_it_has(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    assert main(["export", "runs/fake"]) == 2
    assert "no verb 'export'; there are sample, evaluate" in capsys.readouterr().err


def test_a_verb_flag_outside_its_choices_is_a_usage_error(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    assert main(["sample", "runs/fake", "--style", "mild"]) == 2
    assert "wild" in capsys.readouterr().err


def test_the_name_of_a_paper_points_to_its_run(fake: Paper, capsys: Captured) -> None:
    main(["run", "fake"])
    assert main(["sample", "fake"]) == 2
    assert "its run is runs/fake" in capsys.readouterr().err
