"""list, show and status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paperworks import papers
from paperworks.cli import main
from paperworks.paper import Paper

Captured = pytest.CaptureFixture[str]


def listed(capsys: Captured, *flags: str) -> list[dict[str, object]]:
    assert main(["list", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_shows_all_papers_with_their_state(capsys: Captured) -> None:
    rows = listed(capsys)
    assert len(rows) == 88
    for row in rows:
        assert row["built"] == papers.is_built(str(row["slug"]))
        assert (row["state"] == "planned") == (not row["built"])
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "88 papers" in out and all(slug in out for slug in papers.cards())


def test_list_selects_by_family_and_by_words(capsys: Captured) -> None:
    assert {row["family"] for row in listed(capsys, "--family", "search")} == {"search"}
    assert {row["slug"] for row in listed(capsys, "--find", "DYNAMIC programming knapsack")} == {"layer-adaptive-pruning"}
    assert listed(capsys, "--find", "no paper says this") == []


def test_show_of_a_planned_paper_prints_its_card(capsys: Captured) -> None:
    planned = next(card for card in papers.cards().values() if not papers.is_built(card.slug) and card.official)
    assert main(["show", planned.slug]) == 0
    out = capsys.readouterr().out
    assert planned.title in out and f"arxiv.org/abs/{planned.arxiv}" in out and f"github.com/{planned.official}" in out
    assert f"{planned.slug} is planned" in out
    assert planned.claims[0].statement[:40] in out and "not measured yet" in out


def test_show_of_a_built_paper_lists_variants_recipes_verbs_and_claims(fake: Paper, capsys: Captured) -> None:
    assert main(["show", "fake"]) == 0
    out = capsys.readouterr().out
    assert "A Fake Paper [with brackets]" in out
    assert "fake_tiny" in out and "the only one" in out
    assert "--minutes 1.0" in out and "--verbose" in out and "Two stages in no time." in out
    assert "--count 4" in out and "Makes pictures." in out
    assert "20x" in out and "1.80 FID" in out

    assert main(["show", "fake", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["built"] and [row["name"] for row in shown["recipes"]] == ["laptop", "paper"]
    assert [row["id"] for row in shown["claims"]] == ["c1", "c2", "c3", "c4"]


def test_after_check_the_verdicts_are_shown(fake: Paper, capsys: Captured) -> None:
    assert main(["check", "fake", "--only", "c1", "c2"]) == 0
    capsys.readouterr()
    assert main(["show", "fake", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    verdicts = {row["id"]: (row["here"], row["verdict"]) for row in shown["claims"]}
    assert verdicts["c1"] == ("12 parameters", "holds")
    assert verdicts["c2"] == ("5x (4 to 6)", "direction does not hold")
    assert verdicts["c3"] == (None, "not measured yet")
    assert shown["state"] == "2 of 4 measured, 1 hold"


def test_status_is_computed_from_code_and_results(fake: Paper, tmp_path: Path, capsys: Captured) -> None:
    main(["check", "fake", "--only", "c1", "c2"])
    main(["run", "fake"])
    write(tmp_path / "results/parity.json", {"fake": {"tiny": {"passed": True, "worst": 1e-6}, "wide": {"passed": False}}})
    rows = [{"ratio": {"median": 1.25}}, {"ratio": {"median": 3.0}}]
    write(tmp_path / "results/benchmarks/fake.json", {"rows": rows})
    capsys.readouterr()

    assert main(["status", "--json"]) == 0
    row = {row["slug"]: row for row in json.loads(capsys.readouterr().out)}["fake"]
    assert row["built"] and (row["claims"], row["measured"], row["hold"]) == (4, 2, 1)
    assert row["parity"] == [1, 2] and row["speed"] == [1.25, 3.0] and row["run_minutes"] >= 0

    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2" in out and "2 of 4" in out and "1.25x to 3.00x" in out and "papers built" in out


def test_status_of_the_project_covers_every_paper(capsys: Captured) -> None:
    assert main(["status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 88
    assert all(row["hold"] <= row["measured"] <= row["claims"] for row in rows)


def test_results_writes_the_page_beside_the_folder(fake: Paper, tmp_path: Path, capsys: Captured) -> None:
    main(["check", "fake", "--only", "c2"])
    assert main(["results"]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    assert (
        "A Fake Paper" in page and "direction does not hold" in page and str(tmp_path / "RESULTS.md") in capsys.readouterr().out
    )


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
