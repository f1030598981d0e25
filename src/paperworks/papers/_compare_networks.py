"""`paperworks compare --task classification`: the small networks of several papers, trained on the same images for the same
time, with what each costs to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from paperworks import papers
from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.analysis.live_memory import peak_memory
from paperworks.analysis.pareto import Point, pareto_front
from paperworks.analysis.timing import alternate
from paperworks.errors import InputError, nearest
from paperworks.paper import Paper, Recipe, Run, Stage, first_process
from paperworks.papers._classification import (
    DIGITS,
    ClassifierConfig,
    Trained,
    evaluate,
    linear_baseline,
    train,
)
from paperworks.reporting import Report
from paperworks.reporting.labels import label_points
from paperworks.reporting.style import styled
from paperworks.training import read_metrics

PACE = (6, 24)
"""steps of the two short trainings that tell how many fit a budget"""


@dataclass(frozen=True)
class CompareNetworksConfig:
    data: str = "default"
    budget: float = 60.0
    """seconds that each network may train"""
    networks: tuple[str, ...] = ()
    seed: int = 0


def candidates() -> dict[str, Paper]:
    """Papers whose laptop recipe trains a classifier of pixels (ByteFormer, which reads files, compares itself with pixels)."""
    found = {}
    for slug in papers.cards():
        if not papers.is_built(slug):
            continue
        paper = papers.load(slug)
        recipe = paper.recipes.get("laptop")
        if recipe is not None and type(recipe().config) is ClassifierConfig:
            found[slug] = paper
    return found


def compare(data: str, budget: float, networks: tuple[str, ...], seed: int) -> Recipe:
    known = candidates()
    for name in networks:
        if name not in known:
            raise InputError(f"no network {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    config = CompareNetworksConfig(data, budget, networks or tuple(known), seed)
    stages = [Stage("linear", train_linear)]
    for slug in config.networks:
        stages.append(Stage(slug, partial(_network_stage, slug)))
    return Recipe(config, (*stages, Stage("report", write_report)))


# --- stages -----------------------------------------------------------------------------------------------------------


def _own(config: CompareNetworksConfig, slug: str) -> ClassifierConfig:
    found = papers.load(slug).recipes["laptop"](data=config.data, seed=config.seed).config
    assert isinstance(found, ClassifierConfig)
    return found


def train_linear(config: CompareNetworksConfig, run: Run) -> Mapping[str, Any]:
    return linear_baseline(_own(config, config.networks[0]), run)


def _network_stage(slug: str, config: CompareNetworksConfig, run: Run) -> Mapping[str, Any]:
    return train_network(config, run, slug)


def train_network(config: CompareNetworksConfig, run: Run, slug: str) -> Mapping[str, Any]:
    """The paper's own laptop training with as many steps as fit the budget."""
    own, folder = _own(config, slug), run.stage_folder(slug)
    steps = max(20, round(config.budget / _seconds_a_step(own, folder / "pace", slug)))
    own = replace(own, training=replace(own.training, steps=steps, eval_every=max(1, steps // 4)))
    mine = Run.open(folder / "run", slug=slug, recipe="compare", arguments={}, config=own, command="paperworks compare")
    mine.execute(Recipe(own, (Stage("train", train), Stage("evaluate", evaluate))), say=_quiet)
    scores, stage = mine.result("evaluate"), mine.result("train")
    return {
        "top1": scores["top1"],
        "loss": scores["loss"],
        "steps": steps,
        "seconds": round(stage["seconds"], 1),
        "name": own.network.name,
        "size": own.image_size,
        "source": stage["source"],
    } | _cost(mine, own)


def _seconds_a_step(own: ClassifierConfig, folder: Path, slug: str) -> float:
    """Of a few steps more than a few others, so that what only the first ones cost does not count."""
    seconds = {}
    for steps in PACE:
        short = replace(own, training=replace(own.training, steps=steps, eval_every=None, checkpoint_every=10**9))
        probe = Run.open(folder / f"{steps} steps", slug=slug, recipe="pace", arguments={}, config=short, command="")
        probe.execute(Recipe(short, (Stage("train", train),)), say=_quiet)
        seconds[steps] = probe.result("train")["seconds"]
    few, many = PACE
    return max(seconds[many] - seconds[few], seconds[many] / 10) / (many - few)


def _cost(run: Run, config: ClassifierConfig) -> dict[str, float]:
    trained = Trained.of(run)
    model: nn.Module = trained.objective.model
    image = torch.zeros(1, 3, config.image_size, config.image_size)
    return {
        "parameters": count_parameters(model),
        "macs": count_macs(model, image),
        "memory": peak_memory(lambda: model(image)),
    }


def _quiet(text: str) -> None:
    """A comparison says one line per network, not per stage of each."""


# --- the page ---------------------------------------------------------------------------------------------------------


def write_report(config: CompareNetworksConfig, run: Run) -> Mapping[str, Any]:
    """Times all networks in turns, so that whatever slows the machine slows all."""
    if not first_process():
        return {}
    prepared, images = {}, {}
    for slug in config.networks:
        mine = Run.load(run.folder / slug / "run")
        side = run.result(slug)["size"]
        images[slug] = torch.rand(8, 3, side, side)
        prepared[slug] = Trained.of(mine).fast(images[slug])
    with torch.inference_mode():
        works = {slug: (lambda slug=slug: prepared[slug](images[slug])) for slug in config.networks}
        times = {slug: 1e3 * median(found) for slug, found in alternate(works, rounds=7).items()}
    linear = run.result("linear")["top1"]
    found = {slug: run.result(slug) | {"milliseconds": times[slug]} for slug in config.networks}
    points = [Point(part["milliseconds"], part["top1"], slug) for slug, part in found.items()]
    front = {point.name for point in pareto_front(points)}
    rows = table_rows(found, front)
    first = found[config.networks[0]]
    where = "handwritten digits" if config.data in DIGITS else first["source"]
    page = Report(
        f"{len(rows)} recognition networks on {where}", f"{config.budget:g} seconds of training each, the papers' own settings"
    )
    page.figures({"best top-1": f"{max(part['top1'] for part in found.values()):.1%}", "linear classifier": f"{linear:.1%}"})
    page.table("Same images, same time", COLUMNS, rows, note="In the last column: no other network is both faster and better.")
    page.figure("Accuracy against time", pareto_figure(points), caption="The line joins networks that no other one beats.")
    page.curves("While training", _curves(config, run), xlabel="step", ylabel="top-1")
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [COLUMNS, ["---"] * len(COLUMNS), *rows])
    (run.folder / "table.md").write_text(text + f"\n\nA linear classifier on pixels reaches {linear:.1%}.\n")
    return {"networks": found, "linear": linear, "front": sorted(front)}


COLUMNS = ["network", "top-1", "steps", "parameters", "operations (M)", "ms for 8 images", "memory of an image (MB)", "front"]


def table_rows(found: Mapping[str, Mapping[str, Any]], front: set[str]) -> list[list[str]]:
    """By accuracy, the best first."""
    ordered = sorted(found.items(), key=lambda pair: -pair[1]["top1"])
    return [
        [
            slug,
            f"{part['top1']:.1%}",
            str(part["steps"]),
            f"{part['parameters'] / 1e6:.2f} M",
            f"{part['macs'] / 1e6:.1f}",
            f"{part['milliseconds']:.1f}",
            f"{part['memory'] / 1e6:.2f}",
            "yes" if slug in front else "",
        ]
        for slug, part in ordered
    ]


def pareto_figure(points: list[Point]) -> Any:
    """Errors on a logarithmic axis, the best at the top: among good networks a point of accuracy is much."""
    from matplotlib.ticker import LogLocator, NullLocator

    places = {point.name: (point.cost, max(100 * (1 - point.accuracy), 0.05)) for point in points}
    with styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.2, 4.4))
        front = [places[point.name] for point in pareto_front(points)]
        axes.plot(*zip(*front), alpha=0.5)
        axes.scatter(*zip(*places.values()), s=18)
        axes.set(xlabel="ms for 8 images, prepared for inference", ylabel="test error (%)", xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        axes.margins(x=0.12, y=0.08)
        axes.invert_yaxis()
        label_points(axes, places)
    return figure


def _curves(config: CompareNetworksConfig, run: Run) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for slug in config.networks:
        rows = [row for row in read_metrics(run.folder / slug / "run" / "train") if "eval/top1" in row]
        found[slug] = [row["step"] for row in rows], [row["eval/top1"] for row in rows]
    return found
