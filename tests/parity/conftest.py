"""Lists slug, case and worst error after a run; with PAPERWORKS_RECORD=1 stores them in results/parity.json."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.parity.case import ROOT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes = []
    for state in ("passed", "failed"):
        for report in terminalreporter.stats.get(state, []):
            nodeid, properties = getattr(report, "nodeid", ""), dict(getattr(report, "user_properties", []))
            if getattr(report, "when", "call") == "call" and "test_parity.py::test_parity[" in nodeid:
                # a replay that raised has no properties: its name stands in the test's id
                slug, _, case = nodeid.partition("[")[2].removesuffix("]").partition("/")
                outcomes.append({"slug": slug, "case": case} | properties.get("parity", {}) | {"passed": state == "passed"})
    if not outcomes:
        return
    terminalreporter.section("parity")
    for outcome in sorted(outcomes, key=lambda o: (o["slug"], o["case"])):
        error = f"worst error {outcome['worst']:.2e}, {outcome['outputs']} outputs" if "worst" in outcome else "replay failed"
        terminalreporter.line(f"{'ok  ' if outcome['passed'] else 'FAIL'} {outcome['slug']:<28} {outcome['case']:<36} {error}")
    if os.environ.get("PAPERWORKS_RECORD") == "1":
        _record(outcomes)


def _record(outcomes: list[dict[str, Any]]) -> None:
    """Replaces the entries of the papers that were replayed, keeps the others."""
    path = ROOT / "results" / "parity.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for outcome in outcomes:
        entry = {"passed": outcome["passed"]} | {key: outcome[key] for key in ("worst", "outputs") if key in outcome}
        stored.setdefault(outcome["slug"], {})[outcome["case"]] = entry
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({slug: dict(sorted(stored[slug].items())) for slug in sorted(stored)}, indent=1) + "\n")
