"""ResNet-RS beside EfficientNet: both families timed in turns in one process, each network at its own image size, against the
accuracy that the papers print (figure 1 of 2103.07579)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import timm
import torch
from torch import nn

from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.analysis.pareto import Point, pareto_front
from paperworks.analysis.timing import alternate
from paperworks.backbones.registry import create
from paperworks.errors import InputError
from paperworks.paper import Recipe, Run, Stage, first_process
from paperworks.papers._recognition_claims import inference
from paperworks.reporting import Report
from paperworks.reporting.labels import label_points
from paperworks.reporting.style import styled
from paperworks.training import bf16_is_fast

RESNET_RS = {
    (50, 160): 78.8,
    (101, 160): 80.3,
    (101, 192): 81.2,
    (152, 192): 82.0,
    (152, 224): 82.2,
    (152, 256): 83.0,
    (200, 256): 83.4,
    (270, 256): 83.8,
    (350, 256): 84.0,
    (350, 320): 84.2,
    (420, 320): 84.4,
}
"""ImageNet top-1 by depth and pixels, of the released networks"""

EFFICIENTNET = {
    (0, 224): 77.1,
    (1, 240): 79.1,
    (2, 260): 80.1,
    (3, 300): 81.6,
    (4, 380): 82.9,
    (5, 456): 83.6,
    (6, 528): 84.0,
    (7, 600): 84.3,
}
"""ImageNet top-1 by number and pixels (1905.11946, table 2)"""

PAIRS = {
    "RS-50 @ 160": "B1 @ 240",
    "RS-101 @ 160": "B2 @ 260",
    "RS-101 @ 192": "B3 @ 300",
    "RS-152 @ 256": "B4 @ 380",
    "RS-200 @ 256": "B5 @ 456",
    "RS-350 @ 256": "B6 @ 528",
    "RS-350 @ 320": "B7 @ 600",
}
"""of accuracies that differ by at most 0.4 points"""


@dataclass(frozen=True)
class ParetoConfig:
    precision: Literal["auto", "32", "bf16"] = "auto"
    largest: float = 85.0
    """networks with a higher top-1 are left out"""
    rounds: int = 3


@dataclass(frozen=True)
class Candidate:
    family: str
    name: str
    pixels: int
    top1: float

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        if self.family == "ResNet-RS":
            return create(f"resnetrs{self.name.split()[0].removeprefix('RS-')}")
        return timm.create_model(f"tf_efficientnet_{self.name.split()[0].lower()}")


def candidates(largest: float = 100.0) -> list[Candidate]:
    ours = [Candidate("ResNet-RS", f"RS-{d} @ {size}", size, top1) for (d, size), top1 in RESNET_RS.items()]
    theirs = [Candidate("EfficientNet", f"B{n} @ {size}", size, top1) for (n, size), top1 in EFFICIENTNET.items()]
    return [each for each in (*ours, *theirs) if each.top1 <= largest]


def recipe(config: ParetoConfig) -> Recipe:
    if config.rounds < 1 or not candidates(config.largest):
        raise InputError(f"rounds={config.rounds}, largest={config.largest}: at least one round, and a top-1 of 77.1 or more")
    return Recipe(config, (Stage("timing", timing), Stage("report", write_report)))


def timing(config: ParetoConfig, run: Run) -> Mapping[str, Any]:
    """Both families take turns, so that whatever slows the machine slows both."""
    lower = config.precision == "bf16" or (config.precision == "auto" and bf16_is_fast())
    dtype = torch.bfloat16 if lower else torch.float32
    works: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for each in candidates(config.largest):
        model = each.build().eval()
        macs = count_macs(model, torch.zeros(1, 3, each.pixels, each.pixels))
        found[each.name] = {"parameters": count_parameters(model), "macs": macs}
        works[each.name] = inference(model, torch.channels_last, 1, each.pixels, dtype)
    for name, times in alternate(works, config.rounds, warmup=1).items():
        found[name] |= {"milliseconds": 1e3 * median(times), "times": times}
    return {"networks": found, "precision": "bfloat16" if lower else "float32"}


def pair_ratios(ours: str, theirs: str, repeats: int) -> list[float]:
    """How many times as fast ours is in bfloat16, once per repetition."""
    named = {each.name: each for each in candidates()}
    works = {
        name: inference(named[name].build(), torch.channels_last, 1, named[name].pixels, torch.bfloat16)
        for name in (ours, theirs)
    }
    times = [alternate(works, rounds=3, warmup=1) for _ in range(repeats)]
    return [median(found[theirs]) / median(found[ours]) for found in times]


def write_report(config: ParetoConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    stage, all_of_them = run.result("timing"), candidates(config.largest)
    found, precision = stage["networks"], stage["precision"]
    points = {each.name: Point(found[each.name]["milliseconds"], each.top1 / 100, each.name) for each in all_of_them}
    front = {point.name for point in pareto_front(list(points.values()))}
    ratios = {
        f"{ours}, {theirs}": found[theirs]["milliseconds"] / found[ours]["milliseconds"]
        for ours, theirs in PAIRS.items()
        if ours in found and theirs in found
    }
    page = Report(
        "ResNet-RS and EfficientNet",
        f"one image, {precision}, channels-last, {torch.get_num_threads()} threads, random weights",
    )
    if ratios:
        page.figures({pair: f"{ratio:.2f}x" for pair, ratio in ratios.items()})
    page.figure(
        "Accuracy against time", picture(all_of_them, points), caption="The accuracies are the papers', the times are ours."
    )
    rows = [
        [
            each.name,
            each.family,
            f"{each.top1:.1f}",
            f"{found[each.name]['parameters'] / 1e6:.2f} M",
            f"{found[each.name]['macs'] / 1e9:.2f}",
            f"{found[each.name]['milliseconds']:.1f}",
            "yes" if each.name in front else "",
        ]
        for each in sorted(all_of_them, key=lambda each: each.top1)
    ]
    columns = ["network", "family", "top-1 printed (%)", "parameters", "operations (G)", "ms", "front"]
    page.table("Measured in turns", columns, rows, note="In the last column: no other network is both faster and better.")
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return {
        "times as fast at equal accuracy": {pair: round(ratio, 3) for pair, ratio in ratios.items()},
        "front": sorted(front),
    }


def picture(all_of_them: list[Candidate], points: Mapping[str, Point]) -> Any:
    from matplotlib.ticker import LogLocator, NullLocator

    with styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.2, 4.4))
        for family in dict.fromkeys(each.family for each in all_of_them):
            line = sorted((points[each.name] for each in all_of_them if each.family == family), key=lambda point: point.cost)
            axes.plot([p.cost for p in line], [100 * p.accuracy for p in line], marker="o", markersize=4, label=family)
        axes.set(xlabel="ms for one image", ylabel="ImageNet top-1 printed (%)", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(loc="upper left")
        axes.margins(x=0.12, y=0.08)
        places = {each.name.replace(" @ ", "@"): each.name for each in all_of_them}
        label_points(axes, {short: (points[name].cost, 100 * points[name].accuracy) for short, name in places.items()}, 7)
    return figure
