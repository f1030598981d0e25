"""What results/ says about a paper, and what the verbs add to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paperworks import papers
from paperworks.paper import Card, Claim, Measured, Run, verdict
from paperworks.reporting import results


@dataclass(frozen=True)
class State:
    """How far a paper is, computed from its code and from results/."""

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
    found = measured(card.slug)
    hold = sum(record["verdict"] in ("holds", "direction holds") for record in found.values())
    return State(papers.is_built(card.slug), len(card.claims), len(found), hold)


def measured(slug: str) -> dict[str, Any]:
    """The stored record of each claim that was measured, by id."""
    if not results.results_folder():
        return {}
    return results.load(slug).get("claims", {})


def store_claim(slug: str, claim: Claim, found: Measured, *, command: str, seconds: float) -> None:
    if results.results_folder():
        results.store_claim(slug, claim, found, verdict(claim, found), command=command, seconds=seconds)


def store_run(run: Run) -> None:
    if results.results_folder():
        results.store_run(run)
