"""`paperworks list`, `show`, `status` and `results`: what there is and how far it is. Nothing here needs torch, except the
parameter counts of a built paper's variants."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from paperworks import papers
from paperworks.cli import output, records
from paperworks.cli.flags import Slug, described
from paperworks.errors import InputError, nearest
from paperworks.paper import Card, Paper, Variant
from paperworks.reporting import results


def list_papers(*, family: str | None = None, find: str | None = None, json: bool = False) -> int:
    """The papers and how far each one is.

    Args:
        family: only this family, such as generation or search
        find: only papers whose title, summary or claims contain all of these words
        json: print JSON instead of a table
    """
    cards = list(papers.cards().values())
    families = sorted({card.family for card in cards})
    if family is not None and family not in families:
        raise InputError(f"no family {family!r}{nearest(family, families)}")
    chosen = [card for card in cards if family in (None, card.family) and _mentions(card, find)]
    if json:
        output.as_json([_plain(card) for card in chosen])
        return 0
    rows = [
        {"slug": card.slug, "year": str(card.year), "family": card.family, "state": records.state(card), "title": card.title}
        for card in chosen
    ]
    output.table({"slug": "paper", "year": "year", "family": "family", "state": "state", "title": "title"}, rows, cut="title")
    output.line(f"\n{len(chosen)} papers" if len(chosen) != 1 else "\n1 paper")
    return 0


def show(slug: Slug, *, json: bool = False) -> int:
    """One paper: its card, variants, recipes, verbs, and claims with their last verdicts.

    Args:
        slug: the paper
        json: print JSON instead of text
    """
    card = papers.card(slug)
    paper = papers.load(slug) if papers.is_built(slug) else None
    claims = _claims(card, paper)
    variants = _variants(paper) if paper else []
    recipes = _functions(paper.recipes) if paper else []
    verbs = _functions(paper.verbs, skip=1) if paper else []
    if json:
        output.as_json({**_plain(card), "variants": variants, "recipes": recipes, "verbs": verbs, "claims": claims})
        return 0
    output.line(card.title, style="bold")
    facts = [card.slug, card.family, str(card.year)]
    facts += [f"https://arxiv.org/abs/{card.arxiv}"] if card.arxiv else []
    facts += [f"https://github.com/{card.official}"] if card.official else ["no official code"]
    output.line("  ".join(facts))
    output.paragraph(f"\n{card.summary}\n")
    if paper is None:
        output.line(f"{slug} is planned: it has a card but no code yet\n")
    columns = {"name": "name", "parameters": "M parameters", "paper": "in the paper", "note": ""}
    _section("Variants", columns, variants)
    _section("Recipes", {"name": "name", "does": "does", "flags": "flags"}, recipes)
    _section("Verbs on a run", {"name": "name", "does": "does", "flags": "flags"}, verbs)
    columns = {"id": "", "kind": "kind", "statement": "claim", "paper": "paper", "here": "here", "verdict": "verdict"}
    _section("Claims", columns, claims)
    return 0


def status(*, json: bool = False) -> int:
    """All papers: code, parity with recorded reference outputs, time of the default run, claims, speed against a peer.

    Args:
        json: print JSON instead of a table
    """
    outcomes, benchmarks = results.load_parity(), results.load_benchmarks()
    rows = [_status(card, outcomes, benchmarks) for card in papers.cards().values()]
    if json:
        output.as_json(rows)
        return 0
    columns = {"slug": "paper", "built": "built", "parity": "parity", "run": "run", "measured": "measured", "hold": "hold"}
    output.table({**columns, "speed": "speed against a peer"}, [_status_cells(row) for row in rows])
    built = sum(row["built"] for row in rows)
    measured, claims = sum(row["measured"] for row in rows), sum(row["claims"] for row in rows)
    output.line(f"\n{built} of {len(rows)} papers built, {measured} of {claims} claims measured")
    return 0


def write_results() -> int:
    """Writes RESULTS.md anew from results/."""
    if not results.results_folder():
        raise InputError("there is no results folder: RESULTS.md is written in a checkout of the project")
    output.line(f"written: {results.write_results_md(papers.cards(), built=papers.is_built)}")
    return 0


# --- what the tables hold ---------------------------------------------------------------------------------------------


def _mentions(card: Card, find: str | None) -> bool:
    text = " ".join([card.slug, card.title, card.summary, *(claim.statement for claim in card.claims)]).lower()
    return all(word in text for word in (find or "").lower().split())


def _plain(card: Card) -> dict[str, Any]:
    state = records.state(card)
    return {
        "slug": card.slug,
        "title": card.title,
        "year": card.year,
        "arxiv": card.arxiv,
        "family": card.family,
        "official": card.official,
        "summary": card.summary,
        "state": str(state),
        "built": state.built,
        "claims": state.claims,
        "measured": state.measured,
        "hold": state.hold,
    }


def _status(card: Card, outcomes: dict[str, Any], benchmarks: dict[str, Any]) -> dict[str, Any]:
    return {
        "slug": card.slug,
        **asdict(records.state(card)),
        "parity": records.parity(card.slug, outcomes),
        "run_minutes": records.run_minutes(card.slug),
        "speed": records.speed(card.slug, benchmarks),
    }


def _status_cells(row: dict[str, Any]) -> dict[str, Any]:
    passed, minutes, ratios = row["parity"], row["run_minutes"], row["speed"]
    cells = {"slug": row["slug"], "built": "yes" if row["built"] else ""}
    cells["parity"] = f"{passed[0]} of {passed[1]}" if passed else ""
    cells["run"] = f"{minutes:.1f} min" if minutes is not None else ""
    cells["measured"] = f"{row['measured']} of {row['claims']}"
    cells["hold"] = str(row["hold"]) if row["measured"] else ""
    cells["speed"] = f"{ratios[0]:.2f}x to {ratios[1]:.2f}x" if ratios else ""
    return cells


def _variants(paper: Paper) -> list[dict[str, Any]]:
    return [
        {"name": name, "parameters": f"{_millions(variant):.2f}", "paper": variant.parameters, "note": variant.note}
        for name, variant in paper.variants.items()
    ]


def _millions(variant: Variant) -> float:
    """Counted on the meta device: nothing is allocated."""
    import torch

    from paperworks.analysis.counting import count_parameters

    with torch.device("meta"):
        return count_parameters(variant.build()) / 1e6


def _functions(table: dict[str, Any], skip: int = 0) -> list[dict[str, str]]:
    rows = []
    for name, function in table.items():
        flags, does = described(function, skip)
        rows.append({"name": name, "does": does, "flags": flags})
    return rows


def _claims(card: Card, paper: Paper | None) -> list[dict[str, Any]]:
    stored = records.measured(card.slug)
    further = [claim.text for id, claim in paper.claims.items() if claim.text not in card.claims] if paper else []
    rows = []
    for text in (*card.claims, *further):
        record = stored.get(text.id)
        row: dict[str, Any] = {"id": text.id, "kind": text.kind, "statement": text.statement}
        row |= {"paper": output.with_unit(text.paper_value, text.unit), "here": None, "verdict": results.UNMEASURED}
        if record:
            row |= {
                "here": output.seeds(record["value"], record["per_seed"], record.get("measured_in", text.unit)),
                "verdict": record["verdict"],
            }
        rows.append(row)
    return rows


def _section(title: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> None:
    if rows:
        output.table(columns, rows, title=title)
        output.line()
