"""What all papers of recognition networks offer alike: recipes that train, fine-tune or use a network, and verbs on the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from paperworks.backbones.registry import Entry, create
from paperworks.errors import InputError, nearest
from paperworks.paper import Paper, Recipe, Run, Stage, Variant
from paperworks.papers import _classification_use as use
from paperworks.papers import card
from paperworks.papers._classification import (
    DIGITS,
    AugmentConfig,
    ClassifierConfig,
    NetworkConfig,
    Trained,
    entry_of,
    evaluate,
    linear_baseline,
    load_released,
    train,
)
from paperworks.papers._classification_report import write_report
from paperworks.training import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig


def recognition_paper(
    slug: str, parts: Sequence[Any], entries: Mapping[str, Entry], millions: Mapping[str, float], usual: str
) -> Paper:
    """A paper with its named networks, the recipes `finetune` and `released`, and the verbs predict, evaluate and export.

    usual: the network that recipes take when none is named. The recipes `laptop` and `paper` are each paper's own.
    """
    paper = Paper(
        card(slug),
        parts=parts,
        variants={name: Variant(partial(create, name), millions.get(name), _note(entry)) for name, entry in entries.items()},
    )
    _add_recipes(paper, entries, usual)
    _add_verbs(paper)
    return paper


def _note(entry: Entry) -> str:
    return f"ImageNet top-1 {entry.top1} as the authors print it" if entry.top1 is not None else ""


def stages(title: str) -> tuple[Stage, ...]:
    """Of a recipe that trains: the linear baseline, training, evaluation, the page."""
    return (
        Stage("linear", linear_baseline),
        Stage("train", train),
        Stage("evaluate", evaluate),
        Stage("report", partial(write_report, title)),
    )


def small_images(
    network: NetworkConfig,
    data: str,
    size: int,
    steps: int | None,
    seed: int,
    *,
    optimizer: OptimizerConfig | None = None,
    mixup: float = 0.2,
    cutmix: float = 1.0,
    smoothing: float = 0.1,
) -> ClassifierConfig:
    """Minutes on two cores: digits by default, any labelled images otherwise; averaged weights, some batches mixed."""
    digits = data in DIGITS
    steps = steps or (1200 if digits else 2500)
    plain = digits or data == "cifar10" or size == 32
    usual = OptimizerConfig("adamw", lr=3e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.08))
    return ClassifierConfig(
        data=data,
        image_size=size,
        crop_pct=0.9,
        network=network,
        augment=AugmentConfig(
            "shift" if plain else "crop",
            flip=not digits,
            mixup=mixup,
            cutmix=cutmix,
            mix_probability=0.5,
            smoothing=smoothing,
        ),
        training=TrainConfig(
            steps,
            64,
            optimizers={"main": optimizer or usual},
            ema=0.995,
            clip=5.0,
            seed=seed,
            eval_every=max(1, steps // 10),
            channels_last=True,
        ),
        seed=seed,
    )


def imagenet_steps(epochs: float, batch: int) -> int:
    """Steps that `epochs` over ImageNet-1k's training images take."""
    return round(epochs * 1_281_167 / batch)


def classic_imagenet(
    variant: str, data: str, seed: int, micro_batch: int, *, epochs: int, milestones: tuple[float, ...]
) -> ClassifierConfig:
    """ImageNet training as before 2019: SGD 0.1 with momentum and steps, batch 256, crops and flips, nothing else."""
    schedule = ScheduleConfig("step", milestones=milestones, gamma=0.1)
    optimizer = OptimizerConfig("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, schedule=schedule)
    training = TrainConfig(
        imagenet_steps(epochs, 256),
        256,
        micro_batch,
        optimizers={"main": optimizer},
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(5, 256),
        checkpoint_every=imagenet_steps(1, 256),
    )
    augment = AugmentConfig("imagenet", magnitude=0.0, erase=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0)
    return ClassifierConfig(data, False, 224, 0.875, NetworkConfig(variant), augment, training, watch=50_000, seed=seed)


def modern_imagenet(
    network: NetworkConfig,
    data: str,
    seed: int,
    micro_batch: int,
    optimizer: OptimizerConfig,
    augment: AugmentConfig,
    *,
    epochs: int,
    batch: int,
    clip: float | None = None,
) -> ClassifierConfig:
    """ImageNet training as since 2021: one optimizer with a schedule over all epochs, 224 pixels, mixed and erased images."""
    training = TrainConfig(
        imagenet_steps(epochs, batch),
        batch,
        micro_batch,
        optimizers={"main": optimizer},
        clip=clip,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(5, batch),
        checkpoint_every=imagenet_steps(1, batch),
    )
    return ClassifierConfig(data, False, 224, 0.875, network, augment, training, watch=50_000, seed=seed)


def check_variant(variant: str, entries: Mapping[str, Entry]) -> None:
    if variant not in entries:
        raise InputError(f"no variant {variant!r}{nearest(variant, entries)}")


def _add_recipes(paper: Paper, entries: Mapping[str, Entry], usual: str) -> None:
    @paper.recipe("finetune")
    def finetune(data: str, weights: str, variant: str = usual, size: int = 224, steps: int = 500, seed: int = 0) -> Recipe:
        """Your own classes with an ImageNet network as the start.

        Args:
            data: a folder with a sub-folder per class, a parquet file or a name
            weights: file of released weights (the authors' or timm's), or "hub"
            variant: the network they belong to
            size: pixels
            steps: of training
            seed: of the new last layer, order and augmentation
        """
        check_variant(variant, entries)
        last = str(entry_of(variant).pretrained_cfg["classifier"]).replace(".", r"\.")
        new_layer = ParameterRule(rf"(^|\.){last}\.", lr_scale=10.0)
        schedule = ScheduleConfig("cosine", warmup=0.1)
        optimizer = OptimizerConfig(lr=1e-4, weight_decay=0.05, schedule=schedule, rules=(new_layer,))
        training = TrainConfig(
            steps, 32, optimizers={"main": optimizer}, ema=0.99, seed=seed, eval_every=max(1, steps // 5), channels_last=True
        )
        config = ClassifierConfig(
            data=data,
            image_size=size,
            crop_pct=0.95,
            network=NetworkConfig(variant, weights=weights),
            augment=AugmentConfig("crop", mixup=0.0, cutmix=0.0),
            training=training,
            seed=seed,
        )
        return Recipe(config, stages(paper.card.title.split(":")[0]))

    @paper.recipe("released")
    def released(weights: str, variant: str = usual) -> Recipe:
        """No training: released ImageNet weights, to predict, evaluate and export with.

        Args:
            weights: a file (the authors' or timm's), or "hub"
            variant: the network they belong to
        """
        check_variant(variant, entries)
        cfg = entry_of(variant).pretrained_cfg
        network, augment = NetworkConfig(variant, weights=weights), AugmentConfig("crop")
        config = ClassifierConfig("", False, cfg["input_size"][-1], cfg["crop_pct"], network, augment)
        return Recipe(config, (Stage("train", load_released),))


def _add_verbs(paper: Paper) -> None:
    @paper.verb("predict")
    def predict(run: Run, images: str, *, top: int = 5, page: bool = True) -> list[dict[str, Any]]:
        """The most likely classes of your images.

        Args:
            images: a folder, a file or a name
            top: classes per image
            page: also write predictions.html, which shows the images, into the run's folder
        """
        return use.predict(Trained.of(run), images, top, run.folder / "predictions.html" if page else None)

    @paper.verb("evaluate")
    def evaluate_on(
        run: Run,
        *,
        data: str | None = None,
        split: Literal["train", "test", "all"] = "test",
        size: int | None = None,
        crop_pct: float | None = None,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """Top-1 and top-5 on labelled images.

        Args:
            data: a folder with a sub-folder per class, parquet, shards or a name; the run's own data by default
            split: which part of it
            size: pixels, as in training by default
            crop_pct: share of the resized shorter side that the centre crop takes
            limit: this many images, evenly spread over the source
        """
        data = data or run.record["config"]["data"]
        if not data:
            raise InputError("this run has no data of its own: name labelled images with --data")
        return use.evaluate(Trained.of(run), data, split, size, crop_pct, limit)

    @paper.verb("export")
    def export(run: Run, *, to: Literal["onnx", "torchscript"] = "onnx", out: Path | None = None) -> dict[str, Any]:
        """A file for other runtimes that takes images in [0, 1] of any size; its outputs are compared with ours.

        Args:
            to: "onnx" or "torchscript"
            out: where to write; network.onnx or network.pt in the run's folder by default
        """
        endings = {"onnx": "onnx", "torchscript": "pt"}
        if to not in endings:
            raise InputError(f"no export to {to!r}{nearest(to, endings)}")
        return use.export(Trained.of(run), to, out or run.folder / f"network.{endings[to]}")
