"""The vocabulary: Card, Paper, Recipe, Run, Claim, Measured. Nothing here knows a particular paper, network or torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paperworks.config import from_plain, override, to_plain
from paperworks.errors import InputError

VerbName = Literal["sample", "predict", "evaluate", "export"]
Kind = Literal["exact", "capability", "direction", "cluster"]


@dataclass(frozen=True)
class ClaimText:
    """A sentence of the paper's abstract with its number."""

    id: str
    statement: str
    paper_value: str
    """as printed by the paper; "-" when the sentence carries no number"""
    unit: str
    kind: Kind


@dataclass(frozen=True)
class Card:
    """What there is to know about a paper before any of its code exists."""

    slug: str
    title: str
    year: int
    arxiv: str
    family: str
    official: str
    summary: str
    claims: tuple[ClaimText, ...] = ()


# --- recipes and runs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One resumable piece of a recipe. `work(config, run)` may be called again after a crash: it continues from what it
    left in `run.folder / name` and returns what the report and the command line should know (JSON-ready numbers)."""

    name: str
    work: Callable[[Any, Run], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Recipe:
    """Everything one run needs: a configuration (a frozen dataclass tree) and the stages that carry it out in order."""

    config: Any
    stages: Sequence[Stage]


class Run:
    """A folder that holds one execution of a recipe: run.json, a folder per stage, pictures, report.html.

    run.json is rewritten atomically after each stage, so a killed run continues with the first unfinished stage.
    """

    def __init__(self, folder: Path, record: dict[str, Any]):
        self.folder = folder
        self.record = record

    @classmethod
    def create(cls, folder: Path, *, slug: str, recipe: str, arguments: Mapping[str, Any], config: Any, command: str) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(
            folder,
            {
                "slug": slug,
                "recipe": recipe,
                "arguments": dict(arguments),
                "config": to_plain(config),
                "command": command,
                "versions": versions(),
                "stages": {},
            },
        )
        run.save()
        return run

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        path = Path(folder) / "run.json"
        if not path.is_file():
            raise InputError(f"{folder} is not a run: it has no run.json (paperworks run <paper> makes one)")
        return cls(path.parent, json.loads(path.read_text()))

    @property
    def slug(self) -> str:
        return self.record["slug"]

    @property
    def finished(self) -> bool:
        return bool(self.record.get("finished"))

    def stage_folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage returned."""
        try:
            return self.record["stages"][stage]["result"]
        except KeyError:
            raise InputError(f"stage {stage!r} of {self.folder} has not finished; the same command resumes it") from None

    def config(self, kind: type) -> Any:
        return from_plain(kind, self.record["config"])

    def execute(self, recipe: Recipe, say: Callable[[str], None] = print) -> None:
        """Carry out the stages that are not finished yet."""
        done = self.record["stages"]
        for number, stage in enumerate(recipe.stages, 1):
            if stage.name in done:
                say(f"[{number}/{len(recipe.stages)}] {stage.name}: already done")
                continue
            say(f"[{number}/{len(recipe.stages)}] {stage.name}")
            started = time.monotonic()
            result = stage.work(recipe.config, self)
            done[stage.name] = {"seconds": round(time.monotonic() - started, 1), "result": dict(result or {})}
            self.save()
        self.record["finished"] = True
        self.save()

    def save(self) -> None:
        write_json(self.folder / "run.json", self.record)


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What a claim function found. It reports numbers; whether the claim holds is computed from them by the claim's rule."""

    value: float
    """the number to print beside the paper's, in the claim's unit"""
    scale: str
    """data, model size and budget at which it was measured ("any" when it does not depend on them)"""
    detail: str = ""
    """one sentence for the reader: the baseline, both sides' numbers"""
    per_seed: Sequence[float] = ()
    """the value for each seed, in order"""
    seeds: Sequence[int] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """everything else worth keeping, JSON-ready"""

    @property
    def spread(self) -> tuple[float, float] | None:
        return (min(self.per_seed), max(self.per_seed)) if self.per_seed else None


Rule = Callable[[Measured], bool]


def at_least(threshold: float) -> Rule:
    """Every seed (or the single value) reaches the threshold."""
    return lambda m: all(value >= threshold for value in (m.per_seed or [m.value]))


def at_most(threshold: float) -> Rule:
    return lambda m: all(value <= threshold for value in (m.per_seed or [m.value]))


def equals(expected: float, relative: float = 0.0, absolute: float = 0.0) -> Rule:
    return lambda m: all(abs(v - expected) <= max(absolute, relative * abs(expected)) for v in (m.per_seed or [m.value]))


@dataclass
class Bench:
    """Where and how a claim is measured: claims of one paper share the folder, so that trained networks are reused."""

    folder: Path
    seeds: Sequence[int] = (0, 1, 2)
    data: str = "default"
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Claim:
    text: ClaimText
    measure: Callable[[Bench], Measured]
    rule: Rule
    rule_text: str
    """the rule in words, printed with the verdict: "at least 5x on every seed" """


Verdict = Literal["holds", "does not hold", "direction holds", "direction does not hold", "not measured yet"]


def verdict(claim: Claim, measured: Measured) -> Verdict:
    """Computed, never typed in. A cluster-sized claim can at best have its direction confirmed here."""
    held = claim.rule(measured)
    if claim.text.kind in ("exact", "capability"):
        return "holds" if held else "does not hold"
    return "direction holds" if held else "direction does not hold"


# --- papers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A named network of the paper; `build()` must work on the meta device, so that counting needs no memory."""

    build: Callable[..., Any]
    parameters: float | None = None
    """millions, as the sheet or paper prints them; a test compares"""
    note: str = ""


class Paper:
    """A card with the code behind it: recipes, claims, named variants and verbs on finished runs."""

    def __init__(self, card: Card, *, parts: Sequence[Any] = (), variants: Mapping[str, Variant] | None = None):
        self.card = card
        self.parts = tuple(parts)
        self.variants = dict(variants or {})
        self.recipes: dict[str, Callable[..., Recipe]] = {}
        self.claims: dict[str, Claim] = {}
        self.verbs: dict[str, Callable[..., Any]] = {}

    @property
    def slug(self) -> str:
        return self.card.slug

    def recipe(self, name: str) -> Callable[[Callable[..., Recipe]], Callable[..., Recipe]]:
        """Registers `function(data="default", ...) -> Recipe`; its keyword arguments become flags of `paperworks run`."""
        return self._register(self.recipes, name)

    def verb(
        self, name: Literal["sample", "predict", "evaluate", "export"]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Registers `function(run, ...)`; its keyword arguments become flags of `paperworks <verb> RUN`."""
        return self._register(self.verbs, name)

    def claim(
        self,
        id: str,
        *,
        rule: Rule,
        says: str,
        statement: str | None = None,
        paper_value: str = "-",
        unit: str = "-",
        kind: Kind = "exact",
    ) -> Callable[[Callable[[Bench], Measured]], Callable[[Bench], Measured]]:
        """Registers the measurement of the card's claim `id`, or of a further one when `statement` is given."""
        known = {text.id: text for text in self.card.claims}
        text = known.get(id) if statement is None else ClaimText(id, statement, paper_value, unit, kind)
        if text is None:
            raise KeyError(f"{self.slug} has no claim {id!r}; its card lists {', '.join(known)}")

        def register(function: Callable[[Bench], Measured]) -> Callable[[Bench], Measured]:
            self.claims[id] = Claim(text, function, rule, says)
            return function

        return register

    def build_recipe(self, name: str, arguments: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
        if name not in self.recipes:
            raise InputError(f"{self.slug} has no recipe {name!r}; there are {', '.join(self.recipes)}")
        recipe = self.recipes[name](**arguments)
        return Recipe(override(recipe.config, overrides), recipe.stages)

    def _register(self, table: dict[str, Callable[..., Any]], name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            table[name] = function
            return function

        return register


# --- small helpers shared by runs and results ---------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Written aside, then renamed: a reader never sees half a file."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


def versions() -> dict[str, str]:
    """Versions that a measured number depends on, read from package metadata (nothing is imported)."""
    import importlib.metadata
    import platform

    found = {"python": platform.python_version()}
    for name in ("paperworks", "torch", "torchvision", "timm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
