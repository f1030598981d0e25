"""Semi-supervised training by pseudo-labels (2103.07579, section 7): a teacher learns the labelled images and labels the
others, a student learns both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data import ImageSource, open_images
from paperworks.data.joining import joined, labelled
from paperworks.errors import InputError
from paperworks.paper import Recipe, Run, Stage, first_process
from paperworks.papers._classification import ClassifierConfig, Trained, evaluate, in_order, open_split, train_on
from paperworks.reporting import Report
from paperworks.training import read_metrics


@dataclass(frozen=True)
class PseudoConfig:
    teacher: ClassifierConfig = field(default_factory=ClassifierConfig)
    student: ClassifierConfig = field(default_factory=ClassifierConfig)
    extra: str = ""
    """images without labels; without any, those of the data that lose theirs"""
    keep: int = 200
    """labelled images, the same number of each class; 0 keeps all"""
    least: float = 0.8
    """probability of the likeliest class from which a pseudo-label is believed"""


def recipe(config: PseudoConfig) -> Recipe:
    if not config.extra and not config.keep:
        raise InputError("nothing is left without labels: name images with --extra, or keep the labels of fewer with --keep")
    stages = (
        Stage("teacher", partial(train_side, "teacher")),
        Stage("pseudo", write_labels),
        Stage("student", partial(train_side, "student")),
        Stage("report", write_report),
    )
    return Recipe(config, stages)


def parts(config: PseudoConfig) -> tuple[ImageSource, ImageSource]:
    """(labelled, unlabelled)."""
    source = open_split(config.teacher, "train")
    assert source.labels is not None and source.classes is not None
    chosen = torch.ones(len(source), dtype=torch.bool)
    if config.keep:
        each = max(1, config.keep // len(source.classes))
        generator = torch.Generator().manual_seed(config.teacher.seed)
        chosen = torch.zeros(len(source), dtype=torch.bool)
        for number in range(len(source.classes)):
            own = (source.labels == number).nonzero().squeeze(1)
            chosen[own[torch.randperm(len(own), generator=generator)[:each]]] = True
    if config.extra:
        return source.subset(chosen), open_images(config.extra, channels=3, labels="none")
    return source.subset(chosen), source.subset(~chosen)


def train_side(side: str, config: PseudoConfig, run: Run) -> Mapping[str, Any]:
    """The teacher on the labelled images, the student on all that have a label by now."""
    own = config.teacher if side == "teacher" else config.student
    known, unknown = parts(config)
    data = known
    if side == "student":
        saved = torch.load(run.folder / "pseudo" / "labels.pt")
        believed = saved["probability"] >= config.least
        data = joined(known, labelled(unknown.subset(believed), saved["label"][believed], known.classes or []))
    mine = _side(side, own, run, create=True)
    steps = (Stage("train", partial(_train, data)), Stage("evaluate", evaluate))
    mine.execute(Recipe(own, steps), say=lambda _: None)
    return {"images": len(data), "top1": mine.result("evaluate")["top1"], "seconds": mine.result("train")["seconds"]}


def _train(data: ImageSource, config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    return train_on(data, config, run)


def _side(side: str, own: ClassifierConfig, run: Run, create: bool = False) -> Run:
    folder = run.stage_folder(side) / "run"
    if not create:
        return Run.load(folder)
    return Run.open(folder, slug="resnet-rs", recipe=side, arguments={}, config=own, command="paperworks run resnet-rs")


@torch.no_grad()
def write_labels(config: PseudoConfig, run: Run) -> Mapping[str, Any]:
    """The teacher's likeliest class of every unlabelled image and how sure it is."""
    trained = Trained.of(_side("teacher", config.teacher, run))
    known, unknown = parts(config)
    blind = ImageSource(unknown.reader, name=unknown.name, positions=unknown.positions)
    rows: list[Tensor] = [
        trained.objective.logits(batch["image"].float() / 255).softmax(1) for batch in in_order(blind, trained.transform())
    ]
    probability, label = torch.cat(rows).max(1)
    torch.save({"label": label, "probability": probability}, run.stage_folder("pseudo") / "labels.pt")
    believed = probability >= config.least
    if not bool(believed.any()):
        raise InputError(f"the teacher is never as sure as {config.least}: lower it with --least, or label more images")
    found: dict[str, Any] = {"labelled": len(known), "unlabelled": len(unknown), "believed": int(believed.sum())}
    if unknown.labels is not None:
        found["believed and right"] = float((label == unknown.labels)[believed].float().mean())
    return found


def write_report(config: PseudoConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    found = {side: run.result(side) for side in ("teacher", "student")}
    numbers = run.result("pseudo")
    page = Report("ResNet-RS with pseudo-labels", f"{numbers['labelled']} labelled and {numbers['unlabelled']} other images")
    page.figures(
        {side: f"{part['top1']:.1%}" for side, part in found.items()} | {"pseudo-labels used": str(numbers["believed"])}
    )
    rows = [[side, str(part["images"]), f"{part['top1']:.1%}", f"{part['seconds']:.0f}"] for side, part in found.items()]
    note = ""
    if "believed and right" in numbers:
        note = f"{numbers['believed and right']:.1%} of the pseudo-labels are right (their images' true labels were not used)."
    page.table("Teacher and student on the same test images", ["", "images", "top-1", "seconds"], rows, note=note)
    curves = {}
    for side in found:
        rows_of = [row for row in read_metrics(run.folder / side / "run" / "train") if "eval/top1" in row]
        curves[side] = [row["step"] for row in rows_of], [row["eval/top1"] for row in rows_of]
    page.curves("While training", curves, xlabel="step", ylabel="top-1")
    known, unknown = parts(config)
    saved = torch.load(run.folder / "pseudo" / "labels.pt")
    order = saved["probability"].argsort(descending=True)
    for title, chosen in (("The teacher's surest labels", order[:10]), ("Labels it is least sure of", order[-10:])):
        square = (config.teacher.image_size,) * 2
        pictures = [F.interpolate(unknown.read(int(i))[None].float() / 255, square, mode="bilinear")[0] for i in chosen]
        names = [f"{(known.classes or [])[int(saved['label'][i])]} {saved['probability'][i]:.0%}" for i in chosen]
        page.images(title, torch.stack(pictures), labels=names)
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return {side: part["top1"] for side, part in found.items()}


def doubled(config: ClassifierConfig) -> ClassifierConfig:
    """The student's training: twice the steps, for many more images."""
    return replace(config, training=replace(config.training, steps=2 * config.training.steps))
