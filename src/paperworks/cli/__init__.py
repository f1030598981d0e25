"""The command line: which verb, and what happens when something goes wrong. The verbs are in the files beside this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from paperworks import __version__
from paperworks.cli import browse, checking, comparing, output, running
from paperworks.cli.flags import parse
from paperworks.errors import InputError, nearest

VERBS: dict[str, tuple[Callable[..., int], str]] = {
    "list": (browse.list_papers, "the 88 papers and how far each one is"),
    "show": (browse.show, "one paper: what it is, its variants, recipes, verbs and claims"),
    "run": (running.run, "carry out a paper's recipe on your images: train, evaluate, write report.html"),
    "check": (checking.check, "measure a paper's claims and print them beside the paper's numbers"),
    "compare": (comparing.compare, "train several papers' networks on your images under one budget, side by side"),
    "sample": (running.sample, "make images with what a run trained"),
    "predict": (running.predict, "apply what a run trained to your images"),
    "evaluate": (running.evaluate, "measure what a run trained"),
    "export": (running.export, "write what a run trained in another format"),
    "status": (browse.status, "all papers: code, parity, run, claims, speed, computed from results/"),
    "results": (browse.write_results, "write RESULTS.md anew from results/"),
}
READS_OWN_FLAGS = ("run", "sample", "predict", "evaluate", "export")
"""verbs whose flags depend on the paper, so that they get the words themselves"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 something failed, 2 the input cannot be used, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except InputError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "stopped")
        return 130
    except BrokenPipeError:  # `paperworks list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leave:  # after --help or a usage error, and after SIGTERM
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _usage()
        return 0
    verb, *rest = words
    if verb == "--version":
        output.line(f"paperworks {__version__}")
        return 0
    if verb not in VERBS:
        raise InputError(f"no verb {verb!r}{nearest(verb, VERBS)}")
    function, _ = VERBS[verb]
    if verb in READS_OWN_FLAGS:
        return function(rest)
    return function(**parse(f"paperworks {verb}", rest, function)[0])


def _usage() -> None:
    output.line("usage: paperworks VERB ...      (paperworks VERB --help for the flags)\n")
    output.table({"verb": "", "does": ""}, [{"verb": verb, "does": does} for verb, (_, does) in VERBS.items()])
    output.line("\nstart with: paperworks list, paperworks show var, paperworks run var")


def _complain(message: str) -> None:
    print(f"paperworks: {' '.join(message.split())}", file=sys.stderr)
