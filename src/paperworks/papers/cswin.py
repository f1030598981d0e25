"""CSWin Transformer (2107.00652): half of the heads attend along vertical stripes, half along horizontal ones.

paperworks run cswin                                 digits, minutes on two cores
paperworks run cswin --data FOLDER                   your own photos in class folders
paperworks run cswin --recipe released --weights cswin_tiny_224.pth
"""

from __future__ import annotations

from typing import Any

from paperworks.backbones.cswin import ENTRIES, CrossShapedAttention, CSWin, CSWinDense
from paperworks.layers.windows import cut_windows
from paperworks.paper import Bench, Measured, Recipe, at_least, at_most, equals
from paperworks.papers import _cswin_claims as measure
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig, entry_of
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images, stages
from paperworks.training import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig

MILLIONS = {
    "cswin_tiny": 22.321,
    "cswin_small": 34.643,
    "cswin_base": 77.382,
    "cswin_base_384": 77.382,
    "cswin_large": 173.263,
    "cswin_large_384": 173.263,
}

paper = recognition_paper("cswin", [CSWin, CSWinDense, CrossShapedAttention, cut_windows], ENTRIES, MILLIONS, "cswin_tiny")

SMALL: dict[str, Any] = {
    "dims": [32, 64, 128],
    "depths": [2, 2, 2],
    "heads": [2, 4, 8],
    "stripes": [1, 2, None],
    "patch_size": 2,
    "drop_path_rate": 0.05,
}
"""of the laptop's network: 21 million multiply-accumulates for an image of 32 pixels"""


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small CSWin of three stages, the last one with attention over the whole map, in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 900 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("cswin_tiny", {**SMALL, "patch_size": 2 if size <= 64 else 4})
    steps = steps or (900 if data in DIGITS else 2500)
    schedule = ScheduleConfig("cosine", warmup=0.1)
    optimizer = OptimizerConfig("adamw", lr=2e-3, weight_decay=0.05, schedule=schedule)
    return Recipe(small_images(network, data, size, steps, seed, optimizer=optimizer), stages("CSWin Transformer"))


@paper.recipe("paper")
def published(variant: str = "cswin_tiny", data: str = "imagenet", seed: int = 0, micro_batch: int = 128) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 2048 (base: 1024), without the ten epochs of cool-down. At 384
    pixels and for the large network it is the fine-tuning, which starts from the authors' files.

    Args:
        variant: a network of the paper (paperworks show cswin lists them)
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    cfg = entry_of(variant).pretrained_cfg
    size, name = cfg["input_size"][-1], variant.removesuffix("_dense")
    if name in FINETUNED:
        epochs, batch, lr, weights, rules = FINETUNED[name]
        network = NetworkConfig(variant, {"drop_path_rate": 0.7}, weights=weights)
        schedule = ScheduleConfig("cosine")
        optimizer = OptimizerConfig(lr=lr, weight_decay=1e-8, schedule=schedule, rules=rules)
        augment, ema = AugmentConfig("imagenet", mixup=0.1, cutmix=0.1), 0.9998
    else:
        base = name == "cswin_base"
        epochs, batch, lr = 300, (1024 if base else 2048), (1e-3 if base else 2e-3)
        drop_path = {"cswin_small": 0.4, "cswin_base": 0.5}.get(name, 0.2)
        network = NetworkConfig(variant, {"drop_path_rate": drop_path})
        schedule = ScheduleConfig("cosine", warmup=20 / 300, warmup_start=1e-6 / lr, end=1e-5 / lr)
        optimizer = OptimizerConfig(lr=lr, weight_decay=0.1 if base else 0.05, schedule=schedule)
        augment, ema = AugmentConfig("imagenet"), (0.99992 if base else 0.99984)
    training = TrainConfig(
        imagenet_steps(epochs, batch),
        batch,
        micro_batch,
        optimizers={"main": optimizer},
        ema=ema,
        ema_warmup=False,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(10, batch),
        checkpoint_every=imagenet_steps(1, batch),
    )
    config = ClassifierConfig(data, False, size, cfg["crop_pct"], network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, stages("CSWin Transformer"))


SLOW_HEAD = (ParameterRule(r"^(model\.)?head\.", lr_scale=0.05),)
FINETUNED: dict[str, tuple[int, int, float, str, tuple[ParameterRule, ...]]] = {
    "cswin_base_384": (20, 512, 5e-6, "cswin_base_224.pth", ()),
    "cswin_large": (30, 512, 2.5e-4, "cswin_large_22k_224.pth", SLOW_HEAD),
    "cswin_large_384": (30, 512, 2.5e-4, "cswin_large_22k_224.pth", SLOW_HEAD),
}
"""epochs, batch (a guess: the paper's text does not say), learning rate, file of weights, rules"""


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was trained.


@paper.claim(
    "c1", rule=equals(1.0), says="on every map a token sees sw (H + W) - sw^2 tokens and the cost is the formula's, exactly"
)
def cross_shaped_window(bench: Bench) -> Measured:
    return measure.cross()


@paper.claim("c2", rule=equals(1.0), says="every stripe width of every stage costs H W C (4 C + sw H + sw W), exactly")
def stripe_widths(bench: Bench) -> Measured:
    return measure.stripe_widths()


@paper.claim(
    "c3", rule=lambda m: m.value >= 0, says="on average over the seeds at least as accurate as shifted windows of equal cost"
)
def against_shifted_windows(bench: Bench) -> Measured:
    return measure.windows(bench)


def _best_and_needed(measured: Measured) -> bool:
    return measured.value >= 0 and measured.numbers["ahead of no positions"] >= 0.5


@paper.claim(
    "c4",
    rule=_best_and_needed,
    says="on average over the seeds no other encoding is more accurate, and none at all is at least 0.5 points behind",
)
def local_positions(bench: Bench) -> Measured:
    return measure.positions(bench)


def _loses_less(measured: Measured) -> bool:
    return at_least(0.0)(measured) and measured.numbers["every size fits"]


@paper.claim(
    "c5",
    rule=_loses_less,
    says="five sizes go through one network; from 32 to 48 pixels it loses no more than absolute positions, on every seed",
)
def any_resolution(bench: Bench) -> Measured:
    return measure.any_size(bench)


@paper.claim("c14", rule=at_most(1.1), says="none of six networks needs over 1.1 times the multiply-accumulates of its Swin")
def like_swin(bench: Bench) -> Measured:
    return measure.against_swin()
