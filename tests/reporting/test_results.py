"""Stored claims and the page made from them."""

import json

import pytest

from paperworks.paper import Card, Claim, ClaimText, Measured, at_least, verdict
from paperworks.reporting import results

CARD = Card(
    "tiny", "A tiny paper", 2024, "2401.00001", "backbone", "", "Summary.",
    (ClaimText("c1", "Is fast | very", "5", "x", "direction"), ClaimText("c2", "Is large", "-", "-", "cluster")),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERWORKS_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def store(values, threshold=2.0, id="c1"):
    text = next((claim for claim in CARD.claims if claim.id == id), ClaimText(id, "Further", "4", "n", "exact"))
    claim = Claim(text, lambda bench: Measured(0, "any"), at_least(threshold), f"at least {threshold}")
    found = Measured(sorted(values)[1], "laptop", "ours against theirs", values, range(len(values)))
    results.store_claim("tiny", claim, found, verdict(claim, found), command="paperworks check tiny", seconds=1.234)


def test_the_page_shows_all_claims_with_spread_and_computed_verdict(folder):
    store([3.0, 2.5, 4.0])
    store([1.0, 2.5, 4.0], id="extra")
    text = results.render({"tiny": CARD, "other": Card("other", "Other", 2020, "1", "dense", "", "S.", ())})
    assert "| **c1** Is fast \\| very | direction | 5 x | 3 (2.5 to 4, 3 seeds) | direction holds |" in text
    assert "| **c2** Is large | cluster | - | - | not measured yet | |" in text
    assert "| **extra** Further | exact | 4 n | 2.5 (1 to 4, 3 seeds) | does not hold |" in text
    assert "other (0)" in text and "`paperworks check tiny`" in text


def test_storing_one_claim_keeps_the_others(folder):
    store([3.0, 2.5, 4.0])
    store([9.0, 9.0, 9.0], id="c2")
    store([1.0, 1.0, 1.0])
    stored = json.loads((folder / "tiny.json").read_text())["claims"]
    assert stored["c1"]["verdict"] == "direction does not hold" and stored["c2"]["verdict"] == "direction holds"
    assert stored["c1"]["per_seed"] == [1.0, 1.0, 1.0] and stored["c1"]["versions"]["python"]


def test_nothing_stored_is_nothing(folder):
    assert results.load("tiny") == {} and results.load_benchmarks() == {} and results.load_parity() == {}
    assert "not measured yet" in results.render({"tiny": CARD}, built=lambda slug: True)
