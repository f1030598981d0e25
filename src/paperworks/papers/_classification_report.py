"""The page that a run of a recognition network leaves: accuracy, curves, confusion, what it got right and wrong, speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from paperworks.analysis.timing import alternate
from paperworks.data import ImageSource, Transformed
from paperworks.data.transforms import to_float
from paperworks.paper import Run, first_process
from paperworks.papers._classification import ClassifierConfig, Trained, open_split
from paperworks.reporting import Report
from paperworks.reporting.style import styled


def write_report(title: str, config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """report.html of a run whose stages train, linear and evaluate are done."""
    if not first_process():
        return {}
    trained, test = Trained.of(run), open_split(config, "test")
    stage, scores, linear = run.result("train"), run.result("evaluate"), run.result("linear")
    saved = torch.load(run.folder / "evaluate" / "scores.pt", weights_only=True)
    assert test.labels is not None

    speed = latency(trained, batch=min(32, len(test)))
    name, size = config.network.name, config.image_size
    report = Report(title, f"{name} on {stage['source']}: {stage['images']} images, {stage['classes']} classes, {size} pixels")
    report.figures(
        {
            "top-1": f"{scores['top1']:.1%}",
            "linear classifier on pixels": f"{linear['top1']:.1%}",
            "parameters": f"{stage['parameters'] / 1e6:.2f} M",
            "training": f"{stage['seconds'] / 60:.1f} min",
        }
    )
    report.table(
        "Accuracy on held-out images",
        ["classifier", "top-1", "top-5", "loss"],
        [
            [name, f"{scores['top1']:.2%}", f"{scores['top5']:.2%}", f"{scores['loss']:.3f}"],
            ["logistic regression on pixels", f"{linear['top1']:.2%}", "", ""],
            ["always the most frequent class", f"{scores['majority']:.2%}", "", ""],
        ],
        note=f"{scores['images']} images that training never saw. The regression had {linear['images']} training images of "
        f"{linear['pixels']} x {linear['pixels']} pixels.",
    )
    metrics = run.folder / "train" / "metrics.jsonl"
    report.metrics("Accuracy on held-out images while training", metrics, ["eval/top1"])
    report.metrics("Loss: training (mixed and smoothed images), held-out images", metrics, ["loss", "eval/loss"])
    report.figure("Confusion", confusion_figure(saved["confusion"], trained.classes), caption=_confused(saved, trained.classes))
    for heading, rows in _examples(saved, test.labels):
        if len(rows):
            shown = views(test, trained, rows)
            said = [_label(trained, saved, test.labels, int(row)) for row in rows]
            report.images(heading, shown, columns=8, labels=said)
    report.table(
        "Speed",
        ["form", "ms for a batch", "images a second"],
        [[form, f"{1e3 * seconds:.1f}", f"{speed['batch'] / seconds:.0f}"] for form, seconds in speed["seconds"].items()],
        note=f"Batches of {speed['batch']} on {torch.get_num_threads()} threads. {speed['report']}",
    )
    if stage["skipped"]:
        report.table("Images that could not be read", ["file", "reason"], stage["skipped"])
    report.recipe(config, run.record["command"])
    report.save(run.folder / "report.html")
    return {
        "top-1 (%)": 100 * scores["top1"],
        "linear classifier on pixels (%)": 100 * linear["top1"],
        "test images": scores["images"],
        "parameters (M)": stage["parameters"] / 1e6,
        "milliseconds": {form: 1e3 * seconds for form, seconds in speed["seconds"].items()},
    }


def views(source: ImageSource, trained: Trained, rows: Tensor) -> Tensor:
    """Images as the network sees them, float [N, 3, H, W] in [0, 1]."""
    data = Transformed(source, trained.transform(), seed=0)
    return torch.stack([to_float(data[int(row)]["image"].as_subclass(Tensor)) for row in rows])


def confusion_figure(confusion: Tensor, classes: list[str]) -> Any:
    """Rows: what an image is; columns: what was said; shares of each row."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    count = len(classes)
    with styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(4.6, 4.2))
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        axes.set(xlabel="said", ylabel="is")
        if count <= 20:
            axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
            axes.set_yticks(range(count), classes)
            for row in range(count):
                for column in range(count):
                    if confusion[row, column]:
                        colour = "white" if shares[row, column] > 0.5 else "black"
                        number = str(int(confusion[row, column]))
                        axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=7)
        axes.grid(False)
    return figure


def latency(trained: Trained, batch: int, rounds: int = 5) -> dict[str, Any]:
    """Median seconds of a batch, as it is and prepared for inference."""
    images = torch.rand(batch, 3, trained.size, trained.size)
    fast = trained.fast(example=images)
    assert fast.report is not None
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "float32": trained.objective.logits,
        f"prepared, {fast.report.precision}": fast,
    }
    with torch.inference_mode():
        times = alternate({form: partial(logits, images) for form, logits in forms.items()}, rounds)
    medians = {form: median(seconds) for form, seconds in times.items()}
    return {"batch": batch, "seconds": medians, "report": str(fast.report).replace("\n  - ", "; ")}


def _confused(saved: dict[str, Tensor], classes: list[str]) -> str:
    """The pairs of classes that are mixed up most."""
    wrong = saved["confusion"].clone().fill_diagonal_(0)
    most = wrong.flatten().topk(min(3, wrong.numel()))
    pairs = [
        f"{classes[int(index) // len(classes)]} taken for {classes[int(index) % len(classes)]} ({int(number)}x)"
        for number, index in zip(most.values, most.indices)
        if number
    ]
    return ("Most often " + ", ".join(pairs) + ".") if pairs else "No image was mistaken."


def _examples(saved: dict[str, Tensor], labels: Tensor) -> list[tuple[str, Tensor]]:
    """Some images that were recognised, of all classes in turn, and the mistakes that it was surest of."""
    wrong = (saved["said"] != labels).nonzero()[:, 0]
    surest = wrong[saved["confidence"][wrong].argsort(descending=True)][:16]
    right: list[int] = []
    for label in labels.unique().tolist():
        right += ((labels == label) & (saved["said"] == labels)).nonzero()[:, 0][:2].tolist()
    return [("Recognised", torch.tensor(right[:16])), ("Mistaken, the surest first", surest)]


def _label(trained: Trained, saved: dict[str, Tensor], labels: Tensor, row: int) -> str:
    said, truth = trained.classes[int(saved["said"][row])], trained.classes[int(labels[row])]
    share = f"{float(saved['confidence'][row]):.0%}"
    return f"{said} {share}" if said == truth else f"{said} {share}, is {truth}"
