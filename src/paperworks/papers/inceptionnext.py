"""InceptionNeXt (2303.16900): ConvNeXt whose large depthwise kernel is split into a square, two bands and an identity.

paperworks run inceptionnext                                            digits, minutes on two cores
paperworks run inceptionnext --data FOLDER                              your own photos in class folders
paperworks run inceptionnext --recipe released --weights inceptionnext_tiny.pth
paperworks predict runs/inceptionnext-released --images FOLDER          ImageNet classes of your photos
"""

from __future__ import annotations

from typing import Any

from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.inceptionnext import ENTRIES
from paperworks.backbones.metanext import MetaNeXt
from paperworks.layers.convolution import InceptionDWConv2d, PartialConv2d
from paperworks.paper import Bench, Measured, Recipe, at_least, at_most
from paperworks.papers import _inceptionnext_claims as measure
from paperworks.papers._classification import AugmentConfig, ClassifierConfig, NetworkConfig, entry_of
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images, stages
from paperworks.training import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig

MILLIONS = {
    "inceptionnext_atto": 4.157,
    "inceptionnext_tiny": 28.056,
    "inceptionnext_small": 49.374,
    "inceptionnext_base": 86.672,
    "inceptionnext_base_384": 86.672,
}

paper = recognition_paper(
    "inceptionnext", [InceptionDWConv2d, MetaNeXt, PartialConv2d, ConvNeXt], ENTRIES, MILLIONS, "inceptionnext_tiny"
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
    network = NetworkConfig("inceptionnext_tiny", {**SMALL, "patch_size": 2 if size <= 64 else 4})
    return Recipe(small_images(network, data, size, steps, seed), stages("InceptionNeXt"))


@paper.recipe("paper")
def published(variant: str = "inceptionnext_tiny", data: str = "imagenet", seed: int = 0, micro_batch: int = 128) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 4096 (atto: 600 of 1280), or the 384-pixel fine-tuning.

    Args:
        variant: a network of the paper (paperworks show inceptionnext lists them)
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
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
        imagenet_steps(epochs, batch),
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
    return Recipe(config, stages("InceptionNeXt"))


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
