"""RD-prune's report: what pruning costs by each scheme, how the layers share it, and whether distortions add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paperworks.compression.distortion import Curve
from paperworks.paper import Run
from paperworks.papers._pruning_problem import PruningConfig
from paperworks.papers._pruning_stages import read_curves
from paperworks.reporting import Report
from paperworks.reporting.style import styled

BARS = 40
"""layers up to which each gets labelled bars; beyond that lines over the layer's number"""


def report_stage(config: PruningConfig, run: Run) -> Mapping[str, Any]:
    trained, measured, compared, made = (run.result(name) for name in ("train", "curves", "compare", "prune"))
    headline = "accuracy" if "accuracy" in compared["dense"] else "agreement"
    curves = read_curves(run.folder)
    report = Report("Layer-adaptive pruning", f"{config.network.name} on {config.data}")
    report.figures(
        {
            f"{headline}, dense": f"{trained['evaluation'][headline]:.1f} %",
            f"{headline}, pruned": f"{made['evaluation'][headline]:.1f} %",
            "weights removed": f"{made['sparsity']:.1%}",
            "multiply-adds left": f"{made['flops_left']:.1%}",
            "file": f"{made['bytes'] / 1e6:.2f} of {made['dense_bytes'] / 1e6:.2f} MB",
        }
    )
    report.text(_summary(trained, measured, made))
    report.curves(
        "What one shot of pruning costs, without fine-tuning",
        accuracy_curves(compared, headline),
        xlabel="share of weights removed",
        ylabel=f"{headline} in percent",
        caption="All schemes remove the smallest weights of a layer; they differ in how much of each layer goes. "
        "rd is this paper's.",
    )
    report.table("The same in numbers", *scheme_table(compared, headline))
    if made["iterations"]:
        report.table("Pruned in steps with fine-tuning", *iteration_table(made["iterations"], headline))
    with styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
        middle = draw_ratios(axes, compared, [curve.layer.name for curve in curves])
        report.figure(
            "How the layers share it", figure, f"Share of each layer that goes when {middle:.0%} of all go, in module order."
        )
        figure, axes = pyplot.subplots()
        draw_curves(axes, pyplot.get_cmap("viridis"), curves, config)
        report.figure(
            "Change of the output when one layer alone is pruned",
            figure,
            "A line per layer, from the first (dark) to the last (light). The allocation is computed from these.",
        )
    report.table(
        "Do single-layer distortions add up?",
        ["removed", "all layers together", "sum of the layers alone", "ratio"],
        [_additivity_row(row["sparsity"], row[config.curves.measure]) for row in compared["additivity"]],
        note="The method assumes a ratio near 1. It drifts away as the change of the output grows.",
    )
    report.table("Layers of the pruned network", made["columns"], made["rows"])
    if trained["skipped"]:
        report.table("Images left out", ["file", "why"], trained["skipped"])
    report.recipe(config, run.record["command"])
    return {"report": str(report.save(run.folder / "report.html"))}


def _summary(trained: Mapping[str, Any], measured: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    how = "Pruned in steps with fine-tuning" if made["iterations"] else "Pruned in one shot without fine-tuning"
    return (
        f"{trained['parameters']:,} parameters, {trained['prunable']:,} of them prunable weights in {trained['layers']} "
        f"layers. {how}. The curves of all layers took {measured['forward_passes']:,} passes of single images through parts "
        f"of the network ({measured['images']} calibration images). Measured on {trained['test_images']} test images."
    )


def accuracy_curves(compared: Mapping[str, Any], headline: str) -> dict[str, tuple[list[float], list[float]]]:
    """scheme -> (sparsities, values), the dense network at 0."""
    found = {}
    for scheme, points in compared["schemes"].items():
        reached = [(float(s), numbers[headline]) for s, numbers in points.items() if headline in numbers]
        found[scheme] = ([0.0, *(s for s, _ in reached)], [compared["dense"][headline], *(value for _, value in reached)])
    return found


def scheme_table(compared: Mapping[str, Any], headline: str) -> tuple[list[str], list[list[Any]], str]:
    """(columns, rows, note) with a row per sparsity."""
    schemes = list(compared["schemes"])
    rows = []
    for sparsity in compared["schemes"]["rd"]:
        numbers = [compared["schemes"][scheme][sparsity].get(headline) for scheme in schemes]
        rows.append([f"{float(sparsity):.0%}", *("-" if value is None else f"{value:.1f}" for value in numbers)])
    unreached = {by["error"] for points in compared["schemes"].values() for by in points.values() if "error" in by}
    return ["removed", *schemes], rows, ". ".join(sorted(unreached))


def iteration_table(iterations: Sequence[Mapping[str, Any]], headline: str) -> tuple[list[str], list[list[str]]]:
    columns = ["step", "removed", "multiply-adds left", f"{headline} after pruning", "after fine-tuning"]
    rows = [
        [
            str(step["number"]),
            f"{step['sparsity']:.1%}",
            f"{step['flops_left']:.1%}",
            f"{step['pruned'][headline]:.1f}",
            f"{step['tuned'][headline]:.1f}",
        ]
        for step in iterations
    ]
    return columns, rows


def _additivity_row(sparsity: float, row: Mapping[str, float]) -> list[str]:
    ratio = f"{row['joint'] / row['summed']:.2f}" if row["summed"] else "-"
    return [f"{sparsity:.0%}", f"{row['joint']:.3g}", f"{row['summed']:.3g}", ratio]


def draw_ratios(axes: Any, compared: Mapping[str, Any], names: Sequence[str]) -> float:
    """The schemes' shares per layer at the middle sparsity, which is returned."""
    sparsities = list(compared["ratios"]["rd"])
    middle = sparsities[len(sparsities) // 2]
    shown = [scheme for scheme in ("rd", "lamp", "erk", "global") if middle in compared["ratios"].get(scheme, {})]
    for i, scheme in enumerate(shown):
        shares = compared["ratios"][scheme][middle]
        if len(names) > BARS:
            axes.plot(range(1, len(names) + 1), shares, label=scheme, linewidth=1.2)
        else:
            width = 0.8 / len(shown)
            axes.bar([x + (i - (len(shown) - 1) / 2) * width for x in range(len(names))], shares, width, label=scheme)
    if len(names) > BARS:
        axes.set_xlabel("layer")
    else:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set(ylabel="share removed", ylim=(0, 1.12))
    axes.legend(ncols=len(shown), loc="upper left")
    return float(middle)


def draw_curves(axes: Any, colours: Any, curves: Sequence[Curve], config: PruningConfig) -> None:
    for i, curve in enumerate(curves):
        points = [(r, value) for r, value in zip(curve.ratios, curve.values(config.curves.measure)) if value > 0]
        if points:
            axes.plot(*zip(*points), color=colours(i / max(1, len(curves) - 1)), linewidth=1)
    axes.set_yscale("log")
    what = "largest per-sample" if config.curves.measure == "worst" else "mean"
    axes.set(xlabel="share of the layer removed", ylabel=f"{what} squared change")
