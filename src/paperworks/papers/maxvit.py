"""MaxViT (2204.01697): windows for the near, a sparse grid for the far, at every resolution and in linear time.

paperworks run maxvit                                digits, minutes on two cores
paperworks run maxvit --data FOLDER                  your own photos in class folders
paperworks run maxvit --recipe released --weights hub        ImageNet classes; any image size
paperworks run maxvit --recipe generate              the same block as a generator of images
paperworks run maxvit --recipe aesthetics --data FOLDER --weights hub        how people rate images
"""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from paperworks.backbones.maxvit import ENTRIES, WIDTHS, MaxViT, MaxViTBlock
from paperworks.data import Loader, Transformed
from paperworks.data.decode import Unreadable, decode
from paperworks.data.transforms import to_float
from paperworks.errors import InputError
from paperworks.generators.maxvit_gan import MaxViTGenerator
from paperworks.layers.mbconv import MBConv
from paperworks.layers.multi_axis import MultiAxisAttention
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.image_gan import ImageGAN
from paperworks.objectives.rating import Rate, mean_score, rating_distance
from paperworks.paper import Bench, Measured, Recipe, Run, Stage, Variant, at_least, equals, first_process
from paperworks.papers import _maxvit_claims as measure
from paperworks.papers import _maxvit_gan as gan
from paperworks.papers._classification import (
    DIGITS,
    AugmentConfig,
    ClassifierConfig,
    NetworkConfig,
    Trained,
    build_network,
    entry_of,
    save_network,
    training_transform,
)
from paperworks.papers._generation import default_channels
from paperworks.papers._recognition import check_variant, recognition_paper, small_images, stages
from paperworks.training import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig, fit

MILLIONS = {
    **{name: 30.917 for name in ("maxvit_tiny", "maxvit_tiny_tf_224")},
    **{name: 68.928 for name in ("maxvit_small", "maxvit_small_tf_224")},
    **{name: 119.468 for name in ("maxvit_base", "maxvit_base_tf_224")},
    **{name: 211.786 for name in ("maxvit_large", "maxvit_large_tf_224")},
    "maxvit_xlarge_tf_512": 475.77,
    "maxvit_xlarge_tf_224": 506.99,
}

parts = [MaxViT, MaxViTBlock, MultiAxisAttention, MBConv, MaxViTGenerator, ImageGAN, Rate]
paper = recognition_paper("maxvit", parts, ENTRIES, MILLIONS, "maxvit_tiny")

GAN_128 = gan.GenerateConfig(
    "imagenet", 128, 3, generator=gan.PUBLISHED, discriminator=gan.DiscriminatorConfig(width=128, widest=512)
)
paper.variants["maxvit_gan_128"] = Variant(
    partial(gan.build_generator, GAN_128), 18.6, "generator, our specification; the number of parameters is the paper's"
)

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
        steps: of training; 620 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("maxvit_tiny", {**SMALL, "stem_stride": 1 if size <= 48 else 2})
    steps = steps or (620 if data in DIGITS else 2500)
    return Recipe(small_images(network, data, size, steps, seed), stages("MaxViT"))


SURVIVAL = {"tiny": 0.8, "small": 0.7, "base": 0.6, "large": 0.4, "xlarge": 0.4}
"""probability with which the last block's branches are kept; the authors name none for xlarge on ImageNet-1K"""

IMAGES_21K = 14_197_122
"""of ImageNet-21K"""

Pretraining = Literal["imagenet", "imagenet21k"]


@paper.recipe("paper")
def published(
    variant: str = "maxvit_tiny",
    data: str = "imagenet",
    weights: str = "",
    start: Pretraining = "imagenet",
    seed: int = 0,
    micro_batch: int = 64,
) -> Recipe:
    """The published training at 224 pixels, 300 epochs of ImageNet-1K or 90 of ImageNet-21K (maxvit_base_21k, maxvit_large_21k,
    maxvit_xlarge), or 30 epochs of fine-tuning on ImageNet-1K at 384 and 512 pixels (maxvit_tiny_tf_384 and so on).

    Args:
        variant: a network of the paper; those for 384 and 512 pixels start from weights for 224
        data: ImageNet-1K or 21K as a folder of class folders, shards or parquet
        weights: for 384 and 512 pixels: a file (train/model/model.safetensors of a run at 224, or timm's), or "hub"
        start: what these weights were trained on, which says how images are normalised; always imagenet21k for xlarge
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    cfg = entry_of(variant).pretrained_cfg
    size, width = cfg["input_size"][-1], next(name for name in WIDTHS if f"_{name}" in variant)
    arguments: dict[str, Any] = {"drop_path_rate": 1 - SURVIVAL[width]}
    epochs, batch, lr, decay, images = 300, 4096, 3e-3, 0.05, 1_281_167
    schedule, network = ScheduleConfig("cosine", warmup=10_000, end=1e-5 / 3e-3), NetworkConfig(variant, arguments)
    if size > 224:
        epochs, batch, lr, decay, schedule = 30, 512, 5e-5, 1e-8, ScheduleConfig("constant")
        arguments["window"] = size // 32
        network = NetworkConfig(_network_at_224(variant, width, weights, start), arguments, weights)
    elif weights:
        raise InputError(f"{variant} is trained from random weights: --weights is for the variants at 384 and 512 pixels")
    elif cfg["num_classes"] > 1000:
        if data == "imagenet":
            raise InputError(f"{variant} is trained on ImageNet-21K: name its folder, shards or parquet with --data")
        # the authors decay by 0.01 to 0.1, by network
        epochs, lr, images, schedule = 90, 1e-3, IMAGES_21K, ScheduleConfig("cosine", warmup=10_000, end=1e-5 / 1e-3)
    augment = AugmentConfig("imagenet", magnitude=15.0, deviation=0.0, probability=1.0, erase=0.0, mixup=0.8, cutmix=0.0)
    tables = ParameterRule(r"relative_position_bias_table$", weight_decay=0.0)
    training = TrainConfig(
        round(epochs * images / batch),
        batch,
        micro_batch,
        optimizers={"main": OptimizerConfig("adamw", lr=lr, weight_decay=decay, schedule=schedule, rules=(tables,))},
        clip=1.0,
        ema=0.9999,
        ema_warmup=False,
        seed=seed,
        workers=8,
        eval_every=round(10 * images / batch),
        checkpoint_every=round(images / batch),
    )
    config = ClassifierConfig(data, False, size, cfg["crop_pct"], network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, stages("MaxViT"))


def _network_at_224(variant: str, width: str, weights: str, start: Pretraining) -> str:
    """The name under which the starting weights were made: with it go their mean and deviation."""
    if not weights:
        raise InputError(
            f"{variant} is fine-tuned from weights for 224 pixels: name them with --weights, the train/model/model.safetensors "
            'of a run of this recipe at 224, a file of timm\'s, or "hub"'
        )
    name = f"maxvit_{width}" + ("_21k" if start == "imagenet21k" and width != "xlarge" else "")
    if name not in ENTRIES:
        raise InputError(f"{variant}: no {width} network was pre-trained on ImageNet-21K; base, large and xlarge were")
    return name


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


@paper.recipe("generate-paper")
def published_generator(data: str = "imagenet", seed: int = 0, micro_batch: int = 32) -> Recipe:
    """The generator of published size at 128 pixels, to our specification. Training is HiT's, whose numbers the paper stands
    beside: a million steps of batch 256. Judged on 10,000 images where the paper has 50,000.

    Args:
        data: ImageNet as a folder, shards or parquet; no labels are read
        seed: of initial weights, order and latents
        micro_batch: images per process and backward pass
    """
    optimizer = OptimizerConfig("adam", lr=1e-4, betas=(0.0, 0.99), schedule=ScheduleConfig("constant"))
    training = TrainConfig(
        1_000_000,
        256,
        micro_batch,
        optimizers={"main": optimizer, "discriminator": optimizer},
        ema=0.999,
        seed=seed,
        workers=8,
        checkpoint_every=2000,
    )
    game = Adversarial("non_saturating", r1=10.0, r1_every=1, augment=("colour", "translation", "cutout"))
    config = replace(GAN_128, data=data, seed=seed, game=game, training=training, images=10_000, judged=10_000)
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


# --- ratings ----------------------------------------------------------------------------------------------------------

SCORES = 10
RATINGS = "ratings.csv"


@paper.recipe("aesthetics")
def aesthetics(
    data: str, weights: str, variant: str = "maxvit_tiny", size: int = 224, steps: int = 2000, seed: int = 0
) -> Recipe:
    """How people rate images: a distribution over ten scores, learned by the distance between distributions (NIMA's loss).

    Args:
        data: a folder with images and ratings.csv, per line the name of one and how many people gave it 1, 2, ... 10
        weights: file of released weights to start from (the authors' or timm's), or "hub"
        variant: the network they belong to
        size: pixels, a multiple of 32; windows are a 32nd of it
        steps: of training
        seed: of the last layer, order and augmentation
    """
    check_variant(variant, ENTRIES)
    if size < 32 or size % 32:
        raise InputError(f"size={size}: a multiple of 32, so that windows of a 32nd of it fit into every map")
    optimizer = OptimizerConfig("adamw", lr=5e-5, weight_decay=1e-8, schedule=ScheduleConfig("constant", warmup=0.05))
    training = TrainConfig(steps, 32, optimizers={"main": optimizer}, clip=1.0, ema=0.99, seed=seed, channels_last=True)
    network = NetworkConfig(variant, {"window": size // 32}, weights)
    augment = AugmentConfig("crop", mixup=0.0, cutmix=0.0, smoothing=0.0)
    config = ClassifierConfig(data, False, size, 0.95, network, augment, training, seed=seed)
    return Recipe(config, (Stage("train", train_ratings), Stage("evaluate", evaluate_ratings)))


class Rated(Dataset[dict[str, Any]]):
    """The images of a folder and how many people gave each of them every score; each tenth one is set aside for testing."""

    def __init__(self, folder: str, split: Literal["train", "test"]):
        self.folder, table = Path(folder), Path(folder) / RATINGS
        if not table.is_file():
            raise InputError(f"{table}: no such file; a line of it is an image's name and {SCORES} counts, comma-separated")
        with table.open(newline="") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
        # a first line that names no file is a heading
        rows = [_rating(table, *line) for line in lines if line[0] > 1 or (self.folder / line[1][0]).is_file()]
        if len(rows) < 20:
            raise InputError(f"{table} rates {len(rows)} images: at least 20, of which a tenth is set aside")
        self.rows = [row for number, row in enumerate(rows) if (number % 10 == 9) == (split == "test")]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, counts = self.rows[index]
        try:
            pixels = decode((self.folder / name).read_bytes())
        except (OSError, Unreadable) as error:
            raise InputError(f"{self.folder / name}, which {RATINGS} lists, cannot be read: {error}") from None
        return {"image": tv_tensors.Image(pixels), "target": counts}


def _rating(table: Path, number: int, row: list[str]) -> tuple[str, Tensor]:
    try:
        counts = torch.tensor([float(field) for field in row[1:]])
    except ValueError:
        counts = torch.zeros(0)
    if len(counts) != SCORES or not bool(counts.isfinite().all()) or counts.min() < 0 or counts.sum() <= 0:
        raise InputError(f"{table}, line {number}: expected an image's name and {SCORES} counts, not {','.join(row)[:60]!r}")
    return row[0], counts


def train_ratings(config: ClassifierConfig, run: Run) -> dict[str, Any]:
    """Learns the distributions, keeps the averaged weights; `predict` on the run gives the likeliest scores of any image."""
    rated, cfg = Rated(config.data, "train"), entry_of(config.network.name).pretrained_cfg
    objective = Rate(build_network(config.network, SCORES, config.seed), mean=cfg["mean"], std=cfg["std"])
    training = replace(config.training, batch_size=min(config.training.batch_size, len(rated)))
    folder = run.stage_folder("train")
    fitted = fit(objective, Transformed(rated, training_transform(config), seed=config.seed), training, folder)
    if first_process():
        model: Any = fitted.averaged.model
        save_network(model, [str(score + 1) for score in range(SCORES)], [set()] * SCORES, folder)
    return {"images": len(rated), "seconds": round(fitted.seconds, 1)}


@torch.inference_mode()
def evaluate_ratings(config: ClassifierConfig, run: Run) -> dict[str, Any]:
    """On images set aside: the distance of the distributions, and how their mean scores go together."""
    trained, rated = Trained.of(run), Rated(config.data, "test")
    said, given = [], []
    data = Transformed(rated, trained.transform(), seed=0)
    for batch in Loader(data, min(32, len(rated)), seed=0, shuffle=False, drop_last=False):
        said.append(trained.objective.logits(to_float(batch["image"])).softmax(1))
        given.append(batch["target"] / batch["target"].sum(1, keepdim=True))
    shares, wanted = torch.cat(said), torch.cat(given)
    means = torch.stack((mean_score(shares), mean_score(wanted)))
    numbers = {"distance": float(rating_distance(shares, wanted).mean())}
    numbers["correlation of mean scores"] = float(torch.corrcoef(means)[0, 1])
    return {"images": len(rated), **{name: round(value, 4) for name, value in numbers.items()}}


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


def _sees_everything(measured: Measured) -> bool:
    numbers = measured.numbers
    whole = all(numbers[f"share at {side}x{side}, two blocks"] == 1 for side in measure.SIDES)
    return measured.value == 256 and numbers["block alone"] == numbers["grid alone"] == 16 and whole


@paper.claim(
    "c3",
    rule=_sees_everything,
    says="of 256 tokens either attention alone reaches the 16 of one group, both together all 256; on MaxViT-T's maps of every "
    "stage two blocks reach 100 %",
)
def global_reach(bench: Bench) -> Measured:
    return measure.global_reach()


@paper.claim(
    "c4",
    rule=lambda m: all(points > 0 for points in m.per_seed),
    says="block and grid ahead of the better of the two alone with the same seed, at equal parameters, on every seed",
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
