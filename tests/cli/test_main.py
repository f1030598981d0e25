"""Which verb, and what the exit status and the message are when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from paperworks import __version__
from paperworks.cli import VERBS, main
from paperworks.paper import Paper

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_verb_the_verbs_are_listed(argv: list[str], capsys: Captured) -> None:
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


def test_the_version_is_printed(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"paperworks {__version__}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lst"], "no verb 'lst'; did you mean 'list'?"),
        (["qqqq"], "no verb 'qqqq'; there are list, show, run"),
        (["show", "titoc"], "no paper called 'titoc'; did you mean 'titok'?"),
        (["run", "VRA"], "no paper called 'VRA'; did you mean 'var'?"),
        (["run"], "name the paper right after 'run'"),
        (["run", "--recipe", "laptop", "var"], "name the paper right after 'run'"),
        (["sample"], "name the run's folder right after 'sample'"),
        (["list", "--family", "generaton"], "no family 'generaton'; did you mean 'generation'?"),
        (["run", "fake", "--recipe", "laptp"], "no recipe 'laptp'; did you mean 'laptop'?"),
        (["run", "fake", "--set", "model.dmi=3"], "no field 'model.dmi'; did you mean 'dim'?"),
        (["run", "fake", "--set", "model.kind=unreadable"], "nothing can be read there"),
        (["check", "fake", "--only", "c7"], "fake has no claim 'c7'"),
        (["check", "fake", "--only", "c4"], "claim c4 of fake has no measurement yet; there are c1, c2, c3"),
        (["evaluate", "."], ". is not a run: it has no run.json"),
        (["evaluate", "runs/missing"], "runs/missing is not a run"),
        (["evaluate", "fake"], "fake is a paper, not a run: `paperworks run fake` makes one"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv: list[str], message: str, fake: Paper, capsys: Captured) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("paperworks: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("verb", ["run", "check"])
def test_every_verb_on_a_planned_paper_says_so_in_one_line(verb: str, capsys: Captured) -> None:
    from paperworks import papers

    planned = next(slug for slug in papers.cards() if not papers.is_built(slug))
    assert main([verb, planned]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{planned} (" in err and "is planned" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["list", "--famly", "generation"],
        ["show"],
        ["check", "fake", "--seeds", "one"],
        ["run", "fake", "--minits", "3"],
        ["run", "fake", "--minutes", "soon"],
        ["run", "fake", "extra"],
        ["run", "fake", "--recipe"],
    ],
)
def test_usage_errors_have_status_2(argv: list[str], fake: Paper, capsys: Captured) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb: str, capsys: Captured) -> None:
    assert main([verb, "--help"]) == 0
    assert f"usage: paperworks {verb}" in capsys.readouterr().out


def test_list_as_a_program_prints_json_and_loads_no_torch() -> None:
    program = (
        "import sys; from paperworks.cli import main; status = main(['list', '--json']); "
        "sys.exit(status or 3 * any(name in sys.modules for name in ('torch', 'timm', 'matplotlib', 'numpy')))"
    )
    for words in (["-m", "paperworks", "list", "--json"], ["-c", program]):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == 88


@pytest.mark.parametrize("flags", ["--json", "--family search"])
def test_a_reader_that_stops_early_is_no_error(flags: str) -> None:
    words = f"{sys.executable} -m paperworks list {flags} | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
