"""MaxViT's generative form: a recipe that trains the generator against a discriminator, its page, and samples of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paperworks.analysis.metrics import frechet_distance, inception_score
from paperworks.generators.maxvit_gan import MaxViTGenerator
from paperworks.layers.residual_discriminator import ResidualDiscriminator
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.image_gan import ImageGAN
from paperworks.paper import Run, Stage, first_process
from paperworks.papers._generation import (
    MNIST,
    framed,
    labels_of,
    load_part,
    open_split,
    open_test,
    save_part,
    skipped_images,
    training_images,
)
from paperworks.papers._generation_report import (
    Judge,
    numbers_table,
    rounded,
    sample_numbers,
    show_neighbours,
    shown,
    skipped_table,
    spread_over,
)
from paperworks.reporting import Report, save_grid
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit


@dataclass(frozen=True)
class GeneratorConfig:
    """Widths from the first to the last resolution; the last one is the image's."""

    dims: tuple[int, ...] = (96, 64, 32, 16)
    depth: int = 1
    latent: int = 64
    tokens: int = 8
    token_dim: int = 64
    window: int = 4
    head_dim: int = 16
    mlp_ratio: float = 2.0
    expand: float = 2.0


PUBLISHED = GeneratorConfig(
    (320, 192, 160, 128, 64), 2, latent=128, tokens=16, token_dim=256, window=8, head_dim=32, mlp_ratio=4.0, expand=4.0
)
"""at 128 pixels, with about as many parameters as the paper prints"""


@dataclass(frozen=True)
class DiscriminatorConfig:
    width: int = 12
    """at full resolution; doubles with every halving"""
    widest: int = 96


def adam(steps: int, lr: float) -> TrainConfig:
    """Adam without momentum for both sides, constant rates, averaged weights; all in float32."""
    optimizer = OptimizerConfig("adam", lr=lr, betas=(0.0, 0.99), schedule=ScheduleConfig("constant", warmup=0.02))
    both = {"main": optimizer, "discriminator": optimizer}
    return TrainConfig(steps, 32, optimizers=both, clip=5.0, ema=0.995, precision="32", channels_last=True)


@dataclass(frozen=True)
class GenerateConfig:
    data: str = "default"
    image_size: int = 32
    channels: int = 1
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    seed: int = 0
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    game: Adversarial = field(
        default_factory=lambda: Adversarial("non_saturating", r1=0.3, r1_every=8, augment=("translation",))
    )
    training: TrainConfig = field(default_factory=lambda: adam(1200, 1.5e-3))
    images: int = 1000
    """made for the Frechet distance"""
    judged: int = 0
    """of these and of the held-out images at most; 0 for as many as two cores judge in a short while"""


def build_generator(config: GenerateConfig) -> MaxViTGenerator:
    part = config.generator
    return MaxViTGenerator(
        config.image_size,
        config.channels,
        part.dims,
        part.depth,
        latent=part.latent,
        tokens=part.tokens,
        token_dim=part.token_dim,
        window=part.window,
        head_dim=part.head_dim,
        mlp_ratio=part.mlp_ratio,
        expand=part.expand,
    )


def build_discriminator(config: GenerateConfig) -> nn.Module:
    return ResidualDiscriminator(config.image_size, config.channels, config.discriminator.width, config.discriminator.widest)


def trained_generator(config: GenerateConfig, generator: MaxViTGenerator, folder: Path, label: str) -> tuple[Any, float]:
    """(the generator with averaged weights and fresh statistics, seconds)."""
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    data = training_images(source, config.image_size, config.seed, config.training.batch_size)
    objective = ImageGAN(generator, build_discriminator(config), config.game)
    fitted = fit(objective, data, config.training, folder, label=label)
    best = fitted.averaged
    assert isinstance(best, ImageGAN)
    best.generator.settle(torch.Generator().manual_seed(config.seed))
    return best.generator.eval(), fitted.seconds


def train(config: GenerateConfig, run: Run) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder = run.stage_folder("train")
    torch.manual_seed(config.seed)  # initial weights; everything later draws from named generators
    generator, seconds = trained_generator(config, build_generator(config), folder, "generator and discriminator")
    save_part(generator, folder)
    return {
        "images": len(source),
        "skipped": skipped_images(source),
        "seconds": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
    }


def evaluate(config: GenerateConfig, run: Run, generator: MaxViTGenerator) -> dict[str, Any]:
    """Samples against held-out images; training images against them say how near one can come."""
    judge = Judge.of(config.data, run.stage_folder("judge"))
    judge = replace(judge, limit=config.judged or judge.limit)
    test = open_test(config.data, channels=config.channels, strict=config.strict)
    known = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    real = framed(test, config.image_size, judge.limit)
    count = min(config.images, judge.limit)
    started = time.perf_counter()
    made = generator.sample(count, config.seed)
    milliseconds = 1e3 * (time.perf_counter() - started) / count
    torch.manual_seed(config.seed + 1)
    fresh = build_generator(config)
    fresh.settle(torch.Generator().manual_seed(config.seed), batches=2)
    numbers = {"milliseconds per sampled image": milliseconds}
    # without classes of its own the generator has no labels to be compared with
    plain = replace(judge, knows_classes=False)
    labels = labels_of(test)[: len(real)]
    numbers |= sample_numbers(plain, real, labels, made, labels, untrained=fresh.eval().sample(count, config.seed))
    if len(real) > 2:
        training = framed(spread_over(known, count), config.image_size)
        numbers["Frechet distance of training images"] = frechet_distance(judge.features(real), judge.features(training))
    if judge.knows_classes:
        for name, images in (("samples", made), ("held-out images", real)):
            with torch.inference_mode():
                found = judge.network.logits(images).softmax(1)
            numbers[f"inception score of {name}"] = inception_score(found)
            numbers[f"classes among {name}"] = int((found.argmax(1).bincount(minlength=found.shape[1]) > 0).sum())
    return rounded(numbers)


def report(config: GenerateConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    generator = load_part(MaxViTGenerator, run.folder / "train")
    numbers, result = evaluate(config, run, generator), run.result("train")
    page = Report(
        "MaxViT makes handwritten digits" if config.data in MNIST else "MaxViT makes images like yours",
        f"{result['images']} training images, a {result['parameters'] / 1e6:.2f} M generator trained in "
        f"{result['seconds'] / 60:.1f} minutes. The generator is built to our specification: the paper released none.",
    )
    wanted = ("Frechet distance of samples", "Frechet distance before training", "Frechet distance of training images")
    page.figures({name: shown(numbers[name]) for name in wanted if name in numbers})
    made = generator.sample(100, config.seed, first=100_000)
    page.images("Samples", made, columns=10, caption="Not selected.")
    known = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    show_neighbours(page, made[:10], known, config.image_size)
    numbers_table(page, numbers)
    page.metrics("Training", run.folder / "train" / "metrics.jsonl", ["generator/loss", "discriminator/loss"])
    skipped_table(page, result["skipped"])
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


STAGES = (Stage("train", train), Stage("report", report))


def sample(run: Run, count: int, seed: int, out: Path | None) -> dict[str, Any]:
    generator = load_part(MaxViTGenerator, run.folder / "train")
    made = generator.sample(count, seed)
    path = save_grid(made, out or run.folder / "samples.png", min(10, count))
    return {"images": len(made), "file": str(path)}
