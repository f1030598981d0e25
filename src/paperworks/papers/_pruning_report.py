"""RD-prune's report: what pruning costs by each scheme, how the layers share it, and whether distortions add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from paperworks.compression.distortion import Curve
from paperworks.paper import Run
from paperworks.papers._pruning_problem import PruningConfig
from paperworks.papers._pruning_stages import read_curves
from paperworks.reporting import Report


def report_stage(config: PruningConfig, run: Run) -> Mapping[str, Any]:
    trained, measured, compared, made = (run.result(name) for name in ("train", "curves", "compare", "prune"))
    headline = "accuracy" if "accuracy" in compared["dense"] else "agreement"
    report = Report("Layer-adaptive pruning", f"{config.network.name} on {config.data}")
    report.text(_summary(config, trained, measured, made, headline))
    report.curves(
        "What one shot of pruning costs, without fine-tuning",
        accuracy_curves(compared, headline),
        xlabel="share of weights removed",
        ylabel=f"{headline} in percent",
        caption=f"Dense: {compared['dense'][headline]:.1f} %. All schemes remove the smallest weights of a layer; they differ "
        "in how much of each layer goes.",
    )
    report.table("The same in numbers", *scheme_table(compared, headline))
    report.figure(
        "How the layers share it",
        ratio_bars(compared, [curve.layer.name for curve in read_curves(run.folder)]),
        caption="Share of each layer that is removed, in module order.",
    )
    report.figure(
        "Distortion of the output when one layer alone is pruned",
        curve_figure(read_curves(run.folder), config),
        caption="Squared change of the logits; early layers dark, late layers light. Their differences are what the "
        "allocation uses.",
    )
    report.table(
        "Do single-layer distortions add up?",
        ["sparsity", "all layers together", "sum of the layers alone", "ratio"],
        [_additivity_row(row["sparsity"], row[config.curves.measure]) for row in compared["additivity"]],
        note="The method assumes a ratio near 1; it grows with the noise and falls once the output is destroyed.",
    )
    if made["iterations"]:
        report.table("Pruning in steps with fine-tuning", *iteration_table(made["iterations"], headline))
    report.table("Layers of the pruned network", made["columns"], made["rows"])
    if trained["skipped"]:
        report.table("Skipped images", ["what", "why"], trained["skipped"])
    report.recipe(config, run.record["command"])
    return {"report": str(report.save(run.folder / "report.html"))}


def _summary(
    config: PruningConfig, trained: Mapping[str, Any], measured: Mapping[str, Any], made: Mapping[str, Any], headline: str
) -> str:
    before, after = trained["evaluation"][headline], made["evaluation"][headline]
    how = "pruned in steps with fine-tuning" if made["iterations"] else "pruned in one shot, not fine-tuned"
    return (
        f"The network has {trained['parameters']:,} parameters, {trained['prunable']:,} of them prunable weights in "
        f"{trained['layers']} layers; dense it reaches {before:.1f} % {headline} on {trained['test_images']} test images. "
        f"The curves of all layers took the equivalent of {measured['forward_passes']:,} image passes over "
        f"{measured['images']} images. {how.capitalize()}, it keeps {1 - made['sparsity']:.1%} of its weights and "
        f"{made['flops_left']:.1%} of its multiply-adds, and reaches {after:.1f} %. Its file has {made['bytes']:,} bytes "
        f"instead of {made['dense_bytes']:,}."
    )


def accuracy_curves(compared: Mapping[str, Any], headline: str) -> dict[str, tuple[list[float], list[float]]]:
    """scheme -> (sparsities, values), the dense network at 0."""
    found = {}
    for scheme, points in compared["schemes"].items():
        reached = [(float(s), numbers[headline]) for s, numbers in points.items() if headline in numbers]
        found[scheme] = ([0.0, *(s for s, _ in reached)], [compared["dense"][headline], *(value for _, value in reached)])
    return found


def scheme_table(compared: Mapping[str, Any], headline: str) -> tuple[list[str], list[list[str]]]:
    schemes = list(compared["schemes"])
    sparsities = list(next(iter(compared["schemes"].values())))
    rows = []
    for sparsity in sparsities:
        numbers = [compared["schemes"][scheme][sparsity].get(headline) for scheme in schemes]
        rows.append([f"{float(sparsity):.0%}", *("cannot" if value is None else f"{value:.1f}" for value in numbers)])
    return ["removed", *schemes], rows


def iteration_table(iterations: Sequence[Mapping[str, Any]], headline: str) -> tuple[list[str], list[list[str]]]:
    columns = ["step", "removed", "multiply-adds left", f"{headline} after pruning", "after fine-tuning", "joint / summed"]
    rows = []
    for step in iterations:
        predicted = step["predicted"]
        rows.append(
            [
                str(step["number"]),
                f"{step['sparsity']:.1%}",
                f"{step['flops_left']:.1%}",
                f"{step['pruned'][headline]:.1f}",
                f"{step['tuned'][headline]:.1f}",
                f"{step['joint'] / predicted:.2f}" if predicted else "",
            ]
        )
    return columns, rows


def _additivity_row(sparsity: float, row: Mapping[str, float]) -> list[str]:
    ratio = f"{row['joint'] / row['summed']:.2f}" if row["summed"] else ""
    return [f"{sparsity:.0%}", f"{row['joint']:.3g}", f"{row['summed']:.3g}", ratio]


def ratio_bars(compared: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """Bars per layer: RD-prune and its nearest rivals at the middle sparsity."""
    sparsities = list(compared["ratios"]["rd"])
    middle = sparsities[len(sparsities) // 2]
    shown = [scheme for scheme in ("rd", "lamp", "erk", "global") if middle in compared["ratios"].get(scheme, {})]
    figure = Figure(figsize=(max(7.0, 0.28 * len(names)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(shown)
    for i, scheme in enumerate(shown):
        positions = [x + (i - (len(shown) - 1) / 2) * width for x in range(len(names))]
        axes.bar(positions, compared["ratios"][scheme][middle], width, label=scheme)
    axes.set_ylabel(f"share removed, {float(middle):.0%} in total")
    axes.set_ylim(0, 1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.legend(ncols=len(shown), loc="upper left", fontsize=8)
    return figure


def curve_figure(curves: Sequence[Curve], config: PruningConfig) -> Figure:
    import matplotlib

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"]
    for i, curve in enumerate(curves):
        values = curve.values(config.curves.measure)
        points = [(ratio, value) for ratio, value in zip(curve.ratios, values) if value > 0]
        axes.plot(*zip(*points), color=colours(i / max(1, len(curves) - 1)), linewidth=1) if points else None
    axes.set_yscale("log")
    axes.set_xlabel("share of the layer removed")
    axes.set_ylabel(f"{config.curves.measure} squared change")
    return figure
