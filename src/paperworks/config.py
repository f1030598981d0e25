"""Configuration is plain frozen dataclasses: how they become JSON, come back, and take `path.to.field=value` overrides."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from paperworks.errors import InputError, nearest

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
    """`override(config, ["model.dim=256", "scales=[1,2,4]"])`: values are JSON where they parse as such, else text.

    A field that holds text takes a JSON-like value as text when nothing else fits: `data=2024` names a folder.
    """
    assignments = list(assignments)
    try:
        return from_plain(type(config), _assign(to_plain(config), assignments, _json_or_text))
    except InputError as error:
        text_kept = _assign(
            to_plain(config), assignments, lambda text, old: text if type(old) is str else _json_or_text(text, old)
        )
        try:
            return from_plain(type(config), text_kept)
        except InputError:
            raise error from None


def first_difference(there: Any, here: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Where two plain trees first differ: (path of the field, its value there, its value here); None when they are equal.
    A field that one side lacks counts as None there."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*here, *there]):
            found = first_difference(there.get(name), here.get(name), f"{path}.{name}" if path else name)
            if found:
                return found
        return None
    # compared as text too, so that NaN equals NaN
    return None if there == here or json.dumps(there) == json.dumps(here) else (path, there, here)


def _assign(plain: Any, assignments: list[str], value: Callable[[str, Any], Any]) -> Any:
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise InputError(f"--set {assignment}: write it as path.to.field=value")
        names = path.strip().split(".")
        target = plain
        for depth, name in enumerate(names, 1):
            known = list(target) if isinstance(target, dict) else []
            if name not in known:
                raise InputError(
                    f"no field {'.'.join(names[:depth])!r}{nearest(name, known, '' if known else 'nothing lies below it')}"
                )
            if depth < len(names):
                target = target[name]
        target[names[-1]] = value(text, target[names[-1]])
    return plain


def _json_or_text(text: str, old: Any) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _reject_unknown(kind: Any, plain: Any, path: str = "") -> None:
    if not (dataclasses.is_dataclass(kind) and isinstance(plain, dict)):
        return
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    for name, value in plain.items():
        if name not in fields:
            raise InputError(f"no field {path + name!r}{nearest(name, fields)}")
        _reject_unknown(hints[name], value, f"{path}{name}.")
