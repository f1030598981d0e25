"""Stored results, and RESULTS.md made from them: the paper's number beside ours, with a verdict that was computed."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paperworks
from paperworks.paper import Card, Claim, Measured, Run, Verdict, versions, write_json

UNMEASURED = "not measured yet"
HELD = ("holds", "direction holds")


def results_folder() -> Path | None:
    """$PAPERWORKS_RESULTS, else results/ of the checkout that the package lies in, else ./results where that exists."""
    named = os.environ.get("PAPERWORKS_RESULTS")
    if named:
        return Path(named)
    checkout = Path(paperworks.__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "results"
    here = Path("results")
    return here if here.is_dir() else None


def load(slug: str) -> dict[str, Any]:
    """What is stored of a paper: claims, run. Empty when nothing is."""
    return _read(f"{slug}.json")


def store_claim(slug: str, claim: Claim, measured: Measured, verdict: Verdict, *, command: str, seconds: float) -> None:
    """Add or replace one claim, leaving the others."""
    text = claim.text
    record = {
        "statement": text.statement,
        "paper_value": text.paper_value,
        "unit": text.unit,
        "kind": text.kind,
        "value": measured.value,
        "per_seed": list(measured.per_seed),
        "seeds": list(measured.seeds),
        "spread": list(measured.spread) if measured.spread else None,
        "scale": measured.scale,
        "detail": measured.detail,
        "numbers": dict(measured.numbers),
        "rule": claim.rule_text,
        "verdict": verdict,
        "command": command,
        "versions": versions(),
        "seconds": round(seconds, 1),
        "measured_on": datetime.date.today().isoformat(),
    }
    _update(slug, lambda stored: stored.setdefault("claims", {}).__setitem__(text.id, record))


def store_run(run: Run) -> None:
    """How long the default recipe took and what it reached."""
    last = list(run.record["stages"])[-1]
    record = {
        "recipe": run.record["recipe"],
        "seconds": run.seconds,
        "result": run.record["stages"][last]["result"],
        "command": run.record["command"],
        "versions": versions(),
        "run_on": datetime.date.today().isoformat(),
    }
    _update(run.slug, lambda stored: stored.__setitem__("run", record))


def load_benchmarks() -> dict[str, Any]:
    """Stored benchmarks by name."""
    folder = results_folder()
    files = sorted((folder / "benchmarks").glob("*.json")) if folder else []
    return {path.stem: json.loads(path.read_text()) for path in files}


def load_parity() -> dict[str, Any]:
    """Outcome of the parity cases by paper, as the tests recorded it."""
    return _read("parity.json")


# --- RESULTS.md -------------------------------------------------------------------------------------------------------


def write_results_md(cards: Mapping[str, Card], path: Path | None = None, built: Any = None) -> Path:
    """RESULTS.md beside results/ (or at `path`), written anew."""
    folder = results_folder()
    path = path or ((folder.parent if folder else Path()) / "RESULTS.md")
    path.write_text(render(cards, built))
    return path


def render(cards: Mapping[str, Card], built: Any = None) -> str:
    """The whole text. `built(slug)`: whether a paper has code (default: whether anything is stored of it)."""
    has_code = built or (lambda slug: bool(load(slug)))
    lines = [
        "# Results",
        "",
        "Written by `paperworks results` from `results/`; do not edit. *exact* must equal the paper's number, *capability* is",
        "a yes or no, *direction* is measured at laptop scale with several seeds, of *cluster* rows at best the direction was",
        "checked here: the paper's own number was not. Seeds and spread are shown as median (lowest to highest).",
    ]
    parity, planned = load_parity(), []
    for slug, card in cards.items():
        if has_code(slug):
            lines += ["", *_paper(card, load(slug), parity.get(slug))]
        else:
            planned.append(card)
    lines += ["", *_benchmarks(load_benchmarks())]
    lines += ["", "## Planned", "", "Cards without code yet, with the number of claims of their abstracts:", ""]
    lines.append(", ".join(f"{card.slug} ({len(card.claims)})" for card in planned) + ".")
    return "\n".join(lines) + "\n"


def _paper(card: Card, stored: dict[str, Any], parity: Any) -> list[str]:
    lines = [f"## {card.slug}: {card.title} ({card.year})", ""]
    run = stored.get("run")
    if run:
        took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run["seconds"].items())
        lines += [f"`{run['command']}` took {sum(run['seconds'].values()) / 60:.1f} min ({took}).", ""]
    if parity:
        cases = parity.get("cases", parity) if isinstance(parity, dict) else {}
        words = [f"{name} {case['worst']:.1e}" for name, case in sorted(cases.items()) if isinstance(case, dict)]
        if words:
            lines += [f"Parity with recorded reference outputs, worst error: {', '.join(words)}.", ""]
    lines += ["| claim | kind | paper | here | verdict | rule and scale |", "|---|---|---|---|---|---|"]
    measured = stored.get("claims", {})
    known = {text.id for text in card.claims}
    for text in card.claims:
        lines.append(_row(text.id, text.statement, text.kind, text.paper_value, text.unit, measured.get(text.id)))
    for id, record in measured.items():
        if id not in known:
            lines.append(_row(id, record["statement"], record["kind"], record["paper_value"], record["unit"], record))
    commands = sorted({record["command"] for record in measured.values()})
    if commands:
        lines += ["", "Measured by " + ", ".join(f"`{command}`" for command in commands) + "."]
    return lines


def _row(id: str, statement: str, kind: str, paper_value: str, unit: str, record: dict[str, Any] | None) -> str:
    paper = "-" if paper_value == "-" else f"{paper_value} {unit}".strip()
    if record is None:
        return f"| **{id}** {_cell(statement)} | {kind} | {_cell(paper)} | - | {UNMEASURED} | |"
    words = f"{record['rule']}. {record['scale']}. {record['detail']}"
    return f"| **{id}** {_cell(statement)} | {kind} | {_cell(paper)} | {_here(record)} | {record['verdict']} | {_cell(words)} |"


def _here(record: dict[str, Any]) -> str:
    value = _number(record["value"])
    if not record["spread"]:
        return value
    low, high = (_number(each) for each in record["spread"])
    count = len(record["per_seed"])
    return f"{value} ({low} to {high}, {count} {'seed' if count == 1 else 'seeds'})"


def _benchmarks(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return ["## Benchmarks", "", "None stored yet; `make bench` runs them."]
    lines = ["## Benchmarks", "", "Peer's time over ours, both run alternately in one process; quartiles over rounds.", ""]
    lines += ["| what | ours | peer | ratio | target |", "|---|---|---|---|---|"]
    machines = set()
    for bench in found.values():
        machine = bench["machine"]
        machines.add(f"{machine['processor']}, {machine['threads']} threads, {machine['simd']}")
        for row in bench["rows"]:
            ratio = row["ratio"]
            target = "" if row["target"] is None else f"{row['target']:g}x {'met' if row['met'] else 'missed'}"
            words = f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
            lines.append(f"| {_cell(row['what'])} | {_cell(row['ours'])} | {_cell(row['peer'])} | {words} | {target} |")
    return [*lines, "", f"Measured on: {'; '.join(sorted(machines))}."]


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- files ------------------------------------------------------------------------------------------------------------


def _read(name: str) -> dict[str, Any]:
    folder = results_folder()
    path = folder / name if folder else None
    return json.loads(path.read_text()) if path and path.is_file() else {}


def _update(slug: str, change: Any) -> None:
    folder = results_folder()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stored = load(slug)
    stored["slug"] = slug
    change(stored)
    write_json(folder / f"{slug}.json", stored)
