"""DetailFlow (2505.21473): a sequence of codes from layout to detail, generated a group at a time and able to mend its errors.

paperworks run detailflow                            digits in 16 codes, minutes on two cores
paperworks sample runs/detailflow --tokens 8         fewer codes: the same images at a lower resolution
paperworks run detailflow --data FOLDER              your own photos
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.analysis.features import lite0
from paperworks.generators.draws import Draws
from paperworks.generators.group_parallel import GroupParallelTransformer, sample_tokens
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.detail_training import DetailTraining, GroupPrediction, training_sequences
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Variant, at_least, at_most, equals
from paperworks.papers import _detailflow_claims as measure
from paperworks.papers import card
from paperworks.papers._generation import (
    TensorSet,
    adamw,
    default_channels,
    framed,
    open_test,
    shows_photos,
    tokenizer_training,
)
from paperworks.papers._generation_report import chosen_labels, in_batches, spread_over
from paperworks.papers._token_recipe import JudgeConfig, Kit, SampleConfig, TokenConfig, add_verbs, settings
from paperworks.reporting import Report, save_grid
from paperworks.tokenizers.detailflow import DetailFlow
from paperworks.tokenizers.resolution_map import ResolutionMap
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True)
class TokenizerConfig:
    patch_size: int = 8
    latents: int = 16
    group: int = 4
    encoder: tuple[int, int, int, int] = (128, 3, 4, 512)
    """width, blocks, heads, hidden width"""
    decoder: tuple[int, int, int, int] = (128, 3, 4, 512)
    vocab_size: int = 512
    code_dim: int = 8
    positions: int = 0


@dataclass(frozen=True)
class GeneratorConfig:
    dim: int = 192
    depth: int = 6
    heads: int = 6
    multiple_of: int = 64
    dropout: float = 0.0


@dataclass(frozen=True)
class DetailConfig(TokenConfig):
    tokenizer: TokenizerConfig = TokenizerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    prefix_share: float = 0.2
    """of the tokenizer's steps that decode a prefix only"""
    correction: float = 0.5
    """share of the tokenizer's steps that plant and repair an error; 0 trains without"""
    correction_shown: float = 0.3
    """share of the generator's images that hold one"""
    quantize_from: float = 0.0
    """share of the tokenizer's training after which features are quantised"""
    global_weight: float = 0.0
    """of turning the first token towards a frozen network's features of the image"""
    tokenizer_training: TrainConfig = field(default_factory=lambda: tokenizer_training(670, 64, 1e-3))


def build_tokenizer(config: DetailConfig) -> DetailFlow:
    return DetailFlow(
        config.image_size, in_channels=config.channels, correction=config.correction > 0, **vars(config.tokenizer)
    )


def build_generator(config: DetailConfig, classes: int) -> GroupParallelTransformer:
    part, tokens = config.generator, config.tokenizer
    return GroupParallelTransformer(
        classes,
        tokens.latents,
        tokens.vocab_size,
        part.dim,
        part.depth,
        part.heads,
        group=tokens.group,
        multiple_of=part.multiple_of,
        dropout=part.dropout,
    )


def learner_options(config: DetailConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"prefix_share": config.prefix_share, "correction": config.correction}
    options["quantize_from"] = round(config.quantize_from * config.tokenizer_training.steps)
    if config.global_weight:
        options |= {"teacher": lite0(), "teacher_width": 1280, "global_weight": config.global_weight}
    return options


def columns(config: DetailConfig, tokenizer: DetailFlow, images: Tensor, labels: Tensor) -> TensorSet:
    """Clean sequences, and for each one with a planted error: what is read and what should follow."""
    generator = torch.Generator().manual_seed(config.seed)
    return TensorSet(**training_sequences(tokenizer, images, generator, correction=config.correction > 0), label=labels)


def objective(config: DetailConfig, model: Any, tokenizer: DetailFlow, data: TensorSet) -> TokenPrediction:
    return GroupPrediction(model, config.label_dropout, config.correction_shown if config.correction else 0.0)


def sample(
    config: DetailConfig, model: GroupParallelTransformer, tokenizer: DetailFlow, labels: Tensor, draws: Draws
) -> Tensor:
    part = config.sampling
    filters: dict[str, Any] = {"temperature": part.temperature, "top_k": part.top_k, "top_p": part.top_p}
    return sample_tokens(model, labels, draws, guidance=part.guidance, **filters)


def passes(config: DetailConfig) -> int:
    part = config.tokenizer
    return part.group + (part.latents - part.group) // part.group


def show_more(page: Report, config: DetailConfig, run: Run, tokenizer: DetailFlow, model: Any) -> None:
    images = framed(spread_over(open_test(config.data, channels=config.channels), 10), config.image_size)
    with torch.inference_mode():
        (tokens,) = tokenizer.encode(images)
        labels = torch.arange(10) % model.num_classes
        made = sample(config, model, tokenizer, labels, Draws.seeded(config.seed, 10, 200_000))
        page.compare("From layout to detail: held-out images", prefixes(tokenizer, tokens) | {"original": images})
        page.compare(
            "From layout to detail: samples",
            prefixes(tokenizer, made),
            caption="Prefixes of the same sequences, each decoded at the resolution it stands for and enlarged here.",
        )
    counts = tokenizer.map.lengths
    rows = [[count, tokenizer.map.resolution(count), tokenizer.map.decoded(count)] for count in counts]
    page.table("What a prefix stands for", ["tokens", "resolution", "decoded at"], rows)


def prefixes(tokenizer: DetailFlow, tokens: Tensor) -> dict[str, Tensor]:
    """Images of some prefixes of tokens [B, L], enlarged to full size."""
    rows = {}
    for count in tokenizer.map.best().values():
        made, side = tokenizer.decode_prefix(tokens, count), tokenizer.map.decoded(count)
        name = f"{count} token{'s' * (count > 1)}, {side} px"
        rows[name] = F.interpolate(made, size=(tokenizer.image_size,) * 2, mode="nearest")
    return rows


KIT = Kit(
    "DetailFlow",
    DetailFlow,
    GroupParallelTransformer,
    build_tokenizer,
    build_generator,
    sample,
    passes,
    objective=objective,
    learner=DetailTraining,
    learner_options=learner_options,
    columns=columns,
    settings=lambda config: f"{passes(config)} passes. {settings(config)}",
    more=show_more,
)

paper = Paper(
    card("detailflow"),
    parts=[DetailFlow, ResolutionMap, DetailTraining, GroupParallelTransformer, GroupPrediction],
    variants={
        "detailflow_16": Variant(DetailFlow, 270.53, "128 tokens; 12 blocks of SigLIP 2 as encoder"),
        "detailflow_32": Variant(partial(DetailFlow, latents=256), 271.07, "256 tokens"),
        "detailflow_64": Variant(partial(DetailFlow, latents=512), 272.16, "512 tokens"),
        "gpt_b": Variant(partial(GroupParallelTransformer, dim=768, depth=12, heads=12), 98.31, "128 tokens"),
        "gpt_l": Variant(GroupParallelTransformer, 326.14, "128 tokens"),
        "gpt_xl": Variant(partial(GroupParallelTransformer, dim=1280, depth=36, heads=20), 753.74, "128 tokens"),
    },
)
add_verbs(paper, KIT, DetailConfig)


@paper.verb("sample")
def sample_images(
    run: Run,
    *,
    classes: tuple[str, ...] = (),
    count: int = 10,
    tokens: int = 0,
    seed: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Makes images.

    Args:
        classes: names of classes to make; all when none is named
        count: images per class
        tokens: how many to decode, at the resolution they stand for; 0 for all
        seed: another one gives other images
        out: PNG to write, by default samples.png in the run's folder
    """
    config: DetailConfig = run.config(DetailConfig)
    tokenizer, model = KIT.tokenizer_of(run), KIT.generator_of(run)
    length = tokens or tokenizer.latents
    tokenizer.map.check(length)
    wanted = chosen_labels(run.result("tokenizer")["classes"], classes).repeat_interleave(count)

    def make(labels: Tensor, start: int) -> Tensor:
        drawn = sample(config, model, tokenizer, labels, Draws.seeded(seed, len(labels), start))
        with torch.inference_mode():
            return tokenizer.decode_prefix(drawn, length)

    made = in_batches(make, wanted)
    path = save_grid(made, out or run.folder / "samples.png", count)
    return {"images": len(made), "pixels": made.shape[-1], "file": str(path)}


@paper.recipe("laptop")
def laptop(data: str = "default", correction: bool = True, seed: int = 0) -> Recipe:
    """Both stages on 32-pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        correction: train to mend planted errors
        seed: of initial weights, data order and sampling
    """
    config = DetailConfig(
        data=data,
        channels=default_channels(data),
        flip=shows_photos(data),
        seed=seed,
        correction=0.3 if correction else 0.0,
        quantize_from=0.4,
        judge=JudgeConfig("pyramid", adversarial_weight=0.2, adversarial_start=0.7),
        tokenizer_training=tokenizer_training(650, 64, 1.5e-3),
        generator_training=TrainConfig(370, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99),
        sampling=SampleConfig(guidance=1.5, top_p=0.96),
    )
    return Recipe(config, KIT.stages)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", tokens: int = 128, seed: int = 0) -> Recipe:
    """The published setting: 250 epochs of batch 256, GPT-L for 300 epochs; needs a cluster. Other than there, the encoder
    starts from random weights instead of SigLIP 2's, the first token is aligned with EfficientNet-Lite0's features (both would
    have to be fetched), patches are judged instead of DINO's features, without a consistency term, and LPIPS has its full
    weight from the start.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        tokens: 128, 256 or 512
        seed: of initial weights, data order and sampling
    """
    guidance = {128: 1.45, 256: 1.5, 512: 1.32}.get(tokens, 1.45)
    schedule = ScheduleConfig("cosine", end=0.1)
    first = OptimizerConfig("adam", lr=1e-4, betas=(0.9, 0.95), schedule=schedule)
    second = OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=ScheduleConfig("constant"))
    epoch = 1_281_167 // 256
    config = DetailConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=2,
        flip=True,
        seed=seed,
        tokenizer=TokenizerConfig(16, tokens, 8, (1152, 12, 16, 4304), (768, 12, 12, 3072), 8192, 8),
        generator=GeneratorConfig(1024, 24, 16, 256, 0.1),
        correction=1.0,
        global_weight=1.0,
        judge=JudgeConfig(
            "lpips",
            adversarial_weight=0.2,
            adversarial_start=40_000 / (250 * epoch),
            adversarial=Adversarial(lecam=0.001, augment=("colour", "translation", "cutout")),
            discriminator_width=64,
        ),
        tokenizer_training=TrainConfig(
            250 * epoch, 256, optimizers={"main": first, "discriminator": first}, clip=1.0, checkpoint_every=5000
        ),
        generator_training=TrainConfig(
            300 * epoch, 256, optimizers={"main": second}, ema=0.9999, clip=1.0, checkpoint_every=5000
        ),
        sampling=SampleConfig(guidance, 0, 1.0, images=50_000),
    )
    return Recipe(config, KIT.stages)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c4", rule=equals(128), says="exactly 128 ids an image, where VAR's scales sum to 680")
def tokens_of_image(bench: Bench) -> Measured:
    return measure.tokens_of_image()


@paper.claim("c5", rule=at_least(4.0), says="groups of 8 at least 4 times as fast as one token at a time, both cached")
def parallel_speed(bench: Bench) -> Measured:
    return measure.parallel_speed(bench)


@paper.claim("c7", rule=at_least(1.0), says="a GPT-L image faster than VAR-d16's, decoding included, in every repetition")
def against_var(bench: Bench) -> Measured:
    return measure.against_var(bench)


@paper.claim(
    "c8",
    rule=at_least(2.0),
    says="prefixes of 4 and 8 tokens at least 2 dB better than without, all 16 at most 0.5 dB worse, on every seed",
)
def coarse_to_fine(bench: Bench) -> Measured:
    return measure.coarse_to_fine(bench)


@paper.claim(
    "c6", rule=at_most(1.0), says="a planted error harms the image less than without correction training, on every seed"
)
def correction_helps(bench: Bench) -> Measured:
    return measure.correction_helps(bench)
