"""ResGen (2412.10208): images of deep residual tokens in a fixed number of passes. There is no public code: docs/generate.md
says what was chosen here. The paper's speech half is left out.

paperworks run resgen                                digits, minutes on two cores
paperworks run resgen --depth 8                      deeper tokens, as many passes
paperworks sample runs/resgen --classes 3 7
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paperworks.generators.draws import Draws
from paperworks.generators.residual_autoregressive import RQTransformer
from paperworks.generators.residual_masked import Mixture, ResidualMaskedTransformer
from paperworks.generators.residual_masked_sampling import refill, sample, vectors_of
from paperworks.objectives.residual_masking import ResidualMasking, levels_last
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Variant, at_least, at_most, equals
from paperworks.papers import _resgen_baseline as baseline
from paperworks.papers import _resgen_bound as bound
from paperworks.papers import _resgen_claims as measure
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
from paperworks.papers._generation_report import spread_over
from paperworks.papers._token_recipe import JudgeConfig, Kit, SampleConfig, TokenConfig, add_verbs, as_maps
from paperworks.reporting import Report
from paperworks.tokenizers.quantizers import ResidualQuantizer
from paperworks.tokenizers.residual_vq import ResidualVQVAE
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True)
class TokenizerConfig:
    depth: int = 4
    vocab_size: int = 64
    """codes of each level"""
    embed_dim: int = 8
    ema: float = 0.0
    """decay of codes that follow their vectors; 0 trains them by gradients"""
    z_channels: int = 32
    ch: int = 24
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    groups: int = 8
    patch: int = 2


@dataclass(frozen=True)
class GeneratorConfig:
    dim: int = 192
    layers: int = 6
    heads: int = 3
    mixtures: int = 256


@dataclass(frozen=True)
class ResGenConfig(TokenConfig):
    tokenizer: TokenizerConfig = TokenizerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    steps: int = 16
    """passes of the generator for an image"""
    confidence: float = 1.0
    """temperature of the noise on the confidence"""
    noise: float = 0.3
    """share of a component's deviation that is added to its mean"""
    guide_means: bool = True
    """whether guidance moves the mixture's means, too, or their shares alone"""


def build_tokenizer(config: ResGenConfig) -> ResidualVQVAE:
    return ResidualVQVAE(config.image_size, in_channels=config.channels, **vars(config.tokenizer))


def positions_of(config: ResGenConfig) -> int:
    part = config.tokenizer
    return (config.image_size // (part.patch * 2 ** (len(part.ch_mult) - 1))) ** 2


def build_generator(config: ResGenConfig, classes: int) -> ResidualMaskedTransformer:
    part, tokens = config.generator, config.tokenizer
    return ResidualMaskedTransformer(
        classes, positions_of(config), tokens.depth, tokens.embed_dim, part.dim, part.layers, part.heads, part.mixtures
    )


def objective(
    config: ResGenConfig, model: ResidualMaskedTransformer, tokenizer: ResidualVQVAE, data: TensorSet
) -> ResidualMasking:
    some = levels_last(data.columns["tokens"][:5000], model.depth)
    model.set_scales(vectors_of(tokenizer.quantize, some))
    return ResidualMasking(model, tokenizer.quantize, config.label_dropout)


def sample_tokens(
    config: ResGenConfig,
    model: ResidualMaskedTransformer,
    tokenizer: ResidualVQVAE,
    labels: Tensor,
    draws: Draws,
    steps: int | None = None,
) -> Tensor:
    part = config.sampling
    made = sample(
        model,
        tokenizer.quantize,
        labels,
        draws,
        steps=steps or config.steps,
        guidance=part.guidance,
        guide_means=config.guide_means,
        top_p=part.top_p,
        temperature=config.confidence,
        noise=config.noise,
    )
    return torch.cat(made.indices, 1)


def show_more(page: Report, config: ResGenConfig, run: Run, tokenizer: ResidualVQVAE, model: Any) -> None:
    """What each level adds, and the same draws with fewer passes."""
    images = framed(spread_over(open_test(config.data, channels=config.channels), 12), config.image_size)
    with torch.inference_mode():
        tokens = tokenizer.encode(images)
        levels = [level for level in (1, 2, 4, 8, 16) if level < tokenizer.depth] + [tokenizer.depth]
        rows = {f"{level} of {tokenizer.depth} levels": tokenizer.decode(tokens[:level]) for level in levels}
    page.compare(
        "Level by level", {"held-out image": images, **rows}, caption="Each level quantises what the ones before left."
    )
    labels, rows = torch.arange(min(model.num_classes, 10)), {}
    for steps in (2, 4, 8, 16, 32):
        draws = Draws.seeded(config.seed, len(labels), 100_000)
        made = sample_tokens(config, model, tokenizer, labels, draws, steps)
        rows[f"{steps} passes"] = tokenizer.decode(as_maps(tokenizer, made))
    page.compare("More passes", rows, caption="The number of passes is chosen at sampling time, whatever the depth.")


KIT = Kit(
    "ResGen",
    ResidualVQVAE,
    ResidualMaskedTransformer,
    build_tokenizer,
    build_generator,
    sample_tokens,
    lambda config: config.steps,
    objective=objective,
    more=show_more,
)

paper = Paper(
    card("resgen"),
    parts=[ResidualVQVAE, ResidualQuantizer, ResidualMaskedTransformer, Mixture, refill, sample, RQTransformer],
    variants={
        "resgen_xl": Variant(
            partial(ResidualMaskedTransformer, 1000, 64, 8, 64, 1152, 24, 16, 1024),
            578.987,
            "24 x 1152 is our reading of the paper's 574 M",
        ),
        "resgen_xl_d16": Variant(partial(ResidualMaskedTransformer, 1000, 64, 16, 64, 1152, 24, 16, 1024), 578.996, "depth 16"),
    },
)
add_verbs(paper, KIT, ResGenConfig)


@paper.recipe("laptop")
def laptop(data: str = "default", depth: int = 4, seed: int = 0) -> Recipe:
    """Both stages on 32-pixel images in minutes on two cores. Guidance moves the shares of the components alone.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        depth: residual levels, 1 to 16
        seed: of initial weights, data order and sampling
    """
    config = ResGenConfig(
        data=data,
        channels=default_channels(data),
        flip=shows_photos(data),
        seed=seed,
        tokenizer=TokenizerConfig(depth),
        judge=JudgeConfig(adversarial_weight=0.3, adversarial_start=0.7),
        tokenizer_training=tokenizer_training(560, 32, 2e-3),
        generator_training=TrainConfig(560, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99),
        sampling=SampleConfig(guidance=0.5, top_p=0.95),
        guide_means=False,
    )
    return Recipe(config, KIT.stages)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", depth: int = 8, seed: int = 0) -> Recipe:
    """ImageNet at 256 pixels, 8 x 8 positions, the 574 M network. Optimiser, batch and steps are not published: these are usual
    ones. Needs a cluster and torchrun.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        depth: residual levels, 8 or 16 in the paper
        seed: of initial weights, data order and sampling
    """
    flat = OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), schedule=ScheduleConfig("constant", warmup=0.01))
    config = ResGenConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=1,
        seed=seed,
        tokenizer=TokenizerConfig(depth, 1024, 64, 0.99, 256, 128, (1, 1, 2, 2, 4, 4), 2, 32, 1),
        generator=GeneratorConfig(1152, 24, 16, 1024),
        judge=JudgeConfig("lpips", discriminator_width=64, discriminator_layers=3),
        tokenizer_training=tokenizer_training(250_000, 256, 1e-4),
        generator_training=TrainConfig(2_800_000, 256, optimizers={"main": flat}, ema=0.9999, checkpoint_every=10_000),
        sampling=SampleConfig(1.0, 0, 0.95, images=50_000),
        steps=64,
    )
    return Recipe(config, KIT.stages)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c2", rule=equals(64.0), says="64 x 16 passes of an RQ-Transformer over 16, exactly 64, and 16 at every depth")
def calls(bench: Bench) -> Measured:
    return measure.calls()


@paper.claim("c1", rule=at_most(0.999), says="error falls with every doubling of the depth from 1 to 8, on every seed")
def depth_helps(bench: Bench) -> Measured:
    return measure.depth_helps(bench)


@paper.claim(
    "c3",
    rule=equals(0),
    says="no violation: laws sum to 1, the bound is never below the exact likelihood's, the trained loss is the mean of the "
    "enumerated terms, training by it lowers the bound",
)
def proper_diffusion(bench: Bench) -> Measured:
    return bound.enumerated(bench)


@paper.claim(
    "c5", rule=at_most(1.0), says="at depths 4 and 8 no farther from real images than an RQ-Transformer, on every seed"
)
def against_autoregression(bench: Bench) -> Measured:
    return baseline.distance_claim(bench, KIT, laptop().config)


@paper.claim("c7", rule=at_most(0.999), says="at every depth nearer than an RQ-Transformer or faster, on every seed")
def depth_pays(bench: Bench) -> Measured:
    return baseline.depth_claim(bench, KIT, laptop().config)


@paper.claim("mixture", **measure.MIXTURE, rule=at_least(0.3), says="at least 0.3 nats a position better than one Gaussian")
def mixture(bench: Bench) -> Measured:
    return measure.mixture_gap(bench, KIT, laptop().config)
