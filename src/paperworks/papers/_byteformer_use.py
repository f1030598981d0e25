"""What a run of ByteFormer is good for: classes of your files, accuracy on yours, and the page of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.data import open_images
from paperworks.data.file_bytes import EncodedImages, open_files
from paperworks.data.transforms import to_float
from paperworks.paper import Run, first_process
from paperworks.papers._byteformer_files import (
    Files,
    FilesConfig,
    fitting,
    numbered,
    open_source,
    source_of,
    together,
    written,
)
from paperworks.papers._byteformer_recipe import Trained, held_out
from paperworks.papers._classification_report import _confused, confusion_figure
from paperworks.reporting import Report

ABOUT = {
    "raw": "files as they lie",
    "wav": "WAV files",
    "tiff": "TIFF files",
    "png": "uncompressed PNG files",
    "jpeg": "JPEG files",
    "fchw": "bare pixels, channel by channel",
    "fhwc": "bare pixels",
}


def own_files(trained: Trained, files: str, raw: bool, labels: Literal["required", "none"], split: Any = "all") -> Files:
    """A user's files: as they lie when the network was trained so or `raw`, else images or recordings that are written in its
    format. Those for which it has no positions are left out and listed."""
    config, network = trained.config, trained.network
    kernel = network.stem.kernel
    found: Files
    if raw and config.format != "raw":
        least = math.ceil(kernel / config.changes.keep)  # what a camera leaves out shortens a file before the network sees it
        found = open_files(files, split=split, labels=labels, least_bytes=least, changes=config.changes)
    elif config.of_images:
        found = written(config, open_images(files, split=split, labels=labels, channels=config.channels))
    else:
        found = open_source(config, files, split, labels, kernel)
    return fitting(found, network)


@torch.inference_mode()
def predict(trained: Trained, files: str, top: int, raw: bool) -> list[dict[str, Any]]:
    """One row per file with its `top` classes."""
    found = own_files(trained, files, raw, "none")
    source, top = source_of(found), min(top, len(trained.classes))
    rows: list[dict[str, Any]] = []
    for batch in numbered(found, together(trained.network, found, 16)):
        best = trained.network(batch["image"]).softmax(1).topk(top, dim=1)
        for shares, numbers in zip(best.values.tolist(), best.indices.tolist()):
            said = [f"{trained.classes[number]} {share:.1%}" for number, share in zip(numbers, shares)]
            rows.append({"file": source.key(len(rows))} | {f"{place}.": text for place, text in enumerate(said, 1)})
    return rows + [{"file": key, "1.": f"not used: {reason}"} for key, reason in source.skipped]


def evaluate_on(trained: Trained, data: str, split: Literal["train", "test", "all"], raw: bool) -> dict[str, Any]:
    files = own_files(trained, data, raw, "required", split)
    found = trained.score(files)
    return {
        "data": source_of(files).name,
        "files": len(files),
        "skipped": len(source_of(files).skipped),
        "top-1 %": round(100 * found.top1, 2),
        "top-5 %": round(100 * found.top5, 2),
        "loss": round(found.loss, 4),
    }


# --- the page ---------------------------------------------------------------------------------------------------------


def write_report(config: FilesConfig, run: Run) -> Mapping[str, Any]:
    """report.html of a run whose stages are done."""
    if not first_process():
        return {}
    trained = Trained.of(run)
    test = held_out(config, trained.network)
    stage, scores, linear, pixels = (run.result(name) for name in ("train", "evaluate", "linear", "pixels"))
    saved = torch.load(run.folder / "evaluate" / "scores.pt", weights_only=True)

    what = f"{stage['files']} {ABOUT[config.format]} of up to {stage['longest']} bytes, {stage['classes']} classes"
    report = Report("ByteFormer", f"{stage['source']}: {what}")
    report.figures(
        {
            "top-1 from bytes": f"{scores['top1']:.1%}",
            **({"from pixels": f"{pixels['top1']:.1%}"} if pixels else {}),
            "linear classifier": f"{linear['top1']:.1%}",
            "parameters": f"{stage['parameters'] / 1e6:.2f} M",
            "training": f"{stage['seconds'] / 60:.1f} min",
        }
    )
    of_what = "pixels" if config.of_images else "how often each byte occurs"
    rows = [["ByteFormer on bytes", f"{scores['top1']:.2%}", f"{scores['loss']:.3f}", f"{stage['parameters'] / 1e6:.2f}"]]
    if pixels:
        millions = f"{pixels['parameters'] / 1e6:.2f}"
        rows.append(["transformer on patches of pixels", f"{pixels['top1']:.2%}", f"{pixels['loss']:.3f}", millions])
    rows.append([f"logistic regression on {of_what}", f"{linear['top1']:.2%}", "", ""])
    rows.append(["always the most frequent class", f"{scores['majority']:.2%}", "", ""])
    report.table(
        "Accuracy on held-out files",
        ["classifier", "top-1", "loss", "M parameters"],
        rows,
        note=f"{scores['files']} files that training never saw.",
    )
    metrics = run.folder / "train" / "metrics.jsonl"
    report.metrics("Accuracy on held-out files while training", metrics, ["eval/top1"])
    report.metrics("Loss", metrics, ["loss", "eval/loss"])
    report.figure("Confusion", confusion_figure(saved["confusion"], trained.classes), caption=_confused(saved, trained.classes))
    _examples(report, trained, test, saved)
    report.table("What the network is given", ["file", "bytes", "the first 24"], _dumped(test), note=_changed(config))
    skipped = dict.fromkeys((key, reason) for key, reason in [*stage["skipped"], *scores.get("skipped", [])])
    if skipped:
        report.table("Files that were not used", ["file", "reason"], [list(row) for row in skipped])
    report.recipe(config, run.record["command"])
    report.save(run.folder / "report.html")
    return {}


def _examples(report: Report, trained: Trained, test: Files, saved: dict[str, Tensor]) -> None:
    """The surest mistakes: as pictures where there are some, else by name."""
    labels, said = saved["labels"], saved["said"]
    wrong = (said != labels).nonzero()[:, 0]
    rows = wrong[saved["confidence"][wrong].argsort(descending=True)][:16].tolist()
    if not rows:
        return
    words = [
        f"{trained.classes[int(said[row])]} {float(saved['confidence'][row]):.0%}, is {trained.classes[int(labels[row])]}"
        for row in rows
    ]
    if isinstance(test, EncodedImages):
        shown = torch.stack([to_float(test.images[row]["image"].as_subclass(Tensor)) for row in rows])
        report.images("Mistaken, the surest first", shown, columns=8, labels=words)
    else:
        report.table("Mistaken, the surest first", ["file", "said"], [[test.key(row), word] for row, word in zip(rows, words)])


def _dumped(test: Files) -> list[list[Any]]:
    rows = []
    for index in range(min(4, len(test))):
        sample = test[index]
        first = " ".join(f"{value:02x}" for value in sample["bytes"][:24].tolist())
        rows.append([sample["key"], len(sample["bytes"]), first])
    return rows


def _changed(config: FilesConfig) -> str:
    changes, words = config.changes, []
    if changes.order != "none":
        words.append(f"bytes in another order ({changes.order})")
    if changes.keep != 1:
        words.append(f"a camera that keeps {changes.keep:.0%} of the values")
    if changes.noise:
        words.append(f"noise of up to {changes.noise}")
    if changes.permute:
        words.append("values replaced by a fixed permutation")
    return ("Changed: " + ", ".join(words) + ".") if words else "As written, header included."
