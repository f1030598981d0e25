"""How far a paper is: computed from its code and from what is stored in results/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paperworks import papers
from paperworks.paper import Card
from paperworks.reporting import results


@dataclass(frozen=True)
class State:
    """Nothing here is typed in by anybody."""

    built: bool
    claims: int
    measured: int
    hold: int

    def __str__(self) -> str:
        if not self.built:
            return "planned"
        if not self.measured:
            return "built"
        return f"{self.measured} of {self.claims} measured, {self.hold} hold"


def state(card: Card) -> State:
    """Counts the claims of the card; further ones that the code measures do not count."""
    found = measured(card.slug)
    own = [found[text.id] for text in card.claims if text.id in found]
    hold = sum(record["verdict"] in results.HELD for record in own)
    return State(papers.is_built(card.slug), len(card.claims), len(own), hold)


def measured(slug: str) -> dict[str, Any]:
    """The stored record of each claim that was measured, by id."""
    return results.load(slug).get("claims", {})


def refresh_results_md() -> None:
    """After something was stored; nothing outside a checkout, which has no such page."""
    if results.results_md().is_file():
        results.write_results_md(papers.cards(), built=papers.is_built)


def run_minutes(slug: str) -> float | None:
    """What the default recipe took, when its time is stored."""
    run = results.load(slug).get("run")
    return sum(run["seconds"].values()) / 60 if run else None


def parity(slug: str, stored: dict[str, Any]) -> tuple[int, int] | None:
    """(cases passed, cases replayed) out of the stored outcomes of all papers."""
    cases = stored.get(slug)
    return (sum(bool(case["passed"]) for case in cases.values()), len(cases)) if cases else None


def speed(slug: str, stored: dict[str, Any]) -> tuple[float, float] | None:
    """Smallest and largest median ratio of the benchmark that bears the paper's name."""
    rows = stored.get(slug.replace("-", "_"), {}).get("rows")
    ratios = [row["ratio"]["median"] for row in rows or []]
    return (min(ratios), max(ratios)) if ratios else None
