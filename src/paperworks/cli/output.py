"""What verbs print: lines, tables, or JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paperworks.reporting.results import with_unit as with_unit

PIPE_WIDTH = 200
"""characters per line when the output is not a terminal"""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for `main` to end quietly; rich would exit with status 1


def console() -> Console:
    made = _Console(highlight=False)
    return made if made.is_terminal else _Console(highlight=False, width=PIPE_WIDTH)


def line(text: str = "", style: str | None = None) -> None:
    console().print(text, style=style, markup=False, soft_wrap=True)


def paragraph(text: str) -> None:
    console().print(Text(text))


def table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], *, title: str = "", cut: str = "") -> None:
    """`columns`: key in a row -> heading. Long cells wrap; those of the column `cut` end where the terminal does."""
    cells = [{key: shown(row.get(key)) for key in columns} for row in rows]
    screen = console()
    taken = sum(max([len(columns[key]), *(len(row[key]) for row in cells)]) + 1 for key in columns if key != cut)
    drawn = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for key, heading in columns.items():
        if key == cut:
            drawn.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=max(10, screen.width - taken - len(columns)))
        else:
            drawn.add_column(heading, overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row.values()))
    screen.print(drawn)


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str, ensure_ascii=False))


def shown(value: Any) -> str:
    """A cell: numbers to four digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value)
    return str(value)


def seeds(value: float, per_seed: Sequence[float], unit: str) -> str:
    """A measured value with its unit and, over several seeds, its range."""
    text = with_unit(shown(value), unit)
    return text if len(per_seed) < 2 else f"{text} ({shown(min(per_seed))} to {shown(max(per_seed))})"


def result(value: Any, in_json: bool) -> None:
    """What a paper's verb returned: a path, a mapping of numbers, a table as a list of mappings, or text."""
    if in_json:
        as_json(value)
    elif isinstance(value, Mapping):
        table({"name": "", "value": ""}, [{"name": name, "value": item} for name, item in value.items()])
    elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        table({key: str(key) for key in dict.fromkeys(key for row in value for key in row)}, value)
    elif isinstance(value, list | tuple):
        for item in value:
            line(str(item))
    elif value is not None:
        line(str(value))


@contextlib.contextmanager
def clean_stdout(wanted: bool) -> Iterator[None]:
    """With --json only the JSON goes to standard output; what work prints on the way goes to standard error."""
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def report_line(folder: Path) -> str:
    report = folder / "report.html"
    return f"report: {report}" if report.is_file() else f"folder: {folder}"
