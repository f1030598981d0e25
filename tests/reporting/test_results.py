"""Stored claims and the page made from them."""

import json
import subprocess
import sys

import pytest

from paperworks.errors import InputError
from paperworks.paper import Card, Claim, ClaimText, Measured, Run, at_least, verdict
from paperworks.reporting import results

CARD = Card(
    "tiny", "A tiny paper", 2024, "2401.00001", "backbone", "", "Summary.",
    (ClaimText("c1", "Is fast | very", "5", "x", "direction"), ClaimText("c2", "Is large", "-", "-", "cluster")),
)  # fmt: skip


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERWORKS_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def store(values, threshold=2.0, id="c1"):
    text = next((claim for claim in CARD.claims if claim.id == id), ClaimText(id, "Further", "4", "n", "exact"))
    claim = Claim(text, lambda bench: Measured(0, "any"), at_least(threshold), f"at least {threshold}")
    found = Measured(sorted(values)[1], "laptop", "ours against theirs", values, range(len(values)))
    results.store_claim("tiny", claim, found, verdict(claim, found), command="paperworks check tiny", seconds=1.234)


def test_the_page_shows_all_claims_with_spread_and_computed_verdict(folder):
    store([3.0, 2.5, 4.0])
    store([1.0, 2.5, 4.0], id="extra")
    text = results.render({"tiny": CARD, "other": Card("other", "Other", 2020, "1", "dense", "", "S.", ())})
    rest = "at least 2.0. ours against theirs. |"
    assert f"| **c1** Is fast \\| very | direction | 5x | 3x (2.5 to 4, 3 seeds) | laptop | direction holds | {rest}" in text
    assert "| **c2** Is large | cluster | - | - | - | needs a cluster | |" in text
    assert f"| **extra** Further | exact | 4 n | 2.5 n (1 to 4, 3 seeds) | laptop | does not hold | {rest}" in text
    assert "| tiny |  |  | c1 | extra |  | c2 |" in text and "| other |" not in text
    assert "other (0)" in text and "`paperworks check tiny`" in text


def test_storing_one_claim_keeps_the_others(folder):
    store([3.0, 2.5, 4.0])
    store([9.0, 9.0, 9.0], id="c2")
    store([1.0, 1.0, 1.0])
    stored = json.loads((folder / "tiny.json").read_text())["claims"]
    assert stored["c1"]["verdict"] == "direction does not hold" and stored["c2"]["verdict"] == "direction holds"
    assert stored["c1"]["per_seed"] == [1.0, 1.0, 1.0] and stored["c1"]["versions"]["python"]


def test_nothing_stored_is_nothing(folder):
    assert results.load("tiny") == {} and results.load_benchmarks() == {} and results.load_parity() == {}
    assert "not measured yet" in results.render({"tiny": CARD}, built=lambda slug: True)


def test_a_stored_run_says_nothing_about_where_it_lay(folder, tmp_path):
    run = Run.create(
        tmp_path / "r", slug="tiny", recipe="laptop", arguments={}, config={}, command=f"paperworks run tiny --out {tmp_path}"
    )
    run.record["stages"] = {"train": {"seconds": 90.0, "result": {"loss": 0.5, "report": str(tmp_path / "report.html")}}}
    results.store_run(run)
    stored = results.load("tiny")["run"]
    assert stored["command"] == "paperworks run tiny" and stored["result"] == {"loss": 0.5}
    assert str(tmp_path) not in (folder / "tiny.json").read_text()
    assert "`paperworks run tiny` took 1.5 min (train 90 s)." in results.render({"tiny": CARD})


def test_parity_names_the_cases_that_fail(folder):
    cases = {"a": {"passed": True, "worst": 2e-6, "outputs": 3}, "b": {"passed": True, "worst": 3e-7, "outputs": 1}}
    write(folder / "parity.json", {"tiny": cases})
    page = results.render({"tiny": CARD}, built=lambda slug: True)
    assert "2 of 2 cases pass, largest error 2.0e-06 (a)." in page
    write(folder / "parity.json", {"tiny": {**cases, "c": {"passed": False}}})
    assert "2 of 3 cases pass, largest error 2.0e-06 (a); not: c." in results.render({"tiny": CARD}, built=lambda slug: True)


def test_benchmarks_stand_with_spread_target_and_machine(folder):
    ratio = {"median": 1.234, "low": 1.1, "high": 1.3}
    row = {
        "what": "net | 8",
        "ours": "eager",
        "peer": "timm",
        "ratio": ratio,
        "target": 1.5,
        "met": False,
        "note": "both float32",
    }
    machine = {"processor": "A processor", "threads": 2, "simd": "AVX2"}
    write(folder / "benchmarks" / "tiny.json", {"machine": machine, "rows": [row, {**row, "target": None, "met": None}]})
    page = results.render({"tiny": CARD})
    assert "| net \\| 8 | eager | timm | 1.23x (1.10 to 1.30) | 1.5x missed | both float32 |" in page
    assert "| 1.23x (1.10 to 1.30) |  | both float32 |" in page and "Measured on: A processor, 2 threads, AVX2." in page


def test_a_broken_file_is_named(folder):
    folder.mkdir()
    (folder / "tiny.json").write_text("{")
    with pytest.raises(InputError, match=r"tiny\.json is not readable JSON"):
        results.load("tiny")


def test_the_page_lies_beside_the_stored_results(folder):
    assert results.write_results_md({"tiny": CARD}) == folder.parent / "RESULTS.md" == results.results_md()
    assert results.results_md().read_text() == results.render({"tiny": CARD})


def test_importing_stored_results_pulls_in_nothing_heavy():
    code = "import sys, paperworks.reporting.results; print({'torch', 'matplotlib', 'jinja2', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
