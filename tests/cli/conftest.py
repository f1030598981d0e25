"""The fake paper stands beside the real cards, in an empty working directory and with a results folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from paperworks import papers
from paperworks.paper import Card, Paper
from tests.cli.fake import CARD, make_paper


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Paper:
    paper = make_paper()
    cards, card, load, is_built = papers.cards(), papers.card, papers.load, papers.is_built

    def known(slug: str) -> Card:
        return CARD if slug == "fake" else card(slug)

    monkeypatch.setattr(papers, "cards", lambda: {**cards, "fake": CARD})
    monkeypatch.setattr(papers, "card", known)
    monkeypatch.setattr(papers, "is_built", lambda slug: slug == "fake" or is_built(slug))
    monkeypatch.setattr(papers, "load", lambda slug: paper if slug == "fake" else load(slug))
    monkeypatch.setenv("PAPERWORKS_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return paper
