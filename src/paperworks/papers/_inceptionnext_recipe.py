"""InceptionNeXt on the user's images: train, score beside a linear classifier on pixels, show what it gets wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.metanext import MetaNeXt
from paperworks.data import ImageSource, Mix, Transformed, open_images
from paperworks.data.transforms import Crop, Shift, eval_crop, eval_shift, imagenet_train, train_crop, train_shift
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify, Scores, score
from paperworks.paper import Run, first_process
from paperworks.reporting import Report
from paperworks.reporting.style import styled
from paperworks.training import Context, Fitted, Objective, OptimizerConfig, ScheduleConfig, TrainConfig, fit

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class NetworkConfig:
    """A MetaNeXt; the defaults suit images of 28 to 64 pixels."""

    depths: tuple[int, ...] = (2, 2, 2, 2)
    dims: tuple[int, ...] = (24, 48, 96, 192)
    patch_size: int = 2
    mixer: Literal["inception", "depthwise7", "depthwise3", "partial3"] = "inception"
    """"inception": the paper's; the others are the study's: 7x7, 3x3, and 3x3 on an eighth of the channels"""
    drop_path_rate: float = 0.05
    layer_scale: float = 1e-2


@dataclass(frozen=True)
class InceptionNeXtConfig:
    data: str = "default"
    image_size: int = 32
    channels: int = 1
    strict: bool = False
    seed: int = 0
    flip: bool = False
    """mirror training images (not for digits)"""
    augment: Literal["light", "imagenet"] = "light"
    """"light": shifts or crops; "imagenet": random resized crops, RandAugment and erasing"""
    mixup: float = 0.2
    cutmix: float = 0.5
    smoothing: float = 0.1
    network: NetworkConfig = NetworkConfig()
    training: TrainConfig = field(default_factory=lambda: training_config(600, 64, 4e-3))


def training_config(steps: int, batch_size: int, lr: float, **changes: Any) -> TrainConfig:
    """The paper's optimiser and schedule (AdamW, cosine, warm-up of a fifteenth, decay 0.05) at a given length."""
    schedule = ScheduleConfig("cosine", warmup=1 / 15)
    optimizer = OptimizerConfig("adamw", lr=lr, weight_decay=0.05, schedule=schedule)
    settings: dict[str, Any] = {"ema": 0.995, "channels_last": True, "eval_every": max(1, steps // 6)}
    return TrainConfig(steps, batch_size, optimizers={"main": optimizer}, **settings | changes)


def build_network(config: InceptionNeXtConfig, classes: int) -> nn.Module:
    """The paper's network, or ConvNeXt's mixers in the same skeleton for comparison."""
    part = config.network
    mixers: dict[str, tuple[str, dict[str, Any]]] = {
        "inception": ("inception", {}),
        "depthwise7": ("depthwise", {"kernel_size": 7}),
        "depthwise3": ("depthwise", {"kernel_size": 3}),
        "partial3": ("partial", {"kernel_size": 3, "ratio": 1 / 8}),
    }
    name, arguments = mixers[part.mixer]
    torch.manual_seed(config.seed)
    return MetaNeXt(
        in_chans=config.channels,
        num_classes=classes,
        depths=part.depths,
        dims=part.dims,
        token_mixers=name,
        mixer=arguments,
        patch_size=part.patch_size,
        drop_path_rate=part.drop_path_rate,
        ls_init_value=part.layer_scale,
    )


# --- images -----------------------------------------------------------------------------------------------------------


def open_split(config: InceptionNeXtConfig, split: Literal["train", "test"]) -> ImageSource:
    return open_images(config.data, split=split, strict=config.strict, labels="required", channels=config.channels)


def framing(config: InceptionNeXtConfig, source: ImageSource, *, train: bool) -> Any:
    """Pictures up to the wanted size are shifted on black, larger ones resized and cropped."""
    size = config.image_size
    if train and config.augment == "imagenet":
        return imagenet_train(size, flip=0.5 if config.flip else 0.0)
    if max(source[0]["image"].shape[-2:]) <= size:
        return train_shift(size, pad=size // 16, flip=config.flip) if train else eval_shift(size)
    return train_crop(size, flip=config.flip) if train else eval_crop(size)


def batches(config: InceptionNeXtConfig, source: ImageSource, size: int = 200) -> Iterator[dict[str, Tensor]]:
    """All images in order, float in [0, 1], with their labels."""
    frame = framing(config, source, train=False)
    assert isinstance(frame, Crop | Shift)
    data = Transformed(source, frame, seed=0)
    for start in range(0, len(source), size):
        part = [data[i] for i in range(start, min(start + size, len(source)))]
        yield {
            "image": torch.stack([sample["image"].as_subclass(Tensor) for sample in part]).float() / 255,
            "label": torch.tensor([sample["label"] for sample in part]),
        }


def statistics(config: InceptionNeXtConfig, source: ImageSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of up to 1000 training images; ImageNet's for the published recipe."""
    if config.augment == "imagenet":
        return IMAGENET
    some = source.subset(range(0, len(source), max(1, len(source) // 1000)))
    pixels = torch.cat([batch["image"] for batch in batches(config, some)])
    mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in deviation.tolist())


# --- stages -----------------------------------------------------------------------------------------------------------


def fit_network(config: InceptionNeXtConfig, folder: Any, label: str = "training") -> tuple[Fitted, ImageSource]:
    train, test = open_split(config, "train"), open_split(config, "test")
    classes = train.classes or []
    if len(classes) < 2:
        raise InputError(f"{config.data} has {len(classes)} class: a classifier needs at least two class folders")
    objective = Classify(
        build_network(config, len(classes)),
        smoothing=config.smoothing,
        **dict(zip(("mean", "std"), statistics(config, train))),  # type: ignore[arg-type]
    )
    size = max(len(train), config.training.batch_size)
    data = Transformed(train, framing(config, train, train=True), seed=config.seed, size=size)
    mix = Mix(len(classes), config.mixup, config.cutmix, smoothing=config.smoothing)

    def evaluate(learner: Objective, ctx: Context) -> dict[str, float]:
        assert isinstance(learner, Classify)
        scores = score(learner.logits, batches(config, test), len(classes))
        return {"top1": scores.top1, "loss": scores.loss}

    transform = mix if config.mixup or config.cutmix else None
    return fit(objective, data, config.training, folder, batch_transform=transform, evaluate=evaluate, label=label), train


def train_network(config: InceptionNeXtConfig, run: Run) -> Mapping[str, Any]:
    folder = run.stage_folder("train")
    fitted, train = fit_network(config, folder)
    best = fitted.averaged
    assert isinstance(best, Classify) and isinstance(best.model, MetaNeXt | ConvNeXt)
    if first_process():
        best.model.save_pretrained(folder / "model")
    return {
        "classes": train.classes,
        "images": len(train),
        "skipped": [list(entry) for entry in train.skipped],
        "mean": best.normalise.mean.flatten().tolist(),
        "std": best.normalise.std.flatten().tolist(),
        "parameters": sum(p.numel() for p in best.model.parameters()),
        "seconds": round(fitted.seconds, 1),
    }


def load_classifier(run: Run) -> Classify:
    """The trained network with its normalisation, in evaluation."""
    folder, trained = run.folder / "train" / "model", run.result("train")
    model = MetaNeXt.from_pretrained(folder)
    return Classify(model, mean=trained["mean"], std=trained["std"]).eval()


def linear_on_pixels(config: InceptionNeXtConfig, train: ImageSource, test: ImageSource, limit: int = 4000) -> float:
    """Top-1 of logistic regression on raw pixels: what a network has to beat to be worth its while."""
    from sklearn.linear_model import LogisticRegression

    def flat(source: ImageSource) -> tuple[np.ndarray, np.ndarray]:
        some = source.subset(range(0, len(source), max(1, math.ceil(len(source) / limit))))
        parts = list(batches(config, some))
        pixels = torch.cat([part["image"] for part in parts]).flatten(1)
        return pixels.numpy(), torch.cat([part["label"] for part in parts]).numpy()

    model = LogisticRegression(C=0.05, max_iter=200).fit(*flat(train))
    return float(model.score(*flat(test)))


def write_report(config: InceptionNeXtConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    train, test, trained = open_split(config, "train"), open_split(config, "test"), run.result("train")
    names = trained["classes"]
    scores = score(load_classifier(run).logits, batches(config, test), len(names))
    linear = linear_on_pixels(config, train, test)
    numbers = {
        "top-1": round(scores.top1, 4),
        "top-5": round(scores.top5, 4),
        "held-out cross-entropy": round(scores.loss, 4),
        "linear classifier on pixels, top-1": round(linear, 4),
        "parameters": trained["parameters"],
        "held-out images": len(scores.said),
        "training seconds": trained["seconds"],
    }
    page = Report("InceptionNeXt on your images", f"{trained['images']} training images, {len(names)} classes")
    page.figures(
        {
            "top-1": f"{scores.top1:.1%}",
            "linear on pixels": f"{linear:.1%}",
            "parameters": f"{trained['parameters'] / 1e6:.2f} M",
            "training": f"{trained['seconds'] / 60:.1f} min",
        }
    )
    page.metrics("Accuracy on held-out images while training", run.folder / "train" / "metrics.jsonl", ["eval/top1"])
    page.metrics("Training loss", run.folder / "train" / "metrics.jsonl", ["loss"])
    _show_confusion(page, scores, names)
    _show_predictions(page, config, test, scores, names)
    rows = [[name, f"{share:.1%}"] for name, share in zip(names, scores.per_class)]
    page.table("Recognised per class", ["class", "share"], rows)
    page.table("Numbers", ["measured on held-out images", "value"], [[name, value] for name, value in numbers.items()])
    if trained["skipped"]:
        note = f"{len(trained['skipped'])} unreadable files were skipped."
        page.table("Images left out", ["file", "why"], trained["skipped"], note=note)
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


def _show_confusion(page: Report, scores: Scores, names: list[str]) -> None:
    shares = scores.confusion.double() / scores.confusion.sum(1, keepdim=True).clamp_min(1)
    with styled() as pyplot:
        side = min(9.0, 2.5 + 0.4 * len(names))
        figure, axes = pyplot.subplots(figsize=(side, side))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        axes.set(xlabel="said", ylabel="is")
        if len(names) <= 25:
            axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
            axes.set_yticks(range(len(names)), names)
        if len(names) <= 12:
            for i, row in enumerate(scores.confusion.tolist()):
                for j, count in enumerate(row):
                    if count:
                        axes.text(j, i, count, ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
        page.figure("What is taken for what", figure, "Rows are true classes; numbers are held-out images.")


def _show_predictions(page: Report, config: InceptionNeXtConfig, test: ImageSource, scores: Scores, names: list[str]) -> None:
    parts = list(batches(config, test))
    images, truth = torch.cat([p["image"] for p in parts]), torch.cat([p["label"] for p in parts])
    right = scores.said == truth
    wrong = (~right).nonzero()[:, 0]
    surest = wrong[scores.confidence[wrong].argsort(descending=True)][:10]
    if len(surest):
        labels = [f"{names[scores.said[i]]} ({names[truth[i]]})" for i in surest.tolist()]
        page.images(
            "Its surest mistakes", images[surest], columns=5, caption="In order: " + ", ".join(labels) + " - said (is)."
        )
    some = torch.linspace(0, len(images) - 1, min(10, len(images))).long()
    labels = [f"{names[scores.said[i]]}" for i in some.tolist()]
    page.images("Held-out images and what it says", images[some], columns=10, labels=labels)
