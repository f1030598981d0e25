"""Stored results, and RESULTS.md made from them: the paper's number beside ours, with a verdict that was computed."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import paperworks
from paperworks.errors import InputError
from paperworks.paper import Card, Claim, Measured, Run, Verdict, versions, write_json
from paperworks.reporting.cells import shown

UNMEASURED = "not measured yet"
CLUSTER = "needs a cluster"
"""claims of that kind of which not even a direction was measured"""
HELD = ("holds", "direction holds")
ELSEWHERE = "on other data"
"""key of what a claim gave on named data besides the default, by name"""


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


def store_claim(
    slug: str,
    claim: Claim,
    measured: Measured,
    verdict: Verdict,
    *,
    command: str,
    seconds: float,
    data: str = "default",
) -> None:
    """Add or replace one claim, leaving the others. What other named data gave stands beside what the default data gave."""
    text = claim.text
    found = {
        "measured_in": text.unit if measured.unit is None else measured.unit,
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

    def change(stored: dict[str, Any]) -> None:
        record = stored.setdefault("claims", {}).setdefault(text.id, {})
        if data != "default":
            record.setdefault(ELSEWHERE, {})[data] = found
            return
        kept = {ELSEWHERE: record[ELSEWHERE]} if ELSEWHERE in record else {}
        said = {"statement": text.statement, "paper_value": text.paper_value, "unit": text.unit, "kind": text.kind}
        stored["claims"][text.id] = said | found | kept

    _update(slug, change)


def store_run(run: Run) -> None:
    """How long a recipe took as it stands, and the numbers it reached. Where its folder lay is left out."""
    last = list(run.record["stages"])[-1]
    recipe = run.record["recipe"]
    reached = run.record["stages"][last]["result"] or {}
    launcher = run.record["command"].partition("paperworks run ")[0]  # torchrun, when there were several processes
    record = {
        "recipe": recipe,
        "seconds": run.seconds,
        "result": {name: value for name, value in reached.items() if not isinstance(value, str)},
        "command": f"{launcher}paperworks run {run.slug}" + ("" if recipe == "laptop" else f" --recipe {recipe}"),
        "versions": versions(),
        "run_on": datetime.date.today().isoformat(),
    }
    _update(run.slug, lambda stored: stored.__setitem__("run", record))


def load_benchmarks() -> dict[str, Any]:
    """Stored benchmarks by name."""
    folder = results_folder()
    files = sorted((folder / "benchmarks").glob("*.json")) if folder else []
    return {path.stem: _read(f"benchmarks/{path.name}") for path in files}


def load_parity() -> dict[str, Any]:
    """Outcome of the parity cases by paper, as the tests recorded it."""
    return _read("parity.json")


# --- RESULTS.md -------------------------------------------------------------------------------------------------------


def write_results_md(cards: Mapping[str, Card], path: Path | None = None, built: Any = None) -> Path:
    """RESULTS.md beside results/ (or at `path`), written anew."""
    path = path or results_md()
    path.write_text(render(cards, built), encoding="utf-8")
    return path


def results_md() -> Path:
    """Where the page belongs, whether it exists or not."""
    folder = results_folder()
    return (folder.parent if folder else Path()) / "RESULTS.md"


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
    parity = load_parity()
    coded = {slug: card for slug, card in cards.items() if has_code(slug)}
    planned = [card for slug, card in cards.items() if slug not in coded]
    lines += ["", *_overview(coded, parity)]
    for slug, card in coded.items():
        lines += ["", *_paper(card, load(slug), parity.get(slug))]
    lines += ["", *_benchmarks(load_benchmarks())]
    lines += ["", "## Planned", "", "Cards without code yet, with the number of claims of their abstracts:", ""]
    lines.append(", ".join(f"{card.slug} ({len(card.claims)})" for card in planned) + ".")
    return "\n".join(lines) + "\n"


def _overview(cards: Mapping[str, Card], parity: Mapping[str, Any]) -> list[str]:
    """A row per paper, its claims by id."""
    lines = [f"| paper | parity | run | claims that hold | that do not | {UNMEASURED} | {CLUSTER} |"]
    lines.append("|---|---|---|---|---|---|---|")
    for slug, card in cards.items():
        stored, cases = load(slug), parity.get(slug, {})
        claims, run = stored.get("claims", {}), stored.get("run")
        hold = [id for id, record in claims.items() if record["verdict"] in HELD]
        left = {text.id: text.kind for text in card.claims if text.id not in claims}
        large = {id for id, kind in left.items() if kind == "cluster"}
        columns = (
            f"{sum(case['passed'] for case in cases.values())} of {len(cases)}" if cases else "",
            f"{sum(run['seconds'].values()) / 60:.1f} min" if run else "",
            *map(_ids, (hold, set(claims).difference(hold), set(left) - large, large)),
        )
        lines.append(f"| {slug} | {' | '.join(columns)} |")
    return lines


def _ids(found: Collection[str]) -> str:
    """c2 before c10."""
    return ", ".join(sorted(found, key=lambda id: (len(id), id)))


def _paper(card: Card, stored: dict[str, Any], parity: Any) -> list[str]:
    lines = [f"## {card.slug}: {card.title} ({card.year})", ""]
    run = stored.get("run")
    if run:
        took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run["seconds"].items())
        numbers = {name: value for name, value in run["result"].items() if isinstance(value, int | float)}
        reached = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        said = f"`{run['command']}` took {sum(run['seconds'].values()) / 60:.1f} min ({took})."
        lines += [f"{said} It reached: {reached}." if reached else said, ""]
    if parity:
        lines += [_parity(parity), ""]
    lines += ["| claim | kind | paper | here | scale | verdict | rule and detail |", "|---|---|---|---|---|---|---|"]
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


def _parity(cases: Mapping[str, Any]) -> str:
    """One sentence; the cases that failed are named."""
    failed = [name for name, case in sorted(cases.items()) if not case["passed"]]
    errors = [(case["worst"], name) for name, case in cases.items() if case["passed"] and "worst" in case]
    text = f"Parity with recorded reference outputs: {len(cases) - len(failed)} of {len(cases)} cases pass"
    if errors:
        text += ", largest error {:.1e} ({})".format(*max(errors))
    return f"{text}; not: {', '.join(failed)}." if failed else f"{text}."


def _row(id: str, statement: str, kind: str, paper_value: str, unit: str, record: dict[str, Any] | None) -> str:
    start = f"| **{id}** {_cell(statement)} | {kind} | {_cell(with_unit(paper_value, unit))} |"
    if record is None:
        return f"{start} - | - | {CLUSTER if kind == 'cluster' else UNMEASURED} | |"
    words = ". ".join(text.strip().rstrip(".") for text in (record["rule"], record["detail"]) if text.strip())
    here, scales, verdicts = [_here(record)], [record["scale"]], [record["verdict"]]
    for name, other in record.get(ELSEWHERE, {}).items():
        here.append(f"{name}: {_here(other)}")
        scales.append(other["scale"])
        verdicts.append(f"{name}: {other['verdict']}")
        words = f"{words.rstrip('.')}. {name}: {other['detail'].strip().rstrip('.')}"
    columns = ("; ".join(here), "; ".join(scales), "; ".join(verdicts), f"{words}.")
    return f"{start} {' | '.join(map(_cell, columns))} |"


def _here(record: Mapping[str, Any]) -> str:
    value = with_unit(shown(record["value"]), record["measured_in"] if "measured_in" in record else record["unit"])
    count = len(record["per_seed"])
    if not count:
        return value
    if count == 1:
        return f"{value} (1 seed)"
    low, high = (shown(each) for each in record["spread"])
    return f"{value} ({low} to {high}, {count} seeds)"


def _benchmarks(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return ["## Benchmarks", "", "None stored yet; `make bench` runs them."]
    lines = ["## Benchmarks", "", "Peer's time over ours, both run alternately in one process; quartiles over rounds.", ""]
    lines += ["| what | ours | peer | ratio | target | note |", "|---|---|---|---|---|---|"]
    machines = set()
    for bench in found.values():
        machine = bench["machine"]
        machines.add(f"{machine['processor']}, {machine['threads']} threads, {machine['simd']}")
        for row in bench["rows"]:
            ratio = row["ratio"]
            target = "" if row["target"] is None else f"{row['target']:g}x {'met' if row['met'] else 'missed'}"
            words = f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
            cells = (row["what"], row["ours"], row["peer"], words, target, row.get("note", ""))
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return [*lines, "", f"Measured on: {'; '.join(sorted(machines))}."]


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def with_unit(value: str, unit: str) -> str:
    """ "20x", "82.3% top-1", "1.80 FID"; a claim without a number stays "-"."""
    if unit.strip() in ("", "-") or value == "-":
        return value
    return f"{value}{unit}" if unit.split()[0] in ("x", "%") else f"{value} {unit}"


# --- files ------------------------------------------------------------------------------------------------------------


def _read(name: str) -> dict[str, Any]:
    folder = results_folder()
    path = folder / name if folder else None
    if not (path and path.is_file()):
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path} is not readable JSON: mend it, or remove it and measure again") from None


def _update(slug: str, change: Any) -> None:
    folder = results_folder()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stored = load(slug)
    stored["slug"] = slug
    change(stored)
    write_json(folder / f"{slug}.json", stored)
