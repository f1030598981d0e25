"""Flags from functions: the parameters of a recipe or verb, with their types, defaults and documented meaning, become flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import tyro

Slug = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAPER")]

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def parse(prog: str, argv: Sequence[str], *functions: Callable[..., Any], skip: int = 0) -> list[dict[str, Any]]:
    """The arguments of each function as read from `argv`; `skip` leaves out the first parameters of the last function.

    Exits with status 2 and tyro's message on a usage error, with 0 after printing the help.
    """
    collectors = [_collector(function, skip if function is functions[-1] else 0) for function in functions]
    names = [name for collector in collectors for name in inspect.signature(collector).parameters]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise TypeError(f"{prog}: the flag --{min(twice)} is defined by both of {', '.join(f.__name__ for f in functions)}")
    if len(collectors) == 1:
        return [tyro.cli(collectors[0], args=argv, prog=prog, config=CONFIG)]
    groups: dict[str, Any] = {}
    for collector in collectors:
        title = collector.__name__ if collector.__name__.isidentifier() else "its"
        groups[title if title not in groups else f"{title}_"] = Annotated[dict, tyro.conf.arg(constructor=collector)]
    together = _with_parameters(groups, {}, name="together", doc=inspect.getdoc(functions[-1]))
    return list(tyro.cli(together, args=argv, prog=prog, config=CONFIG).values())


def described(function: Callable[..., Any], skip: int = 0) -> tuple[str, str]:
    """(flags with defaults, first paragraph of the documentation), for tables."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    doc = inspect.getdoc(function) or ""
    return "  ".join(_flag(parameter) for parameter in parameters), " ".join(doc.split("\n\n")[0].split())


def _flag(parameter: inspect.Parameter) -> str:
    name, default = parameter.name.replace("_", "-"), parameter.default
    if default is inspect.Parameter.empty:
        return f"--{name} (required)"
    if default is True:
        return f"--no-{name}"
    if default is None or default is False or default == ():
        return f"--{name}"
    return f"--{name} {' '.join(map(str, default)) if isinstance(default, tuple | list) else default}"


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def _collector(function: Callable[..., Any], skip: int) -> Callable[..., dict[str, Any]]:
    """A function with the same parameters that only returns what it was given."""
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    kinds = {parameter.name: hints.get(parameter.name, str) for parameter in parameters}
    given = {parameter.name: parameter.default for parameter in parameters}
    return _with_parameters(
        kinds, given, name=function.__name__.strip("_").removesuffix("_flags"), doc=inspect.getdoc(function)
    )


def _with_parameters(
    kinds: dict[str, Any], given: dict[str, Any], *, name: str, doc: str | None
) -> Callable[..., dict[str, Any]]:
    def collect(**arguments: Any) -> dict[str, Any]:
        return arguments

    keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    parameters = [inspect.Parameter(n, keyword, default=given.get(n, empty), annotation=kind) for n, kind in kinds.items()]
    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collect.__annotations__ = dict(kinds)
    collect.__name__, collect.__doc__ = name, doc
    return collect
