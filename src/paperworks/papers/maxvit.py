"""MaxViT (2204.01697): windows for the near, a sparse grid for the far, at every resolution and in linear time.

paperworks run maxvit                                digits, minutes on two cores
paperworks run maxvit --data FOLDER                  your own photos in class folders
paperworks run maxvit --recipe released --weights hub        ImageNet classes; any image size
paperworks run maxvit --recipe generate              the same block as a generator of images
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from paperworks.backbones.maxvit import ENTRIES, WIDTHS, MaxViT, MaxViTBlock
from paperworks.errors import InputError
from paperworks.generators.maxvit_gan import MaxViTGenerator
from paperworks.layers.mbconv import MBConv
from paperworks.layers.multi_axis import MultiAxisAttention
from paperworks.objectives.image_gan import ImageGAN
from paperworks.paper import Bench, Measured, Recipe, Run, Variant, at_least, equals
from paperworks.papers import _maxvit_claims as measure
from paperworks.papers import _maxvit_gan as gan
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig, entry_of
from paperworks.papers._generation import default_channels
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images, stages
from paperworks.training import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig

MILLIONS = {
    **{name: 30.917 for name in ("maxvit_tiny", "maxvit_tiny_tf_224")},
    **{name: 68.928 for name in ("maxvit_small", "maxvit_small_tf_224")},
    **{name: 119.468 for name in ("maxvit_base", "maxvit_base_tf_224")},
    **{name: 211.786 for name in ("maxvit_large", "maxvit_large_tf_224")},
    "maxvit_xlarge_tf_512": 475.77,
    "maxvit_xlarge_tf_224": 506.99,
}

parts = [MaxViT, MaxViTBlock, MultiAxisAttention, MBConv, MaxViTGenerator, ImageGAN]
paper = recognition_paper("maxvit", parts, ENTRIES, MILLIONS, "maxvit_tiny")
paper.variants["maxvit_gan_128"] = Variant(MaxViTGenerator, note="generator, our specification; the paper's has 18.6 M")

SMALL: dict[str, Any] = {
    "dims": [24, 48, 96],
    "depths": [1, 1, 1],
    "stem_width": 24,
    "window": 4,
    "head_dim": 24,
    "drop_path_rate": 0.05,
}


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small MaxViT of three stages in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 700 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("maxvit_tiny", {**SMALL, "stem_stride": 1 if size <= 48 else 2})
    steps = steps or (700 if data in DIGITS else 2500)
    return Recipe(small_images(network, data, size, steps, seed), stages("MaxViT"))


SURVIVAL = {"tiny": 0.8, "small": 0.7, "base": 0.6, "large": 0.4, "xlarge": 0.4}
"""probability with which the last block's branches are kept; the authors name none for xlarge on ImageNet-1K"""


@paper.recipe("paper")
def published(variant: str = "maxvit_tiny", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 4096 at 224 pixels, or 30 of fine-tuning at 384 and 512.

    Args:
        variant: a network of the paper; those for 384 and 512 pixels start from the weights for 224
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    cfg = entry_of(variant).pretrained_cfg
    size = cfg["input_size"][-1]
    width = next(name for name in WIDTHS if f"_{name}" in variant)
    arguments: dict[str, Any] = {"drop_path_rate": 1 - SURVIVAL[width]}
    tables = ParameterRule(r"relative_position_bias_table$", weight_decay=0.0)
    augment = AugmentConfig("imagenet", magnitude=15.0, erase=0.0, mixup=0.8, cutmix=0.0)
    if size == 224:
        epochs, batch, lr, decay = 300, 4096, 3e-3, 0.05
        steps = imagenet_steps(epochs, batch)
        schedule = ScheduleConfig("cosine", warmup=10_000, end=1e-5 / lr)
        network = NetworkConfig(variant, arguments)
    else:
        epochs, batch, lr, decay = 30, 512, 5e-5, 1e-8
        steps = imagenet_steps(epochs, batch)
        schedule = ScheduleConfig("constant")
        network = NetworkConfig(variant, arguments, weights=f"maxvit_{width}_224.safetensors")
    optimizer = OptimizerConfig("adamw", lr=lr, weight_decay=decay, schedule=schedule, rules=(tables,))
    training = TrainConfig(
        steps,
        batch,
        micro_batch,
        optimizers={"main": optimizer},
        clip=1.0,
        ema=0.9999,
        ema_warmup=False,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(10, batch),
        checkpoint_every=imagenet_steps(1, batch),
    )
    config = ClassifierConfig(data, False, size, cfg["crop_pct"], network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, stages("MaxViT"))


@paper.recipe("generate")
def generate(data: str = "default", size: int = 32, steps: int = 1200, seed: int = 0) -> Recipe:
    """The block turned around as a generator of images, against a discriminator; our specification, the paper released none.

    Args:
        data: digits by default; a folder of images, parquet, shards or a name
        size: pixels, a power of two from 16
        steps: of training; about five minutes on two cores for 32 pixels
        seed: of initial weights, order and latents
    """
    if size < 16 or size & (size - 1):
        raise InputError(f"size={size}: the generator doubles a map of 4 pixels; take 16, 32, 64 or 128")
    widths = (96, 64, 32, 16) if size == 32 else (192, 192, 128, 96, 64, 32)[: size.bit_length() - 2]
    training = gan.adam(steps, 1.5e-3)
    config = gan.GenerateConfig(
        data, size, default_channels(data), seed=seed, generator=gan.GeneratorConfig(widths), training=training
    )
    return Recipe(config, gan.STAGES)


@paper.verb("sample")
def sample(run: Run, *, count: int = 100, seed: int = 1, out: Path | None = None) -> dict[str, Any]:
    """Makes images with a run of the recipe `generate`.

    Args:
        count: how many
        seed: another one gives other images
        out: PNG to write, by default samples.png in the run's folder
    """
    return gan.sample(run, count, seed, out)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=equals(4.0, relative=0.01), says="4 times the pixels cost 4 times as much within 1 %, twice in a row")
def linear_cost(bench: Bench) -> Measured:
    return measure.linear_cost()


@paper.claim(
    "c2",
    rule=equals(len(measure.SIZES)),
    says="in each of eight sizes the same weights give logits, and one block and grid pair reaches every token",
)
def any_resolution(bench: Bench) -> Measured:
    return measure.any_resolution()


@paper.claim(
    "c3",
    rule=lambda m: m.value == 256 and m.numbers["block alone"] == 16 and m.numbers["grid alone"] == 16,
    says="of 256 tokens either attention alone reaches the 16 of one group, both together all 256",
)
def global_reach(bench: Bench) -> Measured:
    return measure.global_reach()


@paper.claim(
    "c4",
    rule=lambda m: all(points > 0 for points in m.per_seed),
    says="block and grid ahead of the better of the two alone, at equal parameters, on every seed",
)
def both_axes(bench: Bench) -> Measured:
    return measure.both_axes(bench)


@paper.claim(
    "c6",
    rule=lambda m: all(points > 0 for points in m.per_seed),
    says="MBConv with attention ahead of attention alone at parameters equal within 2 %, on every seed",
)
def blend(bench: Bench) -> Measured:
    return measure.blend(bench)


@paper.claim("c9", rule=at_least(1.0), says="the convolutional generator's distance at least that of MaxViT's, on every seed")
def generation(bench: Bench) -> Measured:
    return measure.generation(bench, partial(generate, steps=measure.GAN_STEPS))
