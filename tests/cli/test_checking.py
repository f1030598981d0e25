"""check: claims are measured one by one, stored at once, and one that fails does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paperworks.cli import main
from paperworks.paper import Bench, Claim, Measured, Paper
from paperworks.reporting import results

Captured = pytest.CaptureFixture[str]


def stored() -> dict[str, Any]:
    """What is in results/, by claim."""
    return results.load("fake").get("claims", {})


def test_check_prints_the_paper_beside_what_was_found(fake: Paper, capsys: Captured) -> None:
    assert main(["check", "fake", "--only", "c1", "c2"]) == 0
    out = capsys.readouterr().out
    assert "12 parameters" in out and "20x" in out and "5x (4 to 6)" in out
    assert "holds" in out and "direction does not hold" in out
    assert "stored in results/" in out


def test_a_claim_that_fails_leaves_the_others_measured(fake: Paper, capsys: Captured) -> None:
    assert main(["check", "fake"]) == 1
    out, err = capsys.readouterr()
    assert "failed: RuntimeError: it broke" in out and "Traceback" in err
    assert set(stored()) == {"c1", "c2"}


def test_claims_are_stored_with_the_command_that_measures_them(fake: Paper) -> None:
    main(["check", "fake", "--only", "c2", "--seeds", "7", "8"])
    record = stored()["c2"]
    assert record["command"] == "paperworks check fake --only c2 --seeds 7 8"
    assert record["per_seed"] == [11.0, 12.0] and record["seeds"] == [7, 8]
    assert record["verdict"] == "direction holds" and record["rule"] == "at least 5x on every seed"


def test_each_claim_is_stored_before_the_next_begins(fake: Paper, capsys: Captured) -> None:
    def interrupted(bench: Bench) -> Measured:
        assert set(stored()) == {"c1"}
        raise KeyboardInterrupt

    fake.claims["c2"] = Claim(fake.claims["c2"].text, interrupted, fake.claims["c2"].rule, "")
    assert main(["check", "fake"]) == 130
    err = capsys.readouterr().err
    assert "1 of 3 claims measured; to go on: paperworks check fake --only c2 c3" in err


def test_other_data_have_their_own_folder_and_are_not_stored(fake: Paper, capsys: Captured) -> None:
    folders = []

    def measure(bench: Bench) -> Measured:
        folders.append(bench.folder)
        return Measured(12.0, scale=bench.data)

    fake.claims["c1"] = Claim(fake.claims["c1"].text, measure, fake.claims["c1"].rule, "")
    assert main(["check", "fake", "--only", "c1", "--data", "../my photos"]) == 0
    assert "not stored" in capsys.readouterr().out
    assert not stored()
    assert main(["check", "fake", "--only", "c1"]) == 0
    assert folders == [Path("runs/check/fake-my-photos"), Path("runs/check/fake")]
    assert stored()["c1"]["scale"] == "default"


def test_named_data_are_stored_beside_the_default_data(fake: Paper, capsys: Captured) -> None:
    assert main(["check", "fake", "--only", "c2", "--data", "cifar10"]) == 0
    assert "on the default data first" in capsys.readouterr().out and not stored()
    main(["check", "fake", "--only", "c2"])
    assert main(["check", "fake", "--only", "c2", "--data", "cifar10", "--seeds", "7", "8"]) == 0
    assert "beside those of the default data" in capsys.readouterr().out
    record = stored()["c2"]
    beside = record[results.ELSEWHERE]["cifar10"]
    assert record["per_seed"] == [4.0, 5.0, 6.0] and record["verdict"] == "direction does not hold"
    assert beside["per_seed"] == [11.0, 12.0] and beside["verdict"] == "direction holds"
    assert beside["command"] == "paperworks check fake --only c2 --seeds 7 8 --data cifar10"
    main(["check", "fake", "--only", "c2"])
    assert stored()["c2"][results.ELSEWHERE]["cifar10"] == beside
    row = next(line for line in results.render({"fake": fake.card}).splitlines() if line.startswith("| **c2**"))
    assert "cifar10: 11.5x (11 to 12, 2 seeds)" in row and "direction does not hold; cifar10: direction holds" in row


def test_json_goes_alone_to_standard_output(fake: Paper, capsys: Captured) -> None:
    assert main(["check", "fake", "--json", "--only", "c2"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert row["value"] == 5.0 and row["per_seed"] == [4.0, 5.0, 6.0] and row["verdict"] == "direction does not hold"
    assert "[1/1] c2" in err
