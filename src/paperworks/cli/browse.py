"""`paperworks list`, `show`, `status` and `results`: what there is and how far it is. Nothing here needs torch, except the
parameter counts of a built paper's variants."""

from __future__ import annotations

from typing import Any

from paperworks import papers
from paperworks.cli import output, records
from paperworks.cli.checking import with_unit
from paperworks.cli.flags import Slug, described
from paperworks.errors import InputError, nearest
from paperworks.paper import Card, Paper, Variant
from paperworks.reporting import results as stored


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
    """All papers: code, recorded reference cases, runs, claims and speed, as stored in results/.

    Args:
        json: print JSON instead of a table
    """
    rows = [_status(card) for card in papers.cards().values()]
    if json:
        output.as_json(rows)
        return 0
    columns = {name: name for name in ("parity", "run", "claims", "measured", "hold", "speed")}
    columns = {"slug": "paper", "built": "built", **columns}
    output.table(columns, rows)
    built = sum(row["built"] for row in rows)
    measured, claims = sum(row["measured"] for row in rows), sum(row["claims"] for row in rows)
    output.line(f"\n{built} of {len(rows)} papers built, {measured} of {claims} claims measured")
    return 0


def results() -> int:
    """Writes RESULTS.md anew from results/."""
    path = stored.write_results_md(papers.cards(), built=papers.is_built)
    output.line(f"wrote {path}")
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


def _status(card: Card) -> dict[str, Any]:
    state = records.state(card)
    parity = stored.load_parity().get(card.slug, {}).values()
    run = stored.load(card.slug).get("run")
    speed = [row for bench in _benchmarks_of(card.slug) for row in bench["rows"] if row["target"] is not None]
    return {
        "slug": card.slug,
        "built": state.built,
        "parity": f"{sum(case['passed'] for case in parity)}/{len(parity)}" if parity else "",
        "run": f"{sum(run['seconds'].values()) / 60:.1f} min" if run else "",
        "claims": state.claims,
        "measured": state.measured,
        "hold": state.hold,
        "speed": f"{sum(row['met'] for row in speed)}/{len(speed)} met" if speed else "",
    }


def _benchmarks_of(slug: str) -> list[dict[str, Any]]:
    """Benchmarks are named after the paper, or after the first word of it that tells (benchmarks/pruning.py)."""
    return [bench for name, bench in stored.load_benchmarks().items() if name in (slug, slug.rsplit("-", 1)[-1])]


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
        row |= {"paper": with_unit(text.paper_value, text.unit), "here": None, "verdict": "not measured yet"}
        if record:
            row |= {"here": with_unit(output.shown(record["value"]), text.unit), "verdict": record["verdict"]}
        rows.append(row)
    return rows


def _section(title: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> None:
    if rows:
        output.table(columns, rows, title=title)
        output.line()
