"""The papers: a card for each of the 88, and for those that are built a module `papers/<slug>.py` with a variable `paper`."""

from __future__ import annotations

import functools
import importlib
import tomllib
from pathlib import Path

from paperworks.errors import InputError, nearest
from paperworks.paper import Card, ClaimText, Paper

FOLDER = Path(__file__).parent


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by slug, in alphabetical order."""
    return {path.stem: _read(path) for path in sorted((FOLDER / "cards").glob("*.toml"))}


def card(slug: str) -> Card:
    """One card; only its file is read. Raises InputError naming the nearest slug."""
    path = FOLDER / "cards" / f"{slug}.toml"
    if not path.is_file():
        known = [other.stem for other in (FOLDER / "cards").glob("*.toml")]
        raise InputError(f"no paper called {slug!r}{nearest(slug, known, '`paperworks list` shows all')}")
    return _read(path)


def is_built(slug: str) -> bool:
    """Whether the paper has code (nothing is imported)."""
    return (FOLDER / f"{slug.replace('-', '_')}.py").is_file()


def load(slug: str) -> Paper:
    """The paper with its code. Raises InputError when it is only planned."""
    found = card(slug)
    if not is_built(slug):
        raise InputError(f"{slug} ({found.title}) is planned: it has a card but no code yet")
    return importlib.import_module(f"paperworks.papers.{slug.replace('-', '_')}").paper


def _read(path: Path) -> Card:
    fields = tomllib.loads(path.read_text(encoding="utf-8"))
    claims = tuple(ClaimText(**claim) for claim in fields.pop("claims", []))
    fields["summary"] = " ".join(fields["summary"].split())
    return Card(slug=path.stem, claims=claims, **fields)
