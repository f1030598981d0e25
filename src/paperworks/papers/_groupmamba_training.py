"""GroupMamba's runs with a teacher: a small convolutional network first, then the network that learns from labels and from
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from paperworks.backbones.groupmamba import GroupMamba
from paperworks.backbones.protocol import Backbone
from paperworks.data import ImageSource, Mix, Transformed
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify, score
from paperworks.objectives.distillation import Distilled, Kind
from paperworks.paper import Run, Stage, first_process
from paperworks.papers._classification import (
    ClassifierConfig,
    NetworkConfig,
    _plain,
    _some,
    build_network,
    entry_of,
    evaluate,
    evaluation_transform,
    in_order,
    linear_baseline,
    open_split,
    save_network,
    training_transform,
)
from paperworks.papers._classification_report import write_report
from paperworks.training import Context, Fitted, Objective, fit


def distillation_stages(title: str, teacher: NetworkConfig, alpha: float, kind: Kind) -> tuple[Stage, ...]:
    return (
        Stage("linear", linear_baseline),
        Stage("teacher", partial(train_teacher, teacher)),
        Stage("train", partial(train_distilled, teacher, alpha, kind)),
        Stage("evaluate", evaluate),
        Stage("report", partial(write_report, title)),
    )


def train_teacher(teacher: NetworkConfig, config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """The teacher on the same images, as long as the student; released weights in `teacher` are where it starts."""
    source = open_split(config, "train")
    network = build_network(teacher, _count(source), config.seed)
    cfg = entry_of(config.network.name).pretrained_cfg  # both see images normalised alike
    objective = Classify(network, mean=cfg["mean"], std=cfg["std"])
    fitted = _fit(objective, config, source, run, "teacher")
    if first_process():
        averaged = fitted.averaged
        assert isinstance(averaged, Classify) and isinstance(averaged.model, Backbone)
        averaged.model.save_pretrained(run.folder / "teacher" / "model")
        return {"network": teacher.name, "top1": _top1(averaged, config, _count(source)), "seconds": fitted.seconds}
    return {}


def train_distilled(teacher: NetworkConfig, alpha: float, kind: Kind, config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """The student; keeps the averaged weights."""
    run.result("teacher")
    source = open_split(config, "train")
    knows = entry_of(teacher.name).network.from_pretrained(run.folder / "teacher" / "model")
    student = build_network(config.network, _count(source), config.seed)
    if not isinstance(student, GroupMamba):
        raise InputError(f"{config.network.name} has no second classifier for a teacher")
    cfg = entry_of(config.network.name).pretrained_cfg
    objective = Distilled(student, knows, alpha=alpha, kind=kind, mean=cfg["mean"], std=cfg["std"])
    fitted = _fit(objective, config, source, run, "train")
    if first_process():
        averaged = fitted.averaged
        assert isinstance(averaged, Distilled) and isinstance(averaged.model, Backbone)
        classes = source.classes or []
        save_network(averaged.model, classes, [{_plain(name)} for name in classes], run.folder / "train")
    return {
        "images": len(source),
        "classes": _count(source),
        "skipped": source.skipped,
        "source": source.name,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "seconds": fitted.seconds,
        "images_per_second": fitted.step * min(config.training.batch_size, len(source)) / max(fitted.seconds, 1e-9),
    }


def _fit(objective: Classify, config: ClassifierConfig, source: ImageSource, run: Run, stage: str) -> Fitted:
    augment, classes = config.augment, _count(source)

    def evaluate_now(current: Objective, ctx: Context) -> dict[str, float]:
        assert isinstance(current, Classify)
        return {"top1": _top1(current, config, classes)}

    data = Transformed(source, training_transform(config), seed=config.seed)
    mix = Mix(classes, augment.mixup, augment.cutmix, augment.mix_probability, 0.5, augment.smoothing)
    training = replace(config.training, batch_size=min(config.training.batch_size, len(source)))
    return fit(objective, data, training, run.stage_folder(stage), batch_transform=mix, evaluate=evaluate_now, label=stage)


@torch.inference_mode()
def _top1(objective: Classify, config: ClassifierConfig, classes: int) -> float:
    plain = evaluation_transform(config.image_size, config.crop_pct, config.augment.kind)
    training = objective.training
    objective.eval()
    found = score(objective.logits, in_order(_some(open_split(config, "test"), config.watch), plain), classes).top1
    objective.train(training)
    return found


def _count(source: ImageSource) -> int:
    if len(source.classes or []) < 2:
        raise InputError(f"{source.name} needs at least two classes, one sub-folder for each")
    return len(source.classes or [])
