"""`python -m benchmarks [name ...] [--list] [--dry]`: run the named benchmarks, all without a name."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.harness import show, store

FRAME = {"__init__", "__main__", "harness"}


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in FRAME and path.stem[0] != "_")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help="benchmarks to run; all when none is named")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--dry", action="store_true", help="do not store results/benchmarks/<name>.json")
    options = parser.parse_args(arguments)
    known = names()
    if options.list:
        print("\n".join(known))
        return 0
    chosen = [name.replace("-", "_") for name in options.name] or known
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known) or 'none yet'}"
            print(f"no benchmark {name}; {hint}", file=sys.stderr)
            return 2
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    missed = 0
    for name in chosen:
        rows = importlib.import_module(f"benchmarks.{name}").run()
        show(name, rows, console)
        missed += sum(row.met is False for row in rows)
        if not options.dry:
            console.print(f"stored in {store(name, rows)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
