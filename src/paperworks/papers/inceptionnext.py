"""InceptionNeXt (2303.16900): ConvNeXt whose large depthwise kernel is split into a square, two bands and an identity.

paperworks run inceptionnext                                            digits, minutes on two cores
paperworks run inceptionnext --data FOLDER                              your own photos in class folders
paperworks run inceptionnext --recipe released --weights inceptionnext_tiny.pth
paperworks predict runs/inceptionnext-released --images FOLDER          ImageNet classes of your photos
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.inceptionnext import ENTRIES
from paperworks.backbones.metanext import MetaNeXt
from paperworks.backbones.registry import create
from paperworks.errors import InputError, nearest
from paperworks.layers.convolution import InceptionDWConv2d, PartialConv2d
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most
from paperworks.papers import _classification_use as use
from paperworks.papers import _inceptionnext_claims as measure
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

MILLIONS = {
    "inceptionnext_atto": 4.157,
    "inceptionnext_tiny": 28.056,
    "inceptionnext_small": 49.374,
    "inceptionnext_base": 86.672,
    "inceptionnext_base_384": 86.672,
}

paper = Paper(
    card("inceptionnext"),
    parts=[InceptionDWConv2d, MetaNeXt, PartialConv2d, ConvNeXt],
    variants={
        name: Variant(partial(create, name), MILLIONS.get(name), f"ImageNet top-1 {entry.top1} as the authors print it")
        for name, entry in ENTRIES.items()
    },
)

STAGES = (
    Stage("linear", linear_baseline),
    Stage("train", train),
    Stage("evaluate", evaluate),
    Stage("report", partial(write_report, "InceptionNeXt")),
)

SMALL = {"depths": [2, 2, 2, 2], "dims": [24, 48, 96, 192], "patch_size": 2, "drop_path_rate": 0.05}
"""of the laptop's network; its stem cuts patches of 2 instead of 4 pixels because the images are small"""


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small four-stage InceptionNeXt with mixup, cutmix and averaged weights, in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 1200 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    digits = data in DIGITS
    steps = steps or (1200 if digits else 2500)
    small = digits or data == "cifar10" or size == 32
    optimizer = OptimizerConfig("adamw", lr=3e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.08))
    config = ClassifierConfig(
        data=data,
        image_size=size,
        crop_pct=0.9,
        network=NetworkConfig("inceptionnext_tiny", {**SMALL, "patch_size": 2 if size <= 64 else 4}),
        augment=AugmentConfig("shift" if small else "crop", flip=not digits, mixup=0.2, mix_probability=0.5),
        training=TrainConfig(
            steps,
            64,
            optimizers={"main": optimizer},
            ema=0.995,
            clip=5.0,
            seed=seed,
            eval_every=steps // 10,
            channels_last=True,
        ),
        seed=seed,
    )
    return Recipe(config, STAGES)


@paper.recipe("paper")
def published(variant: str = "inceptionnext_tiny", data: str = "imagenet", seed: int = 0, micro_batch: int = 128) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 4096 (atto: 600 of 1280), or the 384-pixel fine-tuning.

    Args:
        variant: a network of the paper (paperworks show inceptionnext lists them)
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    _check_variant(variant)
    images = 1_281_167
    drop_path = {"inceptionnext_small": 0.3, "inceptionnext_base": 0.4}.get(variant, 0.1)
    arguments: dict[str, Any] = {"drop_path_rate": drop_path}
    network = NetworkConfig(variant, arguments)
    augment = AugmentConfig("imagenet")
    epochs, batch, lr, warmup, end, size = 300, 4096, 4e-3, 20 / 300, 1e-5 / 4e-3, 224
    ema = 0.9999 if variant.startswith("convnext") else None
    if variant == "inceptionnext_atto":
        epochs, batch, lr, warmup, end = 600, 1280, 1e-3, 5 / 600, 5e-7 / 1e-3
        augment = AugmentConfig("imagenet", magnitude=5.0, mixup=0.2, erase=0.1)
    schedule = ScheduleConfig("cosine", warmup=warmup, warmup_start=1e-6 / lr, end=end)
    if variant == "inceptionnext_base_384":
        epochs, batch, lr, size, ema = 30, 1024, 5e-5, 384, 0.9999
        network = NetworkConfig(variant, {"drop_path_rate": 0.7, "drop_rate": 0.5}, weights="inceptionnext_base.pth")
        augment = AugmentConfig("imagenet", mixup=0.0, cutmix=0.0)
        schedule = ScheduleConfig("constant")
    optimizer = OptimizerConfig(
        lr=lr, weight_decay=0.05, schedule=schedule, rules=(ParameterRule(r"gamma$", weight_decay=0.0),)
    )
    training = TrainConfig(
        epochs * images // batch,
        batch,
        micro_batch,
        optimizers={"main": optimizer},
        ema=ema,
        ema_warmup=False,
        seed=seed,
        workers=8,
        eval_every=images // batch * 10,
        checkpoint_every=images // batch,
    )
    crop_pct = entry_of(variant).pretrained_cfg["crop_pct"]
    config = ClassifierConfig(data, False, size, crop_pct, network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, STAGES)


@paper.recipe("finetune")
def finetune(
    data: str, weights: str, variant: str = "inceptionnext_tiny", size: int = 224, steps: int = 500, seed: int = 0
) -> Recipe:
    """Your own classes with an ImageNet network as the start.

    Args:
        data: a folder with a sub-folder per class, a parquet file or a name
        weights: file of released weights (the authors' .pth or timm's .safetensors), or "hub"
        variant: the network they belong to
        size: pixels
        steps: of training
        seed: of the new last layer, order and augmentation
    """
    _check_variant(variant)
    schedule = ScheduleConfig("cosine", warmup=0.1)
    new_layer = ParameterRule(r"(head\.fc2|^model\.head)\.", lr_scale=10.0)
    optimizer = OptimizerConfig(lr=1e-4, weight_decay=0.05, schedule=schedule, rules=(new_layer,))
    config = ClassifierConfig(
        data=data,
        image_size=size,
        crop_pct=0.95,
        network=NetworkConfig(variant, {"drop_path_rate": 0.1}, weights),
        augment=AugmentConfig("crop", mixup=0.0, cutmix=0.0),
        training=TrainConfig(steps, 32, optimizers={"main": optimizer}, ema=0.99, seed=seed, eval_every=max(1, steps // 5)),
        seed=seed,
    )
    return Recipe(config, STAGES)


@paper.recipe("released")
def released(weights: str, variant: str = "inceptionnext_tiny") -> Recipe:
    """No training: released ImageNet weights, to predict, evaluate and export with.

    Args:
        weights: a file (the authors' .pth or timm's .safetensors), or "hub"
        variant: the network they belong to
    """
    _check_variant(variant)
    cfg = entry_of(variant).pretrained_cfg
    network, augment = NetworkConfig(variant, weights=weights), AugmentConfig("crop")
    config = ClassifierConfig("", False, cfg["input_size"][-1], cfg["crop_pct"], network, augment)
    return Recipe(config, (Stage("train", load_released),))


def _check_variant(variant: str) -> None:
    if variant not in ENTRIES:
        raise InputError(f"no variant {variant!r}{nearest(variant, ENTRIES)}")


# --- what a finished run is good for ----------------------------------------------------------------------------------------


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


# --- claims -----------------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=at_most(5.0), says="at most 5 % of ConvNeXt-T's multiply-accumulates at 224 pixels")
def depthwise_share(bench: Bench) -> Measured:
    return measure.depthwise_share()


@paper.claim(
    "c2",
    rule=at_least(3.0),
    says="in training depthwise layers take at least 3x the time per multiply-accumulate of pointwise ones, every repetition",
)
def time_per_operation(bench: Bench) -> Measured:
    return measure.time_per_operation(bench)


@paper.claim("c3", rule=lambda m: abs(m.numbers["ratio"] - 1) <= 0.15, says="within 15 % of one another at 224 pixels")
def similar_operations(bench: Bench) -> Measured:
    return measure.similar_operations()


@paper.claim(
    "c4", rule=lambda m: all(v < 100 for v in m.per_seed), says="below 100 % in the better layout of each, every repetition"
)
def convnext_against_resnet(bench: Bench) -> Measured:
    return measure.convnext_against_resnet(bench)


@paper.claim(
    "c5",
    rule=lambda m: all(v > 0 for v in m.per_seed) and m.numbers["speed"] > 1,
    says="3x3 takes less time per step and loses accuracy against 7x7 on every seed",
)
def smaller_kernels(bench: Bench) -> Measured:
    return measure.smaller_kernels(bench)


@paper.claim(
    "c6",
    rule=lambda m: m.value == 4 and m.numbers["identity_unchanged"] and m.numbers["parameters"] == m.numbers["formula"],
    says="four kinds of support, identity channels equal bit for bit, parameters as the formula says, in every setting",
)
def four_branches(bench: Bench) -> Measured:
    return measure.four_branches()


@paper.claim(
    "c7", rule=lambda m: all(v > 1 for v in m.per_seed), says="above 1x in the better layout of each, every repetition"
)
def faster_training(bench: Bench) -> Measured:
    return measure.faster_training(bench)


@paper.claim(
    "c8",
    rule=lambda m: m.value >= -0.5,
    says="at equal epochs the mean over seeds is at most 0.5 point below the 7x7 kernel",
)
def accuracy_of_the_mixer(bench: Bench) -> Measured:
    return measure.accuracy_of_the_mixer(bench)


@paper.claim(
    "c9",
    rule=lambda m: all(v > 1 for v in m.per_seed),
    says="inference throughput above ConvNeXt's, geometric mean over the sizes, every repetition (accuracy is not checked)",
)
def series_throughput(bench: Bench) -> Measured:
    return measure.series_throughput(bench)
