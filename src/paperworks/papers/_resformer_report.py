"""The page of a ResFormer run: accuracy by test size beside the plain ViT's, then what every classifier's page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from paperworks.paper import Run, first_process
from paperworks.papers._classification import ClassifierConfig, Trained, open_split
from paperworks.papers._classification_report import _confused, _examples, _label, confusion_figure, latency, views
from paperworks.papers._resformer_training import IMAGES
from paperworks.reporting import Report


def write_report(sizes: tuple[int, ...], config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """report.html of a run whose other stages are done."""
    if not first_process():
        return {}
    trained, test = Trained.of(run), open_split(config, "test")
    stage, scores, linear = run.result("train"), run.result("evaluate"), run.result("linear")
    ours, plain = run.result("resolutions")["top1"], run.result("plain")
    saved = torch.load(run.folder / "evaluate" / "scores.pt", weights_only=True)
    assert test.labels is not None

    speed = latency(trained, batch=min(32, len(test)))
    trained_at = ", ".join(map(str, sizes))
    what = f"{config.network.name} on {stage['source']}: {stage['images']} images, {stage['classes']} classes"
    report = Report("ResFormer", f"{what}, trained at {trained_at} pixels at once")
    report.figures(
        {
            "top-1": f"{scores['top1']:.1%}",
            "linear classifier on pixels": f"{linear['top1']:.1%}",
            "parameters": f"{stage['parameters'] / 1e6:.2f} M",
            "training": f"{stage['seconds'] / 60:.1f} min",
        }
    )
    add_curve(report, sizes, ours, plain["top1"], min(IMAGES, len(test)), stage["image_passes"])
    report.table(
        f"Accuracy on held-out images at {config.image_size} pixels",
        ["classifier", "top-1", "top-5", "loss"],
        [
            [config.network.name, f"{scores['top1']:.2%}", f"{scores['top5']:.2%}", f"{scores['loss']:.3f}"],
            ["logistic regression on pixels", f"{linear['top1']:.2%}", "", ""],
            ["always the most frequent class", f"{scores['majority']:.2%}", "", ""],
        ],
        note=f"{scores['images']} images that training never saw. The regression had {linear['images']} training images of "
        f"{linear['pixels']} x {linear['pixels']} pixels.",
    )
    metrics = run.folder / "train" / "metrics.jsonl"
    report.metrics("Accuracy on held-out images while training", metrics, ["eval/top1"])
    report.metrics("Loss by size, the consistency term included", metrics, [f"loss{size}" for size in sizes])
    report.metrics("Consistency between neighbouring sizes", metrics, ["consistency"])
    report.figure("Confusion", confusion_figure(saved["confusion"], trained.classes), caption=_confused(saved, trained.classes))
    for heading, rows in _examples(saved, test.labels):
        if len(rows):
            said = [_label(trained, saved, test.labels, int(row)) for row in rows]
            report.images(heading, views(test, trained, rows), columns=8, labels=said)
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
    return {"milliseconds": {form: 1e3 * seconds for form, seconds in speed["seconds"].items()}}


def add_curve(
    report: Report, sizes: tuple[int, ...], ours: Mapping[str, float], plain: Mapping[str, float], images: int, passes: int
) -> None:
    """Accuracy by resolution as a plot and as numbers."""
    xs = [int(size) for size in ours]
    names = {"ResFormer": ours, f"plain ViT trained at {sizes[0]} only": plain}
    series = {name: (xs, [100 * found[str(x)] for x in xs]) for name, found in names.items()}
    caption = (
        f"Both networks have the same width and depth and were trained with as many steps and {passes} image passes. The ViT's "
        f"learned positions are resized bicubically. {images} held-out images per size."
    )
    report.curves("Accuracy by test size", series, xlabel="pixels", ylabel="top-1 %", caption=caption)
    rows = [
        [
            f"{x}{' (trained)' if x in sizes else ''}",
            f"{x / sizes[0]:.2f}x",
            f"{ours[str(x)]:.1%}",
            f"{plain[str(x)]:.1%}",
            f"{100 * (ours[str(x)] - plain[str(x)]):+.1f}",
        ]
        for x in xs
    ]
    report.table("Accuracy by test size in numbers", ["pixels", "of the largest", "ResFormer", "plain ViT", "points"], rows)
