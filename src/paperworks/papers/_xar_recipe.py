"""xAR's two stages, an autoencoder with a Gaussian latent and the generator of its latents, and the page about them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.data import ImageSource, Transformed
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import EntityKind, NextEntityTransformer
from paperworks.generators.next_entity_sampling import sample
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.objectives.flow_matching import EntityFlow
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Run, Stage, first_process
from paperworks.papers._generation import (
    MNIST,
    FramedImages,
    Mirrored,
    TensorSet,
    adamw,
    class_names,
    framed,
    framed_batches,
    framing,
    kept_tensors,
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
    HELD,
    Judge,
    Seen,
    evenly,
    headline,
    in_batches,
    mean_over_images,
    numbers_table,
    reconstruction_numbers,
    rounded,
    sample_numbers,
    show_neighbours,
    skipped_table,
    spread_over,
)
from paperworks.papers._token_recipe import JudgeConfig, averaged_tokenizer
from paperworks.reporting import Report
from paperworks.tokenizers.kl_autoencoder import KLAutoencoder
from paperworks.training import Batch, TrainConfig, fit

ENCODED = 200
"""images that the autoencoder takes at a time"""


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
    """made, and at least as many held-out ones looked at, for the Frechet distance; 0 for what takes a laptop a minute"""


@dataclass(frozen=True)
class XARConfig:
    data: str = "default"
    image_size: int = 32
    channels: int = 1
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    copies: int = 8
    """how often each training image is encoded for the generator, each time framed differently"""
    flip: bool = False
    """mirror half of the training images: of photos, never of digits or writing"""
    crop_latents: bool = True
    """crop at random what is encoded for the generator, too; else its centre, every second copy mirrored with `flip`"""
    latents: Literal["mean", "sample"] = "mean"
    """what the generator learns of an encoded image: the mean of its posterior, or another sample of it in every batch"""
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


# --- the autoencoder --------------------------------------------------------------------------------------------------


def build_autoencoder(config: XARConfig) -> KLAutoencoder:
    return KLAutoencoder(config.image_size, in_channels=config.channels, **vars(config.autoencoder))


def autoencoder_objective(config: XARConfig) -> TokenizerTraining:
    judge = config.judge
    torch.manual_seed(config.seed)  # initial weights; everything later draws from named generators
    discriminator = PatchDiscriminator(config.channels, judge.discriminator_width, judge.discriminator_layers)
    return TokenizerTraining(
        build_autoencoder(config),
        perceptual=perceptual_loss(judge.perceptual),
        discriminator=discriminator if judge.adversarial_weight else None,
        adversarial=judge.adversarial,
        l2_weight=judge.l2_weight,
        l1_weight=judge.l1_weight,
        perceptual_weight=judge.perceptual_weight,
        codebook_weight=judge.codebook_weight,
        adversarial_weight=judge.adversarial_weight,
        adversarial_start=round(judge.adversarial_start * config.autoencoder_training.steps),
        revive_every=0,
    )


def train_autoencoder(config: XARConfig, run: Run) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps = run.stage_folder("autoencoder"), config.autoencoder_training
    data = training_images(source, config.image_size, config.seed, steps.batch_size, flip=config.flip)
    fitted = fit(autoencoder_objective(config), data, steps, folder, label="autoencoder")
    autoencoder = averaged_tokenizer(fitted)
    autoencoder.eval().set_scale(framed(source, config.image_size, 1000))
    save_part(autoencoder, folder)
    return {
        "images": len(source),
        "classes": class_names(source),
        "skipped": skipped_images(source),
        "seconds": round(fitted.seconds, 1),
        "scale": round(float(autoencoder.scale), 4),
    }


# --- the generator ----------------------------------------------------------------------------------------------------


def latent_images(config: XARConfig, source: ImageSource) -> FramedImages:
    """Every training image `copies` times, each time framed differently."""
    copies = []
    for copy in range(config.copies):
        frame = framing(source, config.image_size, random=config.crop_latents, flip=config.flip and config.crop_latents)
        if config.flip and not config.crop_latents and copy % 2:
            frame = Mirrored(frame)  # as often as drawing it would, and both ways of every image
        copies.append(Transformed(source, frame, seed=config.seed + 1 + copy))
    return FramedImages(*copies, workers=config.flow_training.workers)


def encoded(config: XARConfig, autoencoder: KLAutoencoder, images: FramedImages) -> dict[str, Tensor]:
    """Means of all posteriors as `latents`, with `deviation` beside them where samples are wanted, and labels. A batch of
    images is in memory at a time."""
    shape = (len(images), autoencoder.latent_channels, autoencoder.side, autoencoder.side)
    names = ("latents", "deviation") if config.latents == "sample" else ("latents",)
    columns = {name: torch.empty(shape) for name in names}
    begin = 0
    for batch in images.split(ENCODED):
        for column, part in zip(columns.values(), autoencoder.encode_moments(batch)):
            column[begin : begin + len(part)] = part
        begin += len(batch)
    return {**columns, "label": images.labels}


def training_latents(config: XARConfig, run: Run, autoencoder: KLAutoencoder) -> TensorSet:
    """Kept in a file, so a resumed run reads them."""

    def make() -> dict[str, Tensor]:
        source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
        return encoded(config, autoencoder, latent_images(config, source))

    return kept_tensors(run.stage_folder("generator") / "latents.safetensors", make)


def sampled(batch: Batch, generator: torch.Generator) -> Batch:
    """A sample of each posterior in a batch of `encoded` ones."""
    mean, deviation = batch["latents"], batch["deviation"]
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return {"latents": mean + deviation * noise, "label": batch["label"]}


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
    fitted = fit(
        EntityFlow(model, config.label_dropout),
        data.at_least(steps.batch_size),
        steps,
        folder,
        batch_transform=sampled if config.latents == "sample" else None,
        label="generator",
    )
    best = fitted.averaged
    assert isinstance(best, TokenPrediction)
    save_part(best.model, folder)
    return {"seconds": round(fitted.seconds, 1), "parameters": sum(p.numel() for p in model.parameters())}


# --- samples, numbers, the page ---------------------------------------------------------------------------------------


def parts_of(run: Run) -> tuple[KLAutoencoder, NextEntityTransformer]:
    return load_part(KLAutoencoder, run.folder / "autoencoder"), load_part(NextEntityTransformer, run.folder / "generator")


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


@torch.inference_mode()
def rebuild(autoencoder: KLAutoencoder, images: Tensor) -> Tensor:
    return torch.cat([autoencoder.decode_latents(autoencoder.encode_latents(part)) for part in images.split(ENCODED)])


def evaluate(config: XARConfig, run: Run, test: Any) -> dict[str, Any]:
    """All numbers of a run on held-out images, of which a batch at a time is in memory."""
    autoencoder, model = parts_of(run)
    judge = Judge.of(config.data, run.stage_folder("judge"), config.sampling.images)
    images = framed_batches(evenly(test, judge.limit), config.image_size)
    real, rebuilt = Seen(judge), Seen(judge)
    batches: list[tuple[int, dict[str, Any]]] = []
    for batch, truth in zip(images.split(HELD), images.labels.split(HELD)):
        again = rebuild(autoencoder, batch)
        batches.append((len(batch), reconstruction_numbers(batch, again)))
        real.add(batch, truth)
        rebuilt.add(again)
    classes = len(run.result("autoencoder")["classes"])
    labels = torch.arange(config.sampling.images or judge.limit) % classes

    def seen(network: NextEntityTransformer) -> tuple[Seen, float]:
        """Its images, and the seconds they took."""
        found, seconds = Seen(judge), 0.0
        for first, wanted in zip(range(0, len(labels), HELD), labels.split(HELD)):
            started = time.perf_counter()
            made = make_images(config, network, autoencoder, wanted, config.seed, first)
            seconds += time.perf_counter() - started
            found.add(made, wanted)
        return found, seconds

    made, seconds = seen(model)
    torch.manual_seed(config.seed + 1)
    untrained, _ = seen(build_generator(config, classes).eval())
    numbers = mean_over_images(batches) | {
        "milliseconds per sampled image": 1e3 * seconds / len(labels),
        "sequential passes": len(model.entities.sizes) * config.sampling.steps,
    }
    numbers |= sample_numbers(judge, real, images.labels, made, labels, untrained=untrained, rebuilt=rebuilt)
    return rounded(numbers)


def write_report(config: XARConfig, run: Run) -> Mapping[str, Any]:
    """The last stage: numbers and report.html, by the first process."""
    if not first_process():
        return {}
    test = open_test(config.data, channels=config.channels, strict=config.strict)
    train = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    numbers, (autoencoder, model) = evaluate(config, run, test), parts_of(run)
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
    page.compare("What the autoencoder keeps", {"held-out image": some, "from its latents": rebuild(autoencoder, some)})
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
