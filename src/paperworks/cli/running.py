"""`paperworks run` and the verbs that use what a run made."""

from __future__ import annotations

import functools
import os
import shlex
from pathlib import Path
from typing import Annotated

import tyro

from paperworks import papers
from paperworks.cli import output, records
from paperworks.cli.flags import defaults, parse
from paperworks.errors import InputError, nearest
from paperworks.paper import Paper, Run, VerbName, first_process, next_free
from paperworks.reporting import results

RUNS = Path("runs")
HELP = ("-h", "--help")


def _run_flags(
    *,
    recipe: str = "laptop",
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE ...")] = (),
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    fresh: bool = False,
) -> None:
    """Carries out a recipe, or goes on with it where it stopped.

    Args:
        recipe: which of the paper's recipes
        set: change fields of the recipe's configuration, as in model.dim=256
        out: folder of the run instead of runs/<paper>
        fresh: leave the existing run alone and start in the next free folder
    """


def _verb_flags(*, json: bool = False) -> None:
    """Uses a run.

    Args:
        json: print JSON instead of a table
    """


# --- run --------------------------------------------------------------------------------------------------------------


def run(argv: list[str]) -> int:
    if argv and argv[0] in HELP:
        parse("paperworks run PAPER", argv, _run_flags)
    slug, *words = _first_word(argv, "run", "the paper", "paperworks run var --data my/photos")
    paper = papers.load(slug)
    name = _recipe_asked_for(words)
    if name not in paper.recipes:
        raise InputError(f"{slug} has no recipe {name!r}{nearest(name, paper.recipes)}")
    options, arguments = parse(f"paperworks run {slug}", words, _run_flags, paper.recipes[name])
    overrides = [assignment for group in options["set"] for assignment in group]
    recipe = paper.build_recipe(name, arguments, overrides)

    folder = options["out"] or RUNS / (slug if name == "laptop" else f"{slug}-{name}")
    if options["fresh"]:
        folder = next_free(folder)
    command = _command(argv)
    say = output.line if first_process() else _quiet
    this = Run.open(folder, slug=slug, recipe=name, arguments=arguments, config=recipe.config, command=command)
    if this.finished:
        say(f"{folder} is finished ({output.report_line(folder)}); to start anew: paperworks run {slug} ... --fresh")
        return 0
    try:
        this.execute(recipe, say=say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; to go on: {_resuming(argv, folder, options['fresh'])}") from None
    if first_process():
        _tell(this)
        untouched = name == defaults(_run_flags)["recipe"] and not overrides and arguments == defaults(paper.recipes[name])
        if untouched and this.record["sittings"] == 1:  # else the times are not those of the recipe
            results.store_run(this)
            records.refresh_results_md()
    return 0


def _tell(run: Run) -> None:
    rows = [{"stage": name, "seconds": seconds} for name, seconds in run.seconds.items()]
    rows.append({"stage": "together", "seconds": sum(run.seconds.values())})
    output.table({"stage": "stage", "seconds": "seconds"}, rows)
    output.line(output.report_line(run.folder))


def _recipe_asked_for(words: list[str]) -> str:
    """The flags depend on the recipe, so its name is looked for before they are known."""
    for word, following in zip(words, [*words[1:], ""]):
        if word == "--recipe" and following:
            return following
        if word.startswith("--recipe="):
            return word.removeprefix("--recipe=")
    return defaults(_run_flags)["recipe"]


def _resuming(argv: list[str], folder: Path, was_fresh: bool) -> str:
    """The command that continues this run: the same one, but --fresh would move on once more."""
    if not was_fresh:
        return _command(argv)
    kept, words = [], iter(argv)
    for word in words:
        if word == "--out":
            next(words)
        elif word != "--fresh" and not word.startswith("--out="):
            kept.append(word)
    return _command([*kept, "--out", str(folder)])


def _command(argv: list[str]) -> str:
    """The whole line, with the launcher when there are several processes."""
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    program = ["torchrun", "--nproc-per-node", processes, "-m"] if processes else []
    return shlex.join([*program, "paperworks", "run", *argv])


def _quiet(line: str) -> None:
    pass


# --- verbs on runs ----------------------------------------------------------------------------------------------------


def _use_run(verb: VerbName, argv: list[str]) -> int:
    if argv and argv[0] in HELP:
        output.line(f"usage: paperworks {verb} RUN ...      (paperworks {verb} RUN --help for the flags of that run's paper)")
        return 0
    folder, *words = _first_word(argv, verb, "the run's folder", f"paperworks {verb} runs/var")
    run = _load(folder)
    paper = papers.load(run.slug)
    if verb not in paper.verbs:
        raise InputError(f"runs of {run.slug} have no verb {verb!r}{_offered(paper)}")
    options, arguments = parse(f"paperworks {verb} {folder}", words, _verb_flags, paper.verbs[verb], skip=1)
    with output.clean_stdout(options["json"]):
        value = paper.verbs[verb](run, **arguments)
    output.result(value, options["json"])
    return 0


sample = functools.partial(_use_run, "sample")
predict = functools.partial(_use_run, "predict")
evaluate = functools.partial(_use_run, "evaluate")
export = functools.partial(_use_run, "export")


def _load(folder: str) -> Run:
    if not Path(folder).exists() and folder in papers.cards():
        found = RUNS / folder
        hint = f"its run is {found}" if (found / "run.json").is_file() else f"`paperworks run {folder}` makes one"
        raise InputError(f"{folder} is a paper, not a run: {hint}")
    return Run.load(folder)


def _offered(paper: Paper) -> str:
    return f"; there are {', '.join(paper.verbs)}" if paper.verbs else ""


def _first_word(argv: list[str], verb: str, what: str, example: str) -> list[str]:
    if not argv or argv[0].startswith("-"):
        raise InputError(f"name {what} right after {verb!r}, before any flag: {example}")
    return argv
