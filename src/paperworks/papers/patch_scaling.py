"""Patch scaling (2502.03738): the smaller the patches the better, down to single pixels, which a network of linear cost
affords.

paperworks run patch-scaling                         digits in patches of 4, minutes on two cores
paperworks run patch-scaling --recipe curve          test loss over patches of 8, 4, 2 and 1, for Mamba-2 and ViT
paperworks run patch-scaling --recipe released --weights adventurer_base_patch1_224.pth --variant adventurer_base_patch1_224
"""

from __future__ import annotations

from typing import Any, Literal

from paperworks.backbones.adventurer import ENTRIES, Adventurer
from paperworks.errors import InputError
from paperworks.layers.mamba2 import Mamba2
from paperworks.layers.ssd_scan import ssd_scan
from paperworks.paper import Bench, Measured, Recipe, Stage, value_above
from paperworks.papers import _patch_scaling_claims as measuring
from paperworks.papers import _patch_scaling_dense as dense
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig
from paperworks.papers._patch_scaling_curve import NETWORKS, CurveConfig, measure, report
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images, stages
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

MILLIONS = {
    "adventurer_tiny_patch16_224": 11.608840,
    "adventurer_small_patch16_224": 44.491816,
    "adventurer_base_patch16_224": 98.657608,
    "adventurer_large_patch16_224": 346.196200,
    "adventurer_tiny_patch1_64": 12.411400,
    "adventurer_small_patch1_64": 46.096936,
    "adventurer_base_patch1_64": 101.065288,
}

USUAL = "adventurer_base_patch16_224"
paper = recognition_paper("patch-scaling", [Adventurer, Mamba2, ssd_scan], ENTRIES, MILLIONS, USUAL)

SMALL: dict[str, Any] = {"embed_dim": 64, "depth": 4, "mamba_d_state": 16, "headdim": 32}
"""0.24 million parameters"""


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, patch: int | None = None, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small Adventurer in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        patch: its side in pixels; an eighth of the image by default. Half of it takes four times as long
        steps: of training; 1000 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    patch = patch or max(1, size // 8)
    if size % patch:
        raise InputError(f"patches of {patch} do not divide an image of {size} pixels")
    steps = steps or (1000 if data in DIGITS else 2500)
    # 65 tokens an image: 7 GFLOP forward and backward for a batch of 64
    schedule = ScheduleConfig("cosine", warmup=0.08)
    optimizer = OptimizerConfig("adamw", lr=2e-3, weight_decay=0.05, schedule=schedule)
    network = NetworkConfig(USUAL, {**SMALL, "img_size": size, "patch_size": patch})
    return Recipe(small_images(network, data, size, steps, seed, optimizer=optimizer, cutmix=0.0), stages("Patch scaling"))


@paper.recipe("curve")
def curve(
    data: str = "default",
    size: int = 16,
    patches: tuple[int, ...] = (8, 4, 2, 1),
    networks: tuple[str, ...] = NETWORKS,
    images: int = 3000,
    epochs: float = 4,
    seed: int = 0,
) -> Recipe:
    """The scaling curve: networks that differ in the patch size alone, and a page with their test loss over tokens.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels
        patches: sides in pixels, the largest first; each has to divide the image
        networks: Adventurer, ViT or both
        images: of training at most
        epochs: of every network
        seed: of initial weights, order and augmentation
    """
    config = CurveConfig(data, size, patches, networks, images, epochs=epochs, seed=seed)
    return Recipe(config, (Stage("curve", measure), Stage("report", report)))


@paper.recipe("paper")
def published(
    variant: str = USUAL,
    data: str = "imagenet",
    part: Literal[1, 2, 3] = 1,
    weights: str = "",
    seed: int = 0,
    micro_batch: int = 64,
) -> Recipe:
    """The published ImageNet training, a run for each of its three parts: 300 epochs at 128 pixels, 100 at 224, 20 at 224 with
    heavy augmentation. The settings are those of the base network with patches of 16.

    ThreeAugment and repeated augmentation of the first two parts are not there yet; they train with crops and flips.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        part: which of the three
        weights: file of the part before, whose positions are stretched
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    if part > 1 and not weights:
        raise InputError(f"part {part} goes on from the weights of part {part - 1}: name the file with --weights")
    batch = 1024
    epochs, pixels, lr, decay, drop_path = {
        1: (300, 128, 5e-4 * batch / 512, 0.05, 0.1),
        2: (100, 224, 5e-4 * batch / 512, 0.05, 0.4),
        3: (20, 224, 1e-5, 0.1, 0.6),
    }[part]
    last = part == 3
    schedule = ScheduleConfig("cosine", warmup=5 / epochs, end=0.01)
    training = TrainConfig(
        imagenet_steps(epochs, batch),
        batch,
        micro_batch,
        optimizers={"main": OptimizerConfig("adamw", lr=lr, weight_decay=decay, schedule=schedule)},
        ema=0.9999,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(10, batch),
        checkpoint_every=imagenet_steps(1, batch),
    )
    augment = AugmentConfig("imagenet", magnitude=9.0 if last else 0.0, erase=0.0, smoothing=0.1 if last else 0.0)
    network = NetworkConfig(variant, {"img_size": pixels, "drop_path_rate": drop_path}, weights)
    config = ClassifierConfig(data, False, pixels, 1.0, network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, stages("Patch scaling"))


# --- claims -----------------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.

FALLS = "means over seeds: the test loss falls from patches of 8 to 4 to 2, and single pixels are at most a point behind 2"


@paper.claim("c1", rule=measuring.falls, says=FALLS)
def smaller_is_better(bench: Bench) -> Measured:
    return measuring.mamba_curve(bench)


@paper.claim(
    "c2",
    rule=measuring.falls_at_both,
    says="means over seeds, with images of 16 and of 32 pixels: the test loss falls from patches of 8 to 4 to 2",
)
def several_sizes(bench: Bench) -> Measured:
    return measuring.both_sizes(bench)


@paper.claim("c3", rule=measuring.falls, says=f"{FALLS}; for Adventurer and for ViT")
def both_kinds(bench: Bench) -> Measured:
    return measuring.curve_of(bench)


@paper.claim(
    "c4",
    rule=dense.rises,
    says="means over seeds: with a linear decoder intersection over union rises from patches of 8 to 4 to 2",
)
def dense_too(bench: Bench) -> Measured:
    return dense.smaller_patches(bench)


@paper.claim(
    "c5",
    rule=value_above(0),
    says="mean over seeds: a convolutional decoder leads a linear one by less with patches of 2 than of 8",
)
def decoder_matters_less(bench: Bench) -> Measured:
    return dense.decoder_gaps(bench)


@paper.claim(
    "c6",
    rule=measuring.linear_in_tokens,
    says="the base network takes 50,176 tokens in one pass; tiny's time and memory are 3.6 to 4.4 times those of 12,544",
)
def longest_sequence(bench: Bench) -> Measured:
    return measuring.longest_sequence(bench)


def _powers(measured: Measured) -> bool:
    exponents = measured.numbers["exponents"]
    whole = all(abs(each - power) < 1e-9 for name, power in (("tokens", 2), ("attention MACs", 4)) for each in exponents[name])
    return whole and 3.9 <= measured.numbers["Adventurer"] <= 4.0


@paper.claim(
    "c8",
    rule=_powers,
    says="halving the patch gives 4 times the tokens and 16 times attention's operations, exactly; 3.9 to 4 times Adventurer's",
)
def patches_save(bench: Bench) -> Measured:
    return measuring.count_costs(bench)
