"""The page of a search: rewards over evaluations, the cells that were found, and how they do when trained for longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from paperworks.backbones.genotype import CellPlan
from paperworks.paper import Run
from paperworks.papers._nasnet_search import LAST, SearchConfig
from paperworks.reporting import Report
from paperworks.reporting.style import COLOURS, styled
from paperworks.search.cell_space import CellSpace

NAMES = {"ppo": "controller with PPO", "random": "random search"}


def report_stage(config: SearchConfig, run: Run) -> Mapping[str, Any]:
    found, longer = run.result("search"), run.result("longer")
    rewards: dict[str, list[float]] = found["rewards"]
    space = CellSpace(config.blocks)
    report = Report("NASNet search", f"cells of {config.blocks} blocks on {config.data}, {config.image_size} pixels")
    ends = {name: mean(values[-LAST:]) for name, values in rewards.items()}
    report.figures(
        {
            f"mean of the last {LAST}, controller": f"{ends['ppo']:.1%}",
            f"mean of the last {LAST}, random": f"{ends['random']:.1%}",
            "best, controller": f"{max(rewards['ppo']):.1%}",
            "best, random": f"{max(rewards['random']):.1%}",
        }
    )
    report.text(
        f"The space has {found['space']:.2g} pairs of cells. Each search judged {config.evaluations} of them by training a "
        f"network of {config.num_cells + config.reductions} cells with {config.filters} filters for {config.child.steps} steps "
        f"of {config.child.batch_size} images; the reward is its accuracy on {found['held_out']} images that it never saw. "
        f"The {config.top} best of each were trained for {config.longer.steps} steps and judged on the same images; what came "
        "out first among the controller's is in cell.json."
    )
    with styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.2, 3.8))
        draw_rewards(axes, rewards)
        report.figure("Reward over evaluations", figure, "Points: children. Lines: the mean of the last 10 of a search.")
        best = space.genotype(longer["chosen"]["ppo"])
        for word, plan in (("normal", best.normal), ("reduction", best.reduction)):
            report.figure(
                f"The controller's best {word} cell",
                cell_figure(pyplot, plan),
                "From left to right. State 0 is the current map, state 1 the previous one; what no block reads is concatenated."
                + (" Operations on states 0 and 1 halve the map." if word == "reduction" else ""),
            )
    report.table(
        "The best of each search, trained for longer",
        ["found by", "accuracy", "loss", "parameters"],
        [_cells(NAMES[name], row) for name, rows in longer["tried"].items() for row in rows],
        note=f"From the highest reward down; {config.longer.steps} steps, judged on the held-out images that gave the rewards.",
    )
    report.table(
        "On test images",
        ["cell", "accuracy", "loss", "parameters"],
        [_cells(name, row) for name, row in longer["final"].items()],
        note=f"Trained on all training images for {config.longer.steps} steps, the same small network around each cell. "
        "NASNet-A was found on CIFAR-10; it returns here what no block reads, as during a search.",
    )
    report.recipe(config, run.record["command"])
    return {"report": str(report.save(run.folder / "report.html"))}


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    return [name, f"{row['reward']:.1%}", f"{row['loss']:.3f}", f"{row['parameters']:,.0f}"]


def draw_rewards(axes: Any, rewards: Mapping[str, Sequence[float]]) -> None:
    for colour, (name, values) in zip(COLOURS, rewards.items()):
        numbers = range(1, len(values) + 1)
        axes.plot(numbers, values, ".", color=colour, alpha=0.45, markersize=5)
        line = [mean(values[max(0, end - 10) : end]) for end in numbers]
        axes.plot(numbers, line, color=colour, label=NAMES.get(name, name))
    axes.set(xlabel="evaluations", ylabel="accuracy on held-out images")
    axes.legend(loc="lower right")


WIDE, HIGH = 3.4, 2.0
"""between two columns and two rows of blocks, in units of the drawing"""


def cell_figure(pyplot: Any, plan: CellPlan) -> Any:
    """A cell as a graph: states, two operations for each block, how they are combined, what is returned."""
    places = block_places(plan)
    columns, rows = max(x for x, _ in places[2:]) + 1, max(y for _, y in places) + 1
    figure, axes = pyplot.subplots(figsize=(min(11.0, 1.9 * (columns + 1)), max(2.6, 0.95 * rows)))
    ends = []
    for state, (column, row) in enumerate(places):
        x, y = column * WIDE, -row * HIGH
        if state < 2:
            _box(axes, x, y, f"state {state}", "#ffffff", wide=1.3)
            ends.append((x + 0.65, y))
            continue
        block = plan.blocks[state - 2]
        for (source, operation), shift in zip(block.branches, (0.42, -0.42)):
            _arrow(axes, ends[source], (x - 0.95, y + shift))
            _box(axes, x, y + shift, operation.replace("_", " "), "#ffe9a8")
            _arrow(axes, (x + 0.95, y + shift), (x + 1.25, y), head=False)
        sign = "+" if block.combine == "add" else "||"
        axes.text(x + 1.4, y, sign, ha="center", va="center", bbox={"boxstyle": "circle,pad=0.2", "fc": "#b9e3b4", "lw": 0.8})
        axes.text(x + 1.4, y + 0.42, str(state), ha="center", va="bottom", fontsize=8)
        ends.append((x + 1.6, y))
    last = columns * WIDE + 0.3
    middle = -(rows - 1) * HIGH / 2
    _box(axes, last, middle, "concat", "#cfe3f6", wide=1.3)
    for state in plan.concat:
        _arrow(axes, ends[state], (last - 0.65, middle), faint=True)
    axes.set(xlim=(-0.9, last + 0.9), ylim=(-(rows - 1) * HIGH - 1.0, 1.0))
    axes.set_xticks([last * tick / 20 for tick in range(21)])  # so many that pages for phones do not squeeze the boxes
    axes.axis("off")
    return figure


def block_places(plan: CellPlan) -> list[tuple[int, int]]:
    """(column, row) of every state: a block stands to the right of all that it reads."""
    depth, rows = [0, 0], {0: 2}
    places = [(0, 0), (0, 1)]
    for block in plan.blocks:
        depth.append(1 + max(depth[state] for state, _ in block.branches))
        row = rows.get(depth[-1], 0)
        rows[depth[-1]] = row + 1
        places.append((depth[-1], row))
    return places


def _box(axes: Any, x: float, y: float, words: str, colour: str, wide: float = 1.9) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x - wide / 2, y - 0.3), wide, 0.6, boxstyle=style, fc=colour, ec="#555555", lw=0.8, zorder=2)
    )
    axes.text(x, y, words, ha="center", va="center", fontsize=8)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], head: bool = True, faint: bool = False) -> None:
    colour = "#9ab4cc" if faint else "#555555"
    style = {"arrowstyle": "-|>" if head else "-", "color": colour, "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style, zorder=1)
