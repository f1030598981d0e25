"""Numbers, table cells and configurations as a page shows them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from paperworks.errors import InputError

SHORT = 24
"""letters up to which a cell stays on one line"""
FOLDED = 40
"""rows from which a table is folded"""
NUMBER = re.compile(r"[-+±−]?\d[\d.,]*(e[-+]?\d+)?( ?(%|x|×|[a-zA-Zµ]{1,3}))?")


def shown(value: Any) -> str:
    """A value as it should be read: four digits, thousands apart, yes and no."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> dict[str, Any]:
    """What the template needs of a table. A column that holds nothing but numbers is set to the right."""
    for row in rows:
        if len(row) != len(columns):
            raise InputError(f"table {title!r}: a row has {len(row)} cells for {len(columns)} columns")
    texts = [[shown(cell) for cell in row] for row in rows]
    numeric = [_all_numbers([row[number] for row in texts]) for number in range(len(columns))]
    cells = [[(text, _look(text, right)) for text, right in zip(row, numeric)] for row in texts]
    head = [(str(name), "number" if right else "") for name, right in zip(columns, numeric)]
    return {
        "kind": "table",
        "title": title,
        "columns": head,
        "rows": cells,
        "note": note,
        "wide": len(columns) > 3,
        "folded": len(rows) > FOLDED,
    }


def settings(plain: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """A plain configuration as groups [(name, [(path as `--set` takes it, value)])]; the first group is what is not nested."""
    top = plain if isinstance(plain, Mapping) else {"value": plain}
    loose = [(name, _value(value)) for name, value in top.items() if not _nested(value)]
    groups = [("", loose)] if loose else []
    return groups + [(name, list(_flat(value, name))) for name, value in top.items() if _nested(value)]


def _flat(plain: Mapping[str, Any], path: str) -> Any:
    for name, value in plain.items():
        if _nested(value):
            yield from _flat(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", _value(value)


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _all_numbers(texts: Sequence[str]) -> bool:
    return any(text not in ("-", "") for text in texts) and all(t in ("-", "") or NUMBER.fullmatch(t) for t in texts)


def _look(text: str, right: bool) -> str:
    return "number" if right else "short" if len(text) <= SHORT else "long"
