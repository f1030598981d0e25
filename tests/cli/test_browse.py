"""list, show and status."""

from __future__ import annotations

import json

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


def test_status_counts_what_is_built_and_measured(capsys: Captured) -> None:
    assert main(["status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 88
    assert all(row["hold"] <= row["measured"] <= row["claims"] for row in rows)
    assert main(["status"]) == 0
    assert "claims measured" in capsys.readouterr().out
