"""RESULTS.md must be what results/ and the cards say."""

from pathlib import Path

from paperworks import papers
from paperworks.reporting import results

ROOT = Path(__file__).parents[1]


def test_results_md_is_not_stale(monkeypatch):
    monkeypatch.delenv("PAPERWORKS_RESULTS", raising=False)
    assert results.results_folder() == ROOT / "results"
    fresh = results.render(papers.cards(), papers.is_built)
    assert (ROOT / "RESULTS.md").read_text() == fresh, "RESULTS.md is stale: run `paperworks results`"
