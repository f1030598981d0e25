"""GroupMamba (2407.13772): four groups of channels scan an image in four directions, for a fraction of the parameters.

paperworks run groupmamba                            digits, minutes on two cores
paperworks run groupmamba --recipe distil            with a small convolutional network as teacher
paperworks run groupmamba --recipe released --weights groupmamba_tiny.pth
"""

from __future__ import annotations

from typing import Any

from paperworks.backbones.groupmamba import ENTRIES, GroupMamba, GroupMambaLayer
from paperworks.layers.cross_scan import CrossScan
from paperworks.layers.selective_scan import selective_scan
from paperworks.objectives.distillation import Distilled, Kind
from paperworks.paper import Bench, Measured, Recipe, at_least, equals
from paperworks.papers import _groupmamba_claims as measuring
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig
from paperworks.papers._groupmamba_training import distillation_stages
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images, stages
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

MILLIONS = {"groupmamba_tiny": 23.361917, "groupmamba_small": 34.781555, "groupmamba_base": 57.150838}

parts = [GroupMamba, GroupMambaLayer, CrossScan, selective_scan, Distilled]
paper = recognition_paper("groupmamba", parts, ENTRIES, MILLIONS, "groupmamba_tiny")

SMALL: dict[str, Any] = {
    "stem_hidden_dim": 16,
    "embed_dims": [32, 64, 96, 128],
    "mlp_ratios": [4, 4, 4, 4],
    "depths": [1, 1, 2, 1],
    "distillation": False,
}
"""0.8 million parameters"""


def _small(data: str, size: int, steps: int | None, seed: int, distillation: bool) -> ClassifierConfig:
    strides = [2, 1] if size <= 48 else [2, 2]
    network = NetworkConfig("groupmamba_tiny", {**SMALL, "stem_strides": strides, "distillation": distillation})
    steps = steps or (900 if data in DIGITS else 2500)
    # 15 million multiply-accumulates an image of 32 pixels: 6 GFLOP forward and backward for a batch of 64
    schedule = ScheduleConfig("cosine", warmup=0.08)
    optimizer = OptimizerConfig("adamw", lr=2e-3, weight_decay=0.05, schedule=schedule)
    return small_images(network, data, size, steps, seed, optimizer=optimizer)


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small GroupMamba in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 900 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    return Recipe(_small(data, size, steps, seed, distillation=False), stages("GroupMamba"))


@paper.recipe("distil")
def distil(
    data: str = "default",
    teacher: str = "resnet20_cifar",
    alpha: float = 0.5,
    kind: Kind = "hard",
    size: int = 32,
    steps: int | None = None,
    seed: int = 0,
) -> Recipe:
    """The small GroupMamba with the paper's objective: labels, and a teacher that is trained on the same images before.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        teacher: a network of this library
        alpha: share of the teacher in the loss
        kind: "hard", the teacher's choice, or "soft", its probabilities
        size: pixels; images are cut or resized to it
        steps: of training, for teacher and student each
        seed: of initial weights, order and augmentation
    """
    config = _small(data, size, steps, seed, distillation=True)
    return Recipe(config, distillation_stages("GroupMamba, distilled", NetworkConfig(teacher), alpha, kind))


@paper.recipe("paper")
def published(
    variant: str = "groupmamba_tiny",
    data: str = "imagenet",
    teacher: str = "resnetrs50",
    teacher_weights: str = "",
    seed: int = 0,
    micro_batch: int = 64,
) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 1024 with hard distillation.

    The paper's teacher is a RegNetY-16GF, which this library does not have; any of its networks can take its place, and is
    trained first, from `teacher_weights` where they are given.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        teacher: a network of this library
        teacher_weights: a file, or "hub" for timm's released ones
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    batch, epochs = 1024, 300
    lr = 5e-4 * batch / 512
    schedule = ScheduleConfig("cosine", warmup=20 / epochs, warmup_start=5e-7 / lr, end=5e-6 / lr)
    training = TrainConfig(
        imagenet_steps(epochs, batch),
        batch,
        micro_batch,
        optimizers={"main": OptimizerConfig("adamw", lr=lr, weight_decay=0.05, schedule=schedule)},
        ema=0.9999,
        clip=5.0,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(10, batch),
        checkpoint_every=imagenet_steps(1, batch),
        channels_last=True,
    )
    network = NetworkConfig(variant, {"drop_path_rate": 0.1})
    config = ClassifierConfig(data, False, 224, 0.875, network, AugmentConfig("imagenet"), training, watch=50_000, seed=seed)
    return Recipe(config, distillation_stages("GroupMamba", NetworkConfig(teacher, weights=teacher_weights), 0.5, "hard"))


# --- claims -----------------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was trained or timed.


@paper.claim("c1", rule=equals(23, absolute=0.5), says="millions of parameters of Tiny, both classifiers, rounded to 23")
def size_of_tiny(bench: Bench) -> Measured:
    value = measuring.millions(ENTRIES["groupmamba_tiny"].build)
    without = measuring.millions(lambda: ENTRIES["groupmamba_tiny"].build(distillation=False))
    detail = f"{value:.3f} M, {without:.3f} M without the classifier for the teacher"
    return Measured(value, "any", detail, numbers={"without": without})


@paper.claim("c3", rule=equals(26, absolute=1.0), says="within a point of 26 %, against VMamba-T, one classifier each")
def saves_parameters(bench: Bench) -> Measured:
    return measuring.saving(bench)


def _leaner(measured: Measured) -> bool:
    ratios = measured.numbers["ratios"]
    return ratios["scans"] == 4 and ratios["parameters"] >= 3.5 and ratios["MACs a token"] >= 3.5


@paper.claim(
    "c4", rule=_leaner, says="mixers with a quarter of the scans, and at least 3.5 times fewer parameters and products"
)
def groups_are_leaner(bench: Bench) -> Measured:
    return measuring.mixers(bench)


def _keeps(measured: Measured) -> bool:
    return measured.value >= 1.0 and measured.numbers["points behind all in four directions"] <= 1.0


@paper.claim(
    "c5",
    rule=_keeps,
    says="mean over seeds: at least a point ahead of one direction, at most one behind all channels in four directions",
)
def grouping_keeps_accuracy(bench: Bench) -> Measured:
    return measuring.keeps_accuracy(bench)


@paper.claim("c6", rule=lambda m: m.value >= 0, says="mean over seeds: not below the network without affinities")
def modulation_helps(bench: Bench) -> Measured:
    return measuring.modulation_helps(bench)


def _gains(measured: Measured) -> bool:
    return measured.value > 0 and at_least(0.0)(measured)


@paper.claim("c7", rule=_gains, says="not below learning from labels alone on any seed, ahead in the mean")
def distillation_gains(bench: Bench) -> Measured:
    return measuring.distillation_gains(bench)


def _linear(measured: Measured) -> bool:
    return measured.value <= 8 and all(abs(ratio - 4) < 0.01 for ratio in measured.numbers["operations"])


@paper.claim("c10", rule=_linear, says="four times the positions take four times the operations and at most 8 times the time")
def subquadratic(bench: Bench) -> Measured:
    return measuring.growth(bench)
