"""The vocabulary: Card, Paper, Recipe, Run, Claim, Measured. Nothing here knows a particular paper, network or torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from paperworks.config import first_difference, from_plain, override, to_plain
from paperworks.errors import InputError, nearest

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
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot hold a run: {error.strerror or error}") from None
        run = cls(
            folder,
            {
                "slug": slug,
                "recipe": recipe,
                "arguments": to_jsonable_python(dict(arguments)),
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
        try:
            record = json.loads(path.read_text())
            missing = {"slug", "recipe", "arguments", "config", "stages"} - set(record)
        except (ValueError, TypeError):
            missing = {"readable JSON"}
        if missing:
            raise InputError(f"{path} is not the record of a run: it lacks {', '.join(sorted(missing))}")
        return cls(path.parent, record)

    @classmethod
    def open(cls, folder: Path, *, slug: str, recipe: str, arguments: Mapping[str, Any], config: Any, command: str) -> Run:
        """The run that the same recipe and configuration made in `folder` before, or a new one when there is none.

        InputError when the folder holds anything else. A run that stopped before it wrote a file of its own is replaced.
        """
        new: dict[str, Any] = {"slug": slug, "recipe": recipe, "arguments": arguments, "config": config, "command": command}
        if not _holds_run(folder):
            return cls.create(folder, **new)
        run = cls.load(folder)
        wanted = {"slug": slug, "recipe": recipe, "config": to_plain(config), "arguments": to_jsonable_python(dict(arguments))}
        found = first_difference({name: run.record[name] for name in wanted}, json.loads(json.dumps(wanted)))
        if not found:
            return run
        if run.is_untouched():
            return cls.create(folder, **new)
        where, there, here = found
        raise InputError(
            f"{folder} holds a run with another {where.removeprefix('config.')} ({json.dumps(there)}, now {json.dumps(here)}): "
            f"give another folder with --out, or --fresh to move on to {next_free(folder)}"
        )

    @property
    def slug(self) -> str:
        return self.record["slug"]

    @property
    def finished(self) -> bool:
        return bool(self.record.get("finished"))

    @property
    def seconds(self) -> dict[str, float]:
        """What each finished stage took, in its last sitting."""
        return {name: stage["seconds"] for name, stage in self.record["stages"].items()}

    def is_untouched(self) -> bool:
        """Whether nothing has been written but the record itself: no stage has finished or left a file."""
        files = (path.name for path in self.folder.rglob("*") if path.is_file())
        return not self.record["stages"] and not any(name not in ("run.json", LOCK) for name in files)

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
        """Carry out the stages that are not finished yet. InputError when another process is at work in the folder."""
        done = self.record["stages"]
        with _alone_in(self.folder):
            self.record["sittings"] = self.record.get("sittings", 0) + 1
            self.save()
            for number, stage in enumerate(recipe.stages, 1):
                if stage.name in done:
                    say(f"[{number}/{len(recipe.stages)}] {stage.name}: already done")
                    continue
                say(f"[{number}/{len(recipe.stages)}] {stage.name}")
                started = time.monotonic()
                result = stage.work(recipe.config, self)
                seconds = round(time.monotonic() - started, 1)
                done[stage.name] = {"seconds": seconds, "result": to_jsonable_python(dict(result or {}))}
                self.save()
            self.record["finished"] = True
            self.save()

    def save(self) -> None:
        if first_process():
            write_json(self.folder / "run.json", self.record)


LOCK = ".in-use"


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two commands at work in one folder would overwrite each other's files. The lock goes with the process, however it ends.
    Where the system or the file system has no such locks there is no protection."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    if not first_process():
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another command is at work in {folder}: wait for it, or give another folder with --out"
            ) from None
        except OSError:
            pass
        yield


def _holds_run(folder: Path) -> bool:
    """False when there is nothing yet; InputError when there is something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; a run needs a folder of its own: give another with --out")
    names = {path.name for path in folder.iterdir()} - {LOCK, "run.json.part"}
    if names and "run.json" not in names:
        raise InputError(f"{folder} holds other files but no run; a run needs a folder of its own: give another with --out")
    return bool(names)


def next_free(folder: Path) -> Path:
    """`folder` when nothing is there, else the first free one of folder-2, folder-3, ..."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What a claim function found. It reports numbers; whether the claim holds is computed from them by the claim's rule."""

    value: float
    """the number to print beside the paper's, in the claim's unit or in `unit`"""
    scale: str
    """data, model size and budget at which it was measured ("any" when it does not depend on them)"""
    detail: str = ""
    """one sentence for the reader: the baseline, both sides' numbers"""
    per_seed: Sequence[float] = ()
    """the value for each seed, in order"""
    seeds: Sequence[int] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """everything else worth keeping, JSON-ready"""
    unit: str | None = None
    """of the value, where it is not the claim's: a ratio of distances where the paper prints a distance"""

    @property
    def spread(self) -> tuple[float, float] | None:
        return (min(self.per_seed), max(self.per_seed)) if self.per_seed else None


Rule = Callable[[Measured], bool]


def at_least(threshold: float) -> Rule:
    """Every seed (or the single value) reaches the threshold."""
    return lambda m: all(value >= threshold for value in (m.per_seed or [m.value]))


def at_most(threshold: float) -> Rule:
    return lambda m: all(value <= threshold for value in (m.per_seed or [m.value]))


def value_above(threshold: float) -> Rule:
    """The value, usually the mean of the seeds, is above the threshold."""
    return lambda m: m.value > threshold


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
            raise InputError(f"{self.slug} has no recipe {name!r}{nearest(name, self.recipes)}")
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


def first_process() -> bool:
    """Whether this process writes the records: always, except under torchrun in all but the first."""
    return os.environ.get("RANK", "0") == "0"


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
