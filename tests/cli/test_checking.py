"""check: claims are measured one by one, stored at once, and one that fails does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paperworks.cli import main, records
from paperworks.cli.checking import here, with_unit
from paperworks.paper import Bench, Claim, Measured, Paper

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What went into results/, by claim."""
    kept: dict[str, dict[str, Any]] = {}

    def store(slug: str, claim: Claim, found: Measured, **more: Any) -> None:
        kept[claim.text.id] = {"slug": slug, "found": found, **more}

    monkeypatch.setattr(records, "store_claim", store)
    return kept


def test_check_prints_the_paper_beside_what_was_found(fake: Paper, stored: dict[str, Any], capsys: Captured) -> None:
    assert main(["check", "fake", "--only", "c1", "c2"]) == 0
    out = capsys.readouterr().out
    assert "12 parameters" in out and "20x" in out and "5x (4 to 6)" in out
    assert "holds" in out and "direction does not hold" in out
    assert "paperworks results" in out


def test_a_claim_that_fails_leaves_the_others_measured(fake: Paper, stored: dict[str, Any], capsys: Captured) -> None:
    assert main(["check", "fake"]) == 1
    out, err = capsys.readouterr()
    assert "failed: RuntimeError: it broke" in out and "Traceback" in err
    assert set(stored) == {"c1", "c2"}


def test_claims_are_stored_with_the_command_that_measures_them(fake: Paper, stored: dict[str, Any]) -> None:
    main(["check", "fake", "--only", "c2", "--seeds", "7", "8"])
    assert stored["c2"]["command"] == "paperworks check fake --only c2 --seeds 7 8"
    assert stored["c2"]["found"].per_seed == [11.0, 12.0]
    assert stored["c2"]["seconds"] >= 0


def test_each_claim_is_stored_before_the_next_begins(fake: Paper, stored: dict[str, Any], capsys: Captured) -> None:
    def interrupted(bench: Bench) -> Measured:
        assert set(stored) == {"c1"}
        raise KeyboardInterrupt

    fake.claims["c2"] = Claim(fake.claims["c2"].text, interrupted, fake.claims["c2"].rule, "")
    assert main(["check", "fake"]) == 130
    err = capsys.readouterr().err
    assert "1 of 3 claims measured; to go on: paperworks check fake --only c2 c3" in err


def test_other_data_have_their_own_folder_and_are_not_stored(fake: Paper, stored: dict[str, Any], capsys: Captured) -> None:
    folders = []

    def measure(bench: Bench) -> Measured:
        folders.append(bench.folder)
        return Measured(12.0, scale=bench.data)

    fake.claims["c1"] = Claim(fake.claims["c1"].text, measure, fake.claims["c1"].rule, "")
    assert main(["check", "fake", "--only", "c1", "--data", "../my photos"]) == 0
    assert "not stored" in capsys.readouterr().out
    assert main(["check", "fake", "--only", "c1"]) == 0
    assert folders == [Path("runs/check/fake-my-photos"), Path("runs/check/fake")]
    assert stored["c1"]["found"].scale == "default"


def test_json_goes_alone_to_standard_output(fake: Paper, stored: dict[str, Any], capsys: Captured) -> None:
    assert main(["check", "fake", "--json", "--only", "c2"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert row["value"] == 5.0 and row["per_seed"] == [4.0, 5.0, 6.0] and row["verdict"] == "direction does not hold"
    assert "[1/1] c2" in err


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        ("20", "x", "20x"),
        ("1.31", "% points", "1.31% points"),
        ("1.80", "FID", "1.80 FID"),
        ("-", "points", "-"),
        ("12", "-", "12"),
    ],
)
def test_values_are_shown_with_their_unit(value: str, unit: str, shown: str) -> None:
    assert with_unit(value, unit) == shown


def test_the_range_over_seeds_is_shown_when_there_are_several() -> None:
    assert here(Measured(0.123456, scale="any"), "-") == "0.1235"
    assert here(Measured(2.0, scale="any", per_seed=[2.0]), "x") == "2x"
    assert here(Measured(2.0, scale="any", per_seed=[1.5, 2.5]), "x") == "2x (1.5 to 2.5)"
