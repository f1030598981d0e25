"""Configuration is plain frozen dataclasses: how they become JSON, come back, and take `path.to.field=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from paperworks.errors import InputError

T = TypeVar("T")


def to_plain(config: Any) -> Any:
    """A dataclass tree as JSON-ready dicts, lists and scalars."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def from_plain(kind: type[T], plain: Any) -> T:
    """Back from `to_plain`; unknown fields and wrong types raise InputError naming the field."""
    _reject_unknown(kind, plain)
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {first['msg']} (got {first['input']!r})") from None


def override(config: T, assignments: Iterable[str]) -> T:
    """`override(config, ["model.dim=256", "scales=[1,2,4]"])`: values are JSON where they parse as such, else text."""
    plain = to_plain(config)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise InputError(f"--set {assignment}: write it as path.to.field=value")
        *parents, last = path.strip().split(".")
        target = plain
        for depth, name in enumerate([*parents, last]):
            if not isinstance(target, dict) or name not in target:
                known = list(target) if isinstance(target, dict) else []
                raise InputError(f"no field {'.'.join([*parents, last][: depth + 1])!r}{_nearest(name, known)}")
            if depth < len(parents):
                target = target[name]
        try:
            target[last] = json.loads(text)
        except json.JSONDecodeError:
            target[last] = text
    return from_plain(type(config), plain)


def _reject_unknown(kind: Any, plain: Any, path: str = "") -> None:
    if not (dataclasses.is_dataclass(kind) and isinstance(plain, dict)):
        return
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    for name, value in plain.items():
        if name not in fields:
            raise InputError(f"no field {path + name!r}{_nearest(name, list(fields))}")
        _reject_unknown(hints[name], value, f"{path}{name}.")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known)}" if known else "; nothing lies below it"
