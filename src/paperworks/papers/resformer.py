"""ResFormer (2212.00776): one vision transformer for a wide range of image sizes, trained at several of them at once.

paperworks run resformer                             digits, minutes on two cores; accuracy from 0.4 to 3 times the size
paperworks run resformer --data FOLDER --sizes 128 96 64
paperworks run resformer --recipe released --weights resformer_small_mr.pth
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from paperworks.backbones.resformer import ENTRIES, GlobalPosition, LocalAttention, ResFormer
from paperworks.errors import InputError
from paperworks.objectives.multi_resolution import MixSizes, MultiResolution, check_sizes
from paperworks.paper import Bench, Measured, Recipe, Stage, at_least, equals
from paperworks.papers import _resformer_claims as measure
from paperworks.papers._classification import (
    DIGITS,
    AugmentConfig,
    ClassifierConfig,
    NetworkConfig,
    evaluate,
    linear_baseline,
)
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images
from paperworks.papers._resformer_report import write_report
from paperworks.papers._resformer_training import measure_sizes, train_plain, train_sizes
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

MILLIONS = {
    "resformer_tiny_patch16": 5.689192,
    "resformer_small_patch16": 21.986536,
    "resformer_base_patch16": 86.431720,
}

parts = [ResFormer, GlobalPosition, LocalAttention, MultiResolution, MixSizes]
paper = recognition_paper("resformer", parts, ENTRIES, MILLIONS, "resformer_small_patch16")

SMALL: dict[str, Any] = {"embed_dim": 64, "depth": 4, "num_heads": 2}
"""of a network for images of 32 pixels in patches of 4: 0.21 million parameters"""


def _stages(sizes: tuple[int, ...], consistency: float) -> tuple[Stage, ...]:
    return (
        Stage("linear", linear_baseline),
        Stage("train", partial(train_sizes, sizes, consistency)),
        Stage("plain", partial(train_plain, sizes)),
        Stage("resolutions", measure_sizes),
        Stage("evaluate", evaluate),
        Stage("report", partial(write_report, sizes)),
    )


@paper.recipe("laptop")
def laptop(
    data: str = "default",
    sizes: tuple[int, ...] = (32, 24, 16),
    consistency: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
) -> Recipe:
    """A small ResFormer and a plain ViT with as many image passes, minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        sizes: pixels of training, the largest first; the plain ViT is trained at the largest
        consistency: weight of the loss between neighbouring sizes; 0 for none
        steps: of training; 1000 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    patch = 4 if sizes and sizes[0] <= 48 else 8
    sizes = check_sizes(sizes, patch)
    _check_weight(consistency, sizes)
    steps = steps or (1000 if data in DIGITS else 2500)
    schedule = ScheduleConfig("cosine", warmup=0.08)
    # a step: 5 GFLOP for 32 images at three sizes, 9 for the ViT's 96 at one
    optimizer = OptimizerConfig("adamw", lr=4e-3, weight_decay=0.05, schedule=schedule)
    network = NetworkConfig("resformer_small_patch16", {**SMALL, "patch_size": patch})
    usual = small_images(network, data, sizes[0], steps, seed, optimizer=optimizer, mixup=0.0, cutmix=0.0, smoothing=0.0)
    # images are resized to every size, so they cannot be padded and cut only
    augment = replace(usual.augment, kind="crop")
    # at this width float32 is faster than bfloat16 with its conversions
    training = replace(usual.training, batch_size=32, precision="32")
    return Recipe(replace(usual, augment=augment, training=training), _stages(sizes, consistency))


@paper.recipe("paper")
def published(
    variant: str = "resformer_small_patch16",
    data: str = "imagenet",
    sizes: tuple[int, ...] = (224, 160, 128),
    consistency: float = 1.0,
    seed: int = 0,
    micro_batch: int = 64,
) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 1024 (base: 200), every image at three sizes per step.

    The smaller networks' ten further epochs at the smallest learning rate are left out.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        sizes: pixels of training, the largest first
        consistency: weight of the loss between neighbouring sizes; 0 for none
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    sizes = check_sizes(sizes, 16)
    _check_weight(consistency, sizes)
    batch, base = 1024, variant == "resformer_base_patch16"
    epochs, warmup, lr = (200, 20, 8e-4) if base else (300, 5, 5e-4)
    lr *= batch / 512
    schedule = ScheduleConfig("cosine", warmup=warmup / epochs, warmup_start=1e-6 / lr, end=1e-5 / lr)
    training = TrainConfig(
        imagenet_steps(epochs, batch),
        batch,
        micro_batch,
        optimizers={"main": OptimizerConfig("adamw", lr=lr, weight_decay=0.05, schedule=schedule)},
        clip=5.0 if base else None,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(10, batch),
        checkpoint_every=imagenet_steps(1, batch),
    )
    network = NetworkConfig(variant, {"drop_path_rate": 0.2 if base else 0.1})
    augment = AugmentConfig("imagenet")
    config = ClassifierConfig(data, False, sizes[0], 0.875, network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, _stages(sizes, consistency))


def _check_weight(consistency: float, sizes: tuple[int, ...]) -> None:
    if consistency < 0:
        raise InputError(f"consistency {consistency}: a weight of 0 or more")
    if consistency and len(sizes) == 1:
        raise InputError("consistency compares two sizes and there is one: give more sizes, or --consistency 0")


# --- claims -----------------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c5", rule=at_least(10.0), says="at 16 or at 48 pixels at least 10 points below its 32 pixels, on every seed")
def plain_falls(bench: Bench) -> Measured:
    return measure.plain_falls(bench)


def _wide(measured: Measured) -> bool:
    lead = measured.numbers["lead"]
    return all(lead[str(size)] > 0 for size in measure.UNSEEN) and lead["32"] >= -2


@paper.claim(
    "c6",
    rule=_wide,
    says="mean over seeds: ahead of the plain ViT at all of the unseen sizes 12, 20, 28, 40, 48, at most 2 points behind at 32",
)
def wide_range(bench: Bench) -> Measured:
    return measure.wide_range(bench)


@paper.claim(
    "c7",
    rule=lambda m: all(points > 0 for points in m.per_seed),
    says="mean accuracy over eight test sizes higher with the loss than without it, on every seed",
)
def consistency_helps(bench: Bench) -> Measured:
    return measure.consistency_helps(bench)


@paper.claim(
    "c8",
    rule=lambda m: m.value <= 0.2 and m.numbers["grids"] == len(measure.GRIDS),
    says="from 6x6 to 40x40 neighbouring grids' positions differ by at most 20 % after resizing, and eight grids of all shapes "
    "run with one set of weights",
)
def smooth_positions(bench: Bench) -> Measured:
    return measure.smooth_positions(bench)


@paper.claim(
    "c9",
    rule=equals(6),
    says="a dense head, a detector and a frame-wise head, at two image sizes each: right shapes, gradients everywhere",
)
def other_tasks(bench: Bench) -> Measured:
    return measure.other_tasks()
