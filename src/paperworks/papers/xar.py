"""xAR (2502.20388): continuous latents, an entity at a time, by flow matching from noisy context.

paperworks run xar                                   digits in four cells, minutes on two cores
paperworks run xar --entity scale                    another entity: token, cell, subsample, scale, image
paperworks sample runs/xar --classes 3 7
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.analysis.metrics import psnr, ssim
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import EntityKind, NextEntityTransformer, make_entities
from paperworks.generators.next_entity_sampling import sample
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.objectives.flow_matching import EntityFlow
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most, equals, first_process
from paperworks.papers import _xar_claims as measure
from paperworks.papers import _xar_training_claims as trained_claims
from paperworks.papers import card
from paperworks.papers._generation import (
    MNIST,
    TensorSet,
    adamw,
    class_names,
    default_channels,
    framed,
    framed_at_random,
    kept_tensors,
    labels_of,
    load_part,
    open_split,
    open_test,
    perceptual_loss,
    save_part,
    skipped_images,
    tokenizer_training,
    training_images,
)
from paperworks.papers._generation_report import (
    Judge,
    chosen_labels,
    headline,
    in_batches,
    numbers_table,
    rounded,
    sample_numbers,
    show_neighbours,
    skipped_table,
    spread_over,
)
from paperworks.papers._token_recipe import JudgeConfig
from paperworks.reporting import Report, save_grid
from paperworks.tokenizers.kl_autoencoder import KLAutoencoder
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit


@dataclass(frozen=True)
class AutoencoderConfig:
    latent_channels: int = 8
    kl_weight: float = 1e-5
    ch: int = 24
    ch_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    groups: int = 8
    patch: int = 2


@dataclass(frozen=True)
class FlowConfig:
    dim: int = 192
    depth: int = 3
    """blocks of each of the two halves"""
    heads: int = 6
    entity: EntityKind = "cell"
    entity_size: int = 2
    dropout: float = 0.0


@dataclass(frozen=True)
class FlowSampling:
    steps: int = 20
    guidance: float = 1.5
    """total weight on the class at the last entity; 1 for none"""
    method: Literal["sde", "ode"] = "sde"
    images: int = 300


@dataclass(frozen=True)
class XARConfig:
    data: str = "default"
    image_size: int = 32
    channels: int = 1
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    copies: int = 8
    seed: int = 0
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(adversarial_weight=0.2, adversarial_start=0.7))
    autoencoder_training: TrainConfig = field(default_factory=lambda: tokenizer_training(600, 32, 2e-3))
    flow: FlowConfig = FlowConfig()
    flow_training: TrainConfig = field(
        default_factory=lambda: TrainConfig(900, 64, optimizers={"main": adamw(2e-3, 0.02)}, clip=1.0, ema=0.99)
    )
    label_dropout: float = 0.1
    sampling: FlowSampling = FlowSampling()


# --- stages -----------------------------------------------------------------------------------------------------------


def build_autoencoder(config: XARConfig) -> KLAutoencoder:
    return KLAutoencoder(config.image_size, in_channels=config.channels, **vars(config.autoencoder))


def train_autoencoder(config: XARConfig, run: Run) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps, judge = run.stage_folder("autoencoder"), config.autoencoder_training, config.judge
    torch.manual_seed(config.seed)
    discriminator = PatchDiscriminator(config.channels, judge.discriminator_width, judge.discriminator_layers)
    objective = TokenizerTraining(
        build_autoencoder(config),
        perceptual=perceptual_loss(judge.perceptual),
        discriminator=discriminator if judge.adversarial_weight else None,
        adversarial_weight=judge.adversarial_weight,
        adversarial_start=round(judge.adversarial_start * steps.steps),
        revive_every=0,
    )
    data = training_images(source, config.image_size, config.seed, steps.batch_size)
    fitted = fit(objective, data, steps, folder, label="autoencoder")
    autoencoder = objective.tokenizer
    autoencoder.eval().set_scale(framed(source, config.image_size, 1000))
    save_part(autoencoder, folder)
    return {
        "images": len(source),
        "classes": class_names(source),
        "skipped": skipped_images(source),
        "seconds": round(fitted.seconds, 1),
        "scale": round(float(autoencoder.scale), 4),
    }


def training_latents(config: XARConfig, run: Run, autoencoder: KLAutoencoder) -> TensorSet:
    def make() -> dict[str, Tensor]:
        source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
        copies = [framed_at_random(source, config.image_size, config.seed + 1 + copy) for copy in range(config.copies)]
        latents = torch.cat([autoencoder.encode_latents(part) for part in torch.cat(copies).split(200)])
        return {"latents": latents, "label": labels_of(source).repeat(config.copies)}

    return kept_tensors(run.stage_folder("generator") / "latents.safetensors", make)


def build_generator(config: XARConfig, classes: int) -> NextEntityTransformer:
    part, side = config.flow, build_autoencoder(config).side
    return NextEntityTransformer(
        classes,
        side,
        config.autoencoder.latent_channels,
        part.dim,
        part.depth,
        part.heads,
        entity=part.entity,
        entity_size=part.entity_size,
        dropout=part.dropout,
    )


def train_generator(config: XARConfig, run: Run) -> Mapping[str, Any]:
    autoencoder = load_part(KLAutoencoder, run.folder / "autoencoder")
    data = training_latents(config, run, autoencoder)
    torch.manual_seed(config.seed + 1)
    model = build_generator(config, len(run.result("autoencoder")["classes"]))
    folder, steps = run.stage_folder("generator"), config.flow_training
    fitted = fit(EntityFlow(model, config.label_dropout), data.at_least(steps.batch_size), steps, folder, label="generator")
    best = fitted.averaged
    assert isinstance(best, TokenPrediction)
    save_part(best.model, folder)
    return {"seconds": round(fitted.seconds, 1), "parameters": sum(p.numel() for p in model.parameters())}


def make_images(
    config: XARConfig, model: NextEntityTransformer, autoencoder: KLAutoencoder, labels: Tensor, seed: int = 0, first: int = 0
) -> Tensor:
    """Samples [N, C, H, W] in [0, 1]; image i depends on (seed, first + i) and its label alone."""
    part = config.sampling

    def make(wanted: Tensor, start: int) -> Tensor:
        draws = Draws.seeded(seed, len(wanted), first + start)
        made = sample(model, wanted, draws, steps=part.steps, guidance=part.guidance, method=part.method)
        with torch.inference_mode():
            return autoencoder.decode_latents(made.latents)

    return in_batches(make, labels, 100)


def evaluate(config: XARConfig, run: Run, test: Any) -> dict[str, Any]:
    """All numbers of a run on held-out images."""
    autoencoder, model = _parts(run)
    judge = Judge.of(config.data, run.stage_folder("judge"))
    images, truth = framed(test, config.image_size, judge.limit), labels_of(test)[: judge.limit]
    with torch.inference_mode():
        rebuilt = torch.cat([autoencoder.decode_latents(autoencoder.encode_latents(part)) for part in images.split(200)])
    classes = len(run.result("autoencoder")["classes"])
    labels = torch.arange(min(config.sampling.images, judge.limit)) % classes
    started = time.perf_counter()
    made = make_images(config, model, autoencoder, labels, config.seed)
    seconds = time.perf_counter() - started
    torch.manual_seed(config.seed + 1)
    fresh = build_generator(config, classes).eval()
    untrained = make_images(config, fresh, autoencoder, labels, config.seed)
    numbers: dict[str, Any] = {
        "reconstruction PSNR (dB)": psnr(rebuilt, images),
        "reconstruction SSIM": ssim(rebuilt, images),
        "milliseconds per sampled image": 1e3 * seconds / len(labels),
        "sequential passes": len(model.entities.sizes) * config.sampling.steps,
    }
    numbers |= sample_numbers(judge, images, truth, made, labels, untrained=untrained, rebuilt=rebuilt)
    return rounded(numbers)


def _parts(run: Run) -> tuple[KLAutoencoder, NextEntityTransformer]:
    return load_part(KLAutoencoder, run.folder / "autoencoder"), load_part(NextEntityTransformer, run.folder / "generator")


def write_report(config: XARConfig, run: Run) -> Mapping[str, Any]:
    """The last stage: numbers and report.html, by the first process."""
    if not first_process():
        return {}
    test = open_test(config.data, channels=config.channels, strict=config.strict)
    train = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    numbers, (autoencoder, model) = evaluate(config, run, test), _parts(run)
    millions = run.result("generator")["parameters"] / 1e6
    names, minutes = run.result("autoencoder")["classes"], sum(run.seconds.values()) / 60
    page = Report(
        "xAR on handwritten digits" if config.data in MNIST else "xAR on your images",
        f"{run.result('autoencoder')['images']} training images, a {millions:.1f} M network, {minutes:.1f} minutes",
    )
    page.figures(headline(numbers))
    columns, part = min(len(names), 10), config.sampling
    made = make_images(config, model, autoencoder, torch.arange(columns).repeat(10), config.seed, first=100_000)
    entities = f"{len(model.entities.sizes)} entities of kind {config.flow.entity}, {part.steps} steps each"
    page.images(
        "Samples, a column per class",
        made,
        columns=columns,
        labels=names[:columns],
        caption=f"Not selected. {entities}, guidance up to {part.guidance:g}.",
    )
    show_neighbours(page, made[:columns], train, config.image_size)
    some = framed(spread_over(test, 12), config.image_size)
    with torch.inference_mode():
        rebuilt = autoencoder.decode_latents(autoencoder.encode_latents(some))
    page.compare("What the autoencoder keeps", {"held-out image": some, "from its latents": rebuilt})
    numbers_table(page, numbers)
    page.metrics("Training the autoencoder", run.folder / "autoencoder" / "metrics.jsonl", ["generator/mse"])
    page.metrics("Training the generator", run.folder / "generator" / "metrics.jsonl", ["loss"])
    skipped_table(page, run.result("autoencoder")["skipped"])
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


STAGES = (
    Stage("autoencoder", train_autoencoder),
    Stage("generator", train_generator),
    Stage("report", write_report),
)

paper = Paper(
    card("xar"),
    parts=[NextEntityTransformer, make_entities, sample, EntityFlow, KLAutoencoder],
    variants={
        "xar_base": Variant(partial(NextEntityTransformer, 1000, 16, 16, 768, 8, 12), 172.64, "40 steps, guidance 2.7"),
        "xar_large": Variant(partial(NextEntityTransformer, 1000, 16, 16, 1024, 16, 16), 608.40, "50 steps, guidance 2.3"),
        "xar_huge": Variant(partial(NextEntityTransformer, 1000, 16, 16, 1280, 20, 16), 1186.02, "50 steps, guidance 2.2"),
        "kl16": Variant(KLAutoencoder, 66.46, "MAR's autoencoder, 16 channels"),
    },
)


@paper.recipe("laptop")
def laptop(data: str = "default", entity: EntityKind = "cell", seed: int = 0) -> Recipe:
    """Both stages on 32-pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        entity: token, cell, subsample, scale or image
        seed: of initial weights, data order and sampling
    """
    size = 4 if entity == "scale" else 2
    config = XARConfig(data=data, channels=default_channels(data), seed=seed, flow=FlowConfig(entity=entity, entity_size=size))
    return Recipe(config, STAGES)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", size: Literal["base", "large", "huge"] = "base", seed: int = 0) -> Recipe:
    """The published setting: 256 pixels, 16 x 16 latents of 16 channels, 800 epochs of batch 2048; needs a cluster.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        size: base, large or huge
        seed: of initial weights, data order and sampling
    """
    dim, depth, heads, steps, guidance = {
        "base": (768, 8, 12, 40, 2.7),
        "large": (1024, 16, 16, 50, 2.3),
        "huge": (1280, 20, 16, 50, 2.2),
    }[size]
    schedule = ScheduleConfig("cosine", warmup=1 / 8, end=0.025)
    optimizer = OptimizerConfig(lr=4e-4, betas=(0.9, 0.96), weight_decay=0.02, schedule=schedule)
    config = XARConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=2,
        seed=seed,
        autoencoder=AutoencoderConfig(16, 1e-6, 128, (1, 1, 2, 2, 4), 2, 32, 1),
        judge=JudgeConfig("lpips", discriminator_width=64, discriminator_layers=3),
        autoencoder_training=tokenizer_training(250_000, 256, 1e-4),
        flow=FlowConfig(dim, depth, heads, "cell", 8, 0.1),
        flow_training=TrainConfig(
            800 * 1_281_167 // 2048, 2048, optimizers={"main": optimizer}, clip=1.0, ema=0.9999, checkpoint_every=5000
        ),
        sampling=FlowSampling(steps, guidance, images=50_000),
    )
    return Recipe(config, STAGES)


@paper.verb("sample")
def sample_images(
    run: Run, *, classes: tuple[str, ...] = (), count: int = 10, seed: int = 1, out: Path | None = None
) -> dict[str, Any]:
    """Makes images.

    Args:
        classes: names of classes to make; all when none is named
        count: images per class
        seed: another one gives other images
        out: PNG to write, by default samples.png in the run's folder
    """
    config: XARConfig = run.config(XARConfig)
    autoencoder, model = _parts(run)
    wanted = chosen_labels(run.result("autoencoder")["classes"], classes).repeat_interleave(count)
    made = make_images(config, model, autoencoder, wanted, seed)
    path = save_grid(made, out or run.folder / "samples.png", count)
    return {"images": len(made), "file": str(path)}


@paper.verb("evaluate")
def evaluate_run(run: Run, *, data: str | None = None) -> dict[str, Any]:
    """Measures a run again, on its own held-out images or on others.

    Args:
        data: other images of the same classes
    """
    config: XARConfig = run.config(XARConfig)
    return evaluate(config, run, open_test(data or config.data, channels=config.channels))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=equals(5), says="all five kinds split and merge exactly, take a training step and sample")
def five_entities(bench: Bench) -> Measured:
    return measure.five_entities()


@paper.claim("c2", rule=at_most(0.8), says="the error grows at least 20 % less than after clean teacher forcing, on every seed")
def exposure_bias(bench: Bench) -> Measured:
    return trained_claims.exposure(bench)


@paper.claim("c3", rule=at_most(0.8), says="loss falls by a fifth; samples finite, three times nearer than untrained ones")
def continuous_entities(bench: Bench) -> Measured:
    return trained_claims.continuous(bench)


@paper.claim("c10", rule=equals(1), says="training reads latents and labels only; sampling has no interval option")
def no_teacher(bench: Bench) -> Measured:
    return trained_claims.no_teacher(bench)


@paper.claim("c4", rule=equals(172.64, absolute=1.0), says="within 1 M of 172")
def base_size(bench: Bench) -> Measured:
    return measure.base_size()


@paper.claim("c5", rule=equals(675.0, absolute=1.0), says="DiT-XL/2's count within 1 M of 675")
def larger_models(bench: Bench) -> Measured:
    return measure.larger_models()


@paper.claim("c7", rule=at_least(5.0), says="DiT-XL/2's operations for 250 guided steps at least 5 times xAR-B's for an image")
def operations(bench: Bench) -> Measured:
    return measure.operations()
