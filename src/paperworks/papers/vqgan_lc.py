"""VQGAN-LC (2406.11837): a code book of up to 100,000 frozen features behind one trained projector, so that all codes are used.

paperworks run vqgan-lc                              digits, minutes on two cores
paperworks run vqgan-lc --kind ema                   the same with one of the baselines: fc, fc_l2, ema, fixed
paperworks run vqgan-lc --data FOLDER                your own photos
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.analysis.features import lite0
from paperworks.data import ImageSource
from paperworks.generators.draws import Draws
from paperworks.generators.gpt import GPT, sample_tokens
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Variant, at_least, at_most, equals
from paperworks.papers import _vqgan_lc_claims as measure
from paperworks.papers import card
from paperworks.papers._generation import (
    FramedImages,
    Perceptual,
    TensorSet,
    adamw,
    default_channels,
    framed_batches,
    kept_tensors,
    labels_of,
    open_split,
    shows_photos,
    tokenizer_training,
)
from paperworks.papers._generation_report import evenly
from paperworks.papers._token_recipe import JudgeConfig, Kit, SampleConfig, TokenConfig, add_verbs
from paperworks.tokenizers.projected_quantizer import ProjectedQuantizer, class_wise_centres
from paperworks.tokenizers.quantizers import VectorQuantizer
from paperworks.tokenizers.vqgan_lc import VQGANLC, Kind
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True)
class TokenizerConfig:
    kind: Kind = "projected"
    start: Literal["data", "paper"] = "data"
    """"data" matches the projected codes to the first batch; "paper" leaves the projector as initialised"""
    vocab_size: int = 1000
    embed_dim: int = 8
    z_channels: int = 32
    ch: int = 16
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    groups: int = 8
    patch: int = 2


@dataclass(frozen=True)
class GeneratorConfig:
    dim: int = 192
    depth: int = 6
    heads: int = 3
    dropout: float = 0.0
    joint_vocabulary: bool = False
    """classes are further codes, as GPT-LC was released; such a network has no null class and takes no guidance"""
    keep: float = 1.0
    """chance of each token to be read as it is while training; else a random one stands in its place"""
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class LCConfig(TokenConfig):
    tokenizer: TokenizerConfig = TokenizerConfig()
    generator: GeneratorConfig = GeneratorConfig()


TABLE_WIDTH = 320
"""of EfficientNet-Lite0's last map, which the code book is made of"""
PATCHES, LOOKED_AT = 4, 256
"""a patch vector for each of 4 x 4 parts of an image, which is brought to 256 pixels first"""


def codes_of(config: LCConfig) -> int:
    """Of the frozen table, an equal share for each class; baselines have as many."""
    return config.tokenizer.vocab_size


def build_tokenizer(config: LCConfig) -> VQGANLC:
    part = config.tokenizer
    return VQGANLC(
        config.image_size,
        codes_of(config),
        TABLE_WIDTH,
        part.embed_dim,
        kind=part.kind,
        start=part.start,
        z_channels=part.z_channels,
        ch=part.ch,
        ch_mult=part.ch_mult,
        num_res_blocks=part.num_res_blocks,
        groups=part.groups,
        patch=part.patch,
        in_channels=config.channels,
    )


@torch.inference_mode()
def patch_vectors(network: Any, images: FramedImages) -> Tensor:
    """[16 N, TABLE_WIDTH] of N images, of which a batch at a time is in memory."""
    parts = []
    for batch in images.split(64):
        shown = F.interpolate(batch, (LOOKED_AT, LOOKED_AT), mode="bilinear", antialias=True)
        pooled = F.adaptive_avg_pool2d(network.feature_maps(shown)[-1], PATCHES)
        parts.append(pooled.flatten(2).transpose(1, 2).flatten(0, 1).float())
    return torch.cat(parts)


def make_table(config: LCConfig, source: ImageSource, network: Any) -> Tensor:
    """[codes, TABLE_WIDTH]: centres of k-means within the patch vectors of each class. Only one class's are held at a time."""
    wanted, labels = codes_of(config), labels_of(source)
    classes = labels.unique()
    share = -(-wanted // len(classes))
    centres, some = [], []
    for number in classes:
        own = source.subset((labels == number).nonzero()[:, 0])
        few = evenly(own, share)  # 16 vectors a code are enough to find centres of
        vectors = patch_vectors(network, framed_batches(few, config.image_size))
        centres.append(class_wise_centres([vectors], share, config.seed + int(number)))
        some.append(vectors[: 2 * share])
    table = torch.cat(centres)
    if len(table) < wanted:  # a class has fewer vectors than codes: vectors between two of them
        vectors = torch.cat(some)
        generator = torch.Generator().manual_seed(config.seed)
        one, other = torch.randint(len(vectors), (2, wanted - len(table)), generator=generator)
        table = torch.cat((table, (vectors[one] + vectors[other]) / 2))
    return table[torch.arange(wanted) * len(table) // wanted]  # what is too many is left out evenly over the classes


def fill_table(config: LCConfig, tokenizer: VQGANLC, run: Run) -> None:
    """The code book of a frozen network's view of the training images; kept in a file."""
    if not isinstance(tokenizer.quantize, ProjectedQuantizer):
        return

    def make() -> dict[str, Tensor]:
        source = open_split(config.data, "train", channels=3, strict=config.strict)
        return {"table": make_table(config, source, lite0())}

    tokenizer.set_table(kept_tensors(run.stage_folder("tokenizer") / "table.safetensors", make).columns["table"])


def tokens_of(config: LCConfig) -> int:
    part = config.tokenizer
    return (config.image_size // (part.patch * 2 ** (len(part.ch_mult) - 1))) ** 2


def build_generator(config: LCConfig, classes: int) -> GPT:
    part = config.generator
    return GPT(
        classes,
        tokens_of(config),
        codes_of(config),
        part.dim,
        part.depth,
        part.heads,
        null_class=not part.joint_vocabulary,
        joint_vocabulary=part.joint_vocabulary,
        dropout=part.dropout,
    )


def objective(config: LCConfig, model: GPT, tokenizer: VQGANLC, data: TensorSet) -> TokenPrediction:
    part = config.generator
    dropout = config.label_dropout if model.null_class else 0.0
    return TokenPrediction(model, dropout, part.label_smoothing, keep=part.keep)


def sample(config: LCConfig, model: GPT, tokenizer: VQGANLC, labels: Tensor, draws: Draws) -> Tensor:
    part = config.sampling
    options: dict[str, Any] = {"temperature": part.temperature, "top_k": part.top_k, "top_p": part.top_p}
    return sample_tokens(model, labels, draws, guidance=part.guidance, **options)


KIT = Kit(
    "VQGAN-LC",
    VQGANLC,
    GPT,
    build_tokenizer,
    build_generator,
    sample,
    tokens_of,
    objective=objective,
    prepare=fill_table,
)

paper = Paper(
    card("vqgan-lc"),
    parts=[VQGANLC, ProjectedQuantizer, class_wise_centres, VectorQuantizer, GPT],
    variants={
        "vqgan_lc_f16": Variant(VQGANLC, 148.56, "100,000 frozen codes of 768 numbers (76.8 M) included"),
        "vqgan_lc_f8": Variant(
            partial(VQGANLC, ch_mult=(1, 2, 2, 4), attention=False), 141.53, "the same with maps of 32 x 32"
        ),
        "gpt_lc": Variant(
            partial(GPT, 1000, 256, 100_000, 1024, 24, 16, joint_vocabulary=True), 509.42, "second stage, 256 tokens"
        ),
    },
)
add_verbs(paper, KIT, LCConfig)


@paper.recipe("laptop")
def laptop(data: str = "default", kind: Kind = "projected", image_size: Literal[32, 64] = 32, seed: int = 0) -> Recipe:
    """Both stages on 32 or 64 pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        kind: "projected" or "projected_mlp" (the paper), or a baseline: "fc", "fc_l2", "ema", "fixed"
        image_size: 64 has 64 tokens an image instead of 16 and wants more training than the default budget
        seed: of initial weights, data order and sampling
    """
    perceptual: Perceptual = "pyramid"
    config = LCConfig(
        data=data,
        image_size=image_size,
        channels=default_channels(data),
        flip=shows_photos(data),
        seed=seed,
        tokenizer=TokenizerConfig(kind=kind),
        judge=JudgeConfig(perceptual, adversarial_weight=0.2, adversarial_start=0.7, codebook_weight=1.0),
        tokenizer_training=tokenizer_training(650, 32, 1e-3),  # at twice the rate the encoder's vectors can become one
        generator_training=TrainConfig(860, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99),
        sampling=SampleConfig(guidance=0.5, top_p=0.96),
    )
    return Recipe(config, KIT.stages)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", seed: int = 0) -> Recipe:
    """The published setting: 256 pixels, 100,000 codes, 20 epochs of batch 256, GPT of 24 layers; needs a cluster.
    The code book comes from EfficientNet-Lite0's last map (320 numbers) instead of CLIP's (768), which must be fetched; any
    encoder serves. Classes are part of the vocabulary, so there is no guidance.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, data order and sampling
    """
    first = OptimizerConfig("adam", lr=5e-4, betas=(0.5, 0.9), eps=1e-7, schedule=ScheduleConfig("cosine", warmup=0.25))
    flat = (80_000 - 5000) / (450_000 - 5000)  # the peak lasts from the warm-up to step 80,000
    second = OptimizerConfig(lr=4.5e-4, betas=(0.9, 0.95), schedule=ScheduleConfig("flat_cosine", warmup=5000, flat=flat))
    config = LCConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=1,
        seed=seed,
        tokenizer=TokenizerConfig("projected", "paper", 100_000, 8, 256, 128, (1, 1, 2, 2, 4), 2, 32, 1),
        generator=GeneratorConfig(1024, 24, 16, 0.1, joint_vocabulary=True, keep=0.8),
        judge=JudgeConfig(
            "lpips", l1_weight=1.0, l2_weight=0.0, codebook_weight=0.1, adversarial_weight=0.1, discriminator_width=64
        ),
        tokenizer_training=TrainConfig(100_000, 256, optimizers={"main": first, "discriminator": first}),
        generator_training=TrainConfig(450_000, 1024, optimizers={"main": second}, checkpoint_every=5000),
        sampling=SampleConfig(0.0, 0, 1.0, images=50_000),
    )
    return Recipe(config, KIT.stages)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=equals(100_000), says="a step of Adam and an exact search with 100,000 codes, in under 2 GB")
def hundred_thousand(bench: Bench) -> Measured:
    return measure.hundred_thousand()


@paper.claim("c2", rule=at_least(85.0), says="at least 85 % of 1,024 codes in use after 400 steps, on every seed")
def in_use(bench: Bench) -> Measured:
    return measure.usage_of(bench, "LC", 1024)


@paper.claim("c4", rule=at_most(5.0), says="at most 5 % of 1,024 free codes in use after 400 steps, on every seed")
def baseline_in_use(bench: Bench) -> Measured:
    return measure.usage_of(bench, measure.AS_PUBLISHED, 1024)


@paper.claim("c3", rule=at_most(0.5), says="free codes: usage at 4,096 at most half of that at 256, on every seed")
def baseline_falls(bench: Bench) -> Measured:
    return measure.falling(bench, measure.AS_PUBLISHED)


@paper.claim("c7", rule=at_least(1.0), says="usage falls less from 256 to 4,096 codes than with both baselines, on every seed")
def flattest(bench: Bench) -> Measured:
    return measure.flattest(bench)


@paper.claim("c8", rule=at_most(0.65), says="error at most 0.65 of that of free codes at 1,024, on every seed")
def better_reconstruction(bench: Bench) -> Measured:
    return measure.error_ratio(bench)


@paper.claim("c5", rule=at_least(4000), says="a code book of at least 4,000 features of a pretrained network, all different")
def from_features(bench: Bench) -> Measured:
    return measure.from_features()


@paper.claim("c6", rule=equals(6152), says="6,152 trained values, no gradient in the table of 100,000 x 768")
def projector_only(bench: Bench) -> Measured:
    return measure.projector_only()
