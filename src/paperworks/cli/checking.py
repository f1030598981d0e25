"""`paperworks check`: measure the claims of a paper one after the other."""

from __future__ import annotations

import re
import shlex
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperworks import papers
from paperworks.cli import output, records
from paperworks.cli.flags import Slug
from paperworks.errors import InputError, nearest
from paperworks.paper import Bench, Claim, Paper, verdict
from paperworks.reporting import results

FOLDER = Path("runs/check")
SEEDS = (0, 1, 2)


def check(
    slug: Slug,
    *,
    only: tuple[str, ...] = (),
    seeds: tuple[int, ...] = SEEDS,
    data: str = "default",
    json: bool = False,
) -> int:
    """Measures a paper's claims and prints paper | here | verdict.

    Each claim is stored in results/ as soon as it is measured: on the default data, and beside that on data that everybody
    finds under the same name, such as cifar10. Networks that a claim trains are kept in runs/check/<paper> and used again;
    delete that folder to train them anew.

    Args:
        slug: the paper
        only: ids of the claims to measure; all that can be measured when left out
        seeds: seeds of the repetitions
        data: images to measure on instead of the claims' own
        json: print JSON instead of a table
    """
    paper = papers.load(slug)
    claims = _asked_for(paper, only)
    bench = Bench(_folder(slug, data), seeds=seeds, data=data, say=output.line)
    rows: list[dict[str, Any]] = []
    try:
        for number, claim in enumerate(claims, 1):
            with output.clean_stdout(json):
                output.line(f"[{number}/{len(claims)}] {claim.text.id} {claim.text.statement}")
                rows.append(_measure(slug, claim, bench))
    except KeyboardInterrupt:
        left = [claim.text.id for claim in claims[len(rows) :]]
        raise KeyboardInterrupt(
            f"stopped with {len(rows)} of {len(claims)} claims measured; to go on: {_command(slug, left, seeds, data)}"
        ) from None
    if json:
        output.as_json(rows)
    else:
        output.table({"id": "", "statement": "claim", "paper": "paper", "here": "here", "verdict": "verdict"}, rows)
        measured = [str(row["id"]) for row in rows if "error" not in row]
        if measured:
            output.line(_where(slug, measured, data))
    return int(any("error" in row for row in rows))


def _measure(slug: str, claim: Claim, bench: Bench) -> dict[str, Any]:
    text = claim.text
    row: dict[str, Any] = {"id": text.id, "statement": text.statement, "paper": output.with_unit(text.paper_value, text.unit)}
    started = time.monotonic()
    try:
        bench.folder.mkdir(parents=True, exist_ok=True)
        found = claim.measure(bench)
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        return {**row, "verdict": f"failed: {type(error).__name__}: {error}", "error": str(error)}
    if _stored(slug, text.id, bench.data):
        command, seconds = _command(slug, [text.id], bench.seeds, bench.data), time.monotonic() - started
        results.store_claim(slug, claim, found, verdict(claim, found), command=command, seconds=seconds, data=bench.data)
        records.refresh_results_md()
    row |= {
        "here": output.seeds(found.value, found.per_seed, text.unit if found.unit is None else found.unit),
        "verdict": verdict(claim, found),
        "rule": claim.rule_text,
    }
    row |= {"value": found.value, "per_seed": list(found.per_seed), "scale": found.scale, "detail": found.detail}
    return row


def _asked_for(paper: Paper, only: Sequence[str]) -> list[Claim]:
    """In the order of the card, further ones of the code behind them."""
    order = [text.id for text in paper.card.claims]
    measurable = sorted(paper.claims, key=lambda id: order.index(id) if id in order else len(order))
    for id in only:
        if id in order and id not in paper.claims:
            raise InputError(f"claim {id} of {paper.slug} has no measurement yet; there are {', '.join(measurable) or 'none'}")
        if id not in paper.claims:
            raise InputError(f"{paper.slug} has no claim {id!r}{nearest(id, measurable)}")
    if not measurable:
        raise InputError(f"no claim of {paper.slug} can be measured yet")
    return [paper.claims[id] for id in measurable if not only or id in only]


def _stored(slug: str, id: str, data: str) -> bool:
    """On data besides the default a result is stored beside that of the default data, once there is one."""
    return data == "default" or (_has_a_name(data) and id in results.load(slug).get("claims", {}))


def _has_a_name(data: str) -> bool:
    """Whether everybody finds the same images under it."""
    from paperworks.data.opening import NAMES  # late: it needs torch, which the command line's lists do not

    return data in NAMES


def _where(slug: str, ids: Sequence[str], data: str) -> str:
    """What became of the results, in words."""
    if all(_stored(slug, id, data) for id in ids):
        return "stored in results/" + ("" if data == "default" else ", beside those of the default data")
    if _has_a_name(data):
        return "not stored: measure them on the default data first, to have something to stand beside"
    return "not stored: measured on data of your own"


def _folder(slug: str, data: str) -> Path:
    """Networks trained on other data must not be taken for those of the default data."""
    return FOLDER / (slug if data == "default" else f"{slug}-{re.sub(r'[^A-Za-z0-9]+', '-', data).strip('-')}")


def _command(slug: str, ids: Sequence[str], seeds: Sequence[int], data: str) -> str:
    words = ["paperworks", "check", slug, "--only", *ids]
    if tuple(seeds) != SEEDS:
        words += ["--seeds", *map(str, seeds)]
    return shlex.join(words if data == "default" else [*words, "--data", data])
