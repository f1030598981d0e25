"""The cards of the 88 papers: complete, consistent, and readable without loading anything heavy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from paperworks import papers
from paperworks.errors import InputError
from paperworks.paper import Card

FAMILIES = {
    "backbone",
    "compression",
    "curation",
    "dense",
    "deployment",
    "evaluation",
    "generation",
    "multimodal",
    "pretraining",
    "restoration",
    "search",
}
KINDS = {"exact", "capability", "direction", "cluster"}
CARDS = papers.cards()


def test_there_are_88_cards_with_distinct_papers() -> None:
    assert len(CARDS) == 88
    assert len({card.arxiv for card in CARDS.values()}) == 88
    assert len({card.title for card in CARDS.values()}) == 88
    assert {card.family for card in CARDS.values()} == FAMILIES


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_every_field_of_a_card_is_filled(card: Card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.slug)
    assert card.title.strip() == card.title and len(card.title) > 10
    assert re.fullmatch(r"\d{4}\.\d{5}", card.arxiv)
    assert abs(card.year - (2000 + int(card.arxiv[:2]))) <= 1
    assert card.official == "" or re.fullmatch(r"[\w.-]+/[\w.-]+", card.official)
    assert 150 <= len(card.summary) <= 700
    assert card.summary.endswith(".") and card.summary == " ".join(card.summary.split())


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_claims_are_complete_and_their_ids_distinct(card: Card) -> None:
    assert card.claims
    ids = [claim.id for claim in card.claims]
    assert len(set(ids)) == len(ids)
    for claim in card.claims:
        assert re.fullmatch(r"c\d+", claim.id)
        assert claim.kind in KINDS
        assert len(claim.statement) > 10 and claim.paper_value and claim.unit
        assert all(text == text.strip() for text in (claim.statement, claim.paper_value, claim.unit))


def test_cards_have_no_other_fields() -> None:
    for path in (papers.FOLDER / "cards").glob("*.toml"):
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        assert set(fields) == {"title", "year", "arxiv", "family", "official", "summary", "claims"}, path.name


def test_claims_are_those_of_the_shared_table(shared: Path) -> None:
    lines = (shared / "claims.tsv").read_text(encoding="utf-8").splitlines()[1:]
    wanted = {tuple(cell.strip() for cell in line.split("\t")[:6]) for line in lines}
    held = {(s, c.id, c.statement, c.paper_value, c.unit, c.kind) for s, card in CARDS.items() for c in card.claims}
    assert held == wanted


def test_papers_and_families_are_those_of_the_shared_table(shared: Path) -> None:
    rows = [line.split("\t") for line in (shared / "papers.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert {slug: card.family for slug, card in CARDS.items()} == {slug: family for _, slug, family, _ in rows}


def test_an_unknown_slug_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'titok'"):
        papers.card("titoc")
    with pytest.raises(InputError, match="paperworks list"):
        papers.card("qqqqqqqqqq")


def test_a_paper_without_code_is_planned() -> None:
    planned = next(slug for slug in CARDS if not papers.is_built(slug))
    with pytest.raises(InputError, match=rf"{planned} .* is planned"):
        papers.load(planned)
