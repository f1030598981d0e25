"""ViT-VQGAN and VIM (2110.04627): a transformer tokenizer with small codes on the unit sphere, and a GPT over its tokens.

paperworks run vit-vqgan                             digits, minutes on two cores
paperworks run vit-vqgan --data FOLDER               your own photos
paperworks sample runs/vit-vqgan --classes 3 7 --best-of 4
paperworks predict runs/vit-vqgan FOLDER            a linear probe on the generator's middle block
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from paperworks.data import open_images
from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.gpt import GPT, sample_tokens
from paperworks.generators.next_scale_sampling import rejection_sample
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.layers.residual_discriminator import ResidualDiscriminator
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.logit_laplace import LogitLaplaceTraining
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Variant, at_least, at_most, equals
from paperworks.papers import _vit_vqgan_claims as measure
from paperworks.papers import card
from paperworks.papers._generation import adamw, default_channels, shows_photos, tokenizer_training
from paperworks.papers._generation_report import Judge, chosen_labels
from paperworks.papers._token_recipe import JudgeConfig, Kit, SampleConfig, TokenConfig, add_verbs, make_images
from paperworks.reporting import save_grid
from paperworks.tokenizers.quantizers import GumbelQuantizer, ResidualQuantizer, VectorQuantizer
from paperworks.tokenizers.vit_vqgan import BASE, LARGE, SMALL, ViTVQGAN
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True)
class TransformerSize:
    dim: int = 96
    depth: int = 3
    heads: int = 3
    mlp_dim: int = 384
    head_dim: int = 32


@dataclass(frozen=True)
class TokenizerConfig:
    patch_size: int = 4
    encoder: TransformerSize = TransformerSize()
    decoder: TransformerSize = TransformerSize()
    code_dim: int = 8
    vocab_size: int = 256
    quantizer: Literal["vq", "residual", "gumbel"] = "vq"
    num_quantizers: int = 1


@dataclass(frozen=True)
class GeneratorConfig:
    dim: int = 160
    depth: int = 4
    heads: int = 5
    dropout: float = 0.0


@dataclass(frozen=True)
class VIMConfig(TokenConfig):
    tokenizer: TokenizerConfig = TokenizerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: Literal["patch", "residual"] = "patch"
    """"residual" judges whole images, in the manner of StyleGAN2; "patch" is VQGAN's"""
    logit_laplace_weight: float = 0.0


def build_tokenizer(config: VIMConfig) -> ViTVQGAN:
    part = config.tokenizer
    return ViTVQGAN(
        config.image_size,
        part.patch_size,
        vars(part.encoder),
        vars(part.decoder),
        code_dim=part.code_dim,
        vocab_size=part.vocab_size,
        quantizer=part.quantizer,
        num_quantizers=part.num_quantizers,
        in_channels=config.channels,
    )


def tokens_of(config: VIMConfig) -> int:
    levels = config.tokenizer.num_quantizers if config.tokenizer.quantizer == "residual" else 1
    return (config.image_size // config.tokenizer.patch_size) ** 2 * levels


def build_generator(config: VIMConfig, classes: int) -> GPT:
    part = config.generator
    return GPT(
        classes,
        tokens_of(config),
        config.tokenizer.vocab_size,
        part.dim,
        part.depth,
        part.heads,
        null_class=True,
        dropout=part.dropout,
    )


def sample(config: VIMConfig, model: GPT, tokenizer: ViTVQGAN, labels: Tensor, draws: Draws) -> Tensor:
    part = config.sampling
    return sample_tokens(
        model,
        labels,
        draws,
        guidance=part.guidance,
        temperature=part.temperature,
        top_k=part.top_k,
        top_p=part.top_p,
    )


def build_discriminator(config: VIMConfig) -> nn.Module:
    judge = config.judge
    if config.discriminator == "residual":
        return ResidualDiscriminator(config.image_size, config.channels, judge.discriminator_width)
    return PatchDiscriminator(config.channels, judge.discriminator_width, judge.discriminator_layers)


KIT = Kit(
    "ViT-VQGAN",
    ViTVQGAN,
    GPT,
    build_tokenizer,
    build_generator,
    sample,
    tokens_of,
    discriminator=build_discriminator,
    learner=LogitLaplaceTraining,
    learner_options=lambda config: {"logit_laplace_weight": config.logit_laplace_weight},
)


def _vim(dim: int, depth: int, heads: int) -> GPT:
    return GPT(1000, 1024, 8192, dim, depth, heads, dropout=0.1)


paper = Paper(
    card("vit-vqgan"),
    parts=[ViTVQGAN, VectorQuantizer, ResidualQuantizer, GumbelQuantizer, GPT],
    variants={
        "vitvqgan_small": Variant(partial(ViTVQGAN, 256, 8, SMALL), 51.96, "the paper prints 32 M a side by a formula"),
        "vitvqgan_base": Variant(partial(ViTVQGAN, 256, 8, BASE), 172.24, "the paper prints 91 M a side by a formula"),
        "vitvqgan_small_large": Variant(partial(ViTVQGAN, 256, 8, SMALL, LARGE), 615.32, "small encoder, large decoder"),
        "vim_base": Variant(partial(_vim, 1536, 24, 16), None, "the paper prints 650 M by a formula"),
        "vim_large": Variant(partial(_vim, 2048, 36, 32), None, "the paper prints 1697 M by a formula"),
    },
)
add_verbs(paper, KIT, VIMConfig)


@paper.verb("sample")
def sample_images(
    run: Run,
    *,
    classes: tuple[str, ...] = (),
    count: int = 10,
    best_of: int = 1,
    seed: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Makes images.

    Args:
        classes: names of classes to make; all when none is named
        count: images per class
        best_of: make this many candidates per image and keep the one its classifier likes best (rejection sampling)
        seed: another one gives other images
        out: PNG to write, by default samples.png in the run's folder
    """
    config: VIMConfig = run.config(VIMConfig)
    model, tokenizer = KIT.generator_of(run), KIT.tokenizer_of(run)
    wanted = chosen_labels(run.result("tokenizer")["classes"], classes).repeat_interleave(count)

    def make(labels: Tensor, first: int) -> Tensor:
        return make_images(KIT, config, model, tokenizer, labels, seed, first)

    if best_of == 1:
        made = make(wanted, 0)
    else:
        judge = Judge.of(config.data, run.stage_folder("judge"))
        if not judge.knows_classes:
            raise InputError("--best-of needs a classifier of these classes, which there is for the embedded digits only")
        made, _ = rejection_sample(
            make,
            lambda images, labels: judge.network.logits(images).log_softmax(1).gather(1, labels[:, None])[:, 0],
            wanted,
            best_of,
        )
    path = save_grid(made, out or run.folder / "samples.png", count)
    return {"images": len(made), "file": str(path)}


@paper.verb("predict")
def probe_images(run: Run, images: str, *, block: int = 0) -> list[dict[str, Any]]:
    """Classes of your images by a linear probe: the generator reads their tokens without a class, and a linear classifier,
    fitted here to the training images, reads the mean over tokens of what one block puts out.

    Args:
        images: a folder, a file or a name
        block: number of the block, from 1; the middle one by default
    """
    config: VIMConfig = run.config(VIMConfig)
    source = open_images(images, channels=config.channels)
    return measure.probed(run, KIT, config, source, block or max(1, config.generator.depth // 2))


@paper.recipe("laptop")
def laptop(data: str = "default", image_size: Literal[32, 64] = 32, seed: int = 0) -> Recipe:
    """Both stages on 32 or 64 pixel images in minutes on two cores. A patch discriminator with a hinge loss and VQGAN's
    adaptive weight, no logit-Laplace term: that works in so few steps; the published losses, which `paper` has, want more.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        image_size: 64 has 256 tokens an image instead of 64 and wants more training than the default budget
        seed: of initial weights, data order and sampling
    """
    config = VIMConfig(
        data=data,
        image_size=image_size,
        channels=default_channels(data),
        flip=shows_photos(data),
        seed=seed,
        judge=JudgeConfig(adversarial_weight=0.2, adversarial_start=0.7),
        tokenizer_training=replace(tokenizer_training(720, 32, 1.5e-3), channels_last=False),
        generator_training=TrainConfig(420, 64, optimizers={"main": adamw(2e-3)}, clip=2.0, ema=0.99),
        sampling=SampleConfig(guidance=0.5, top_p=0.96),
    )
    return Recipe(config, KIT.stages)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", size: Literal["base", "large"] = "base", seed: int = 0) -> Recipe:
    """The published setting: 256 pixels, 1024 tokens, 500,000 and 450,000 steps; needs a cluster and torchrun. The rate of the
    second stage falls exponentially, at every hundredth of the way, to a thirtieth: how far it fell is not known.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        size: of the second stage
        seed: of initial weights, data order and sampling
    """
    cosine = OptimizerConfig(lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-4, schedule=ScheduleConfig("cosine"))
    shares = tuple(share / 100 for share in range(2, 100))
    decay = ScheduleConfig("step", warmup=5000, milestones=shares, gamma=(1 / 30) ** (1 / len(shares)))
    second = OptimizerConfig(lr=4.5e-4, betas=(0.9, 0.96), weight_decay=0.045, schedule=decay)
    side = TransformerSize(768, 12, 12, 3072, 64)
    dim, depth, heads = (1536, 24, 16) if size == "base" else (2048, 36, 32)
    config = VIMConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=1,
        seed=seed,
        tokenizer=TokenizerConfig(8, side, side, 32, 8192),
        generator=GeneratorConfig(dim, depth, heads, 0.1),
        flip=True,
        margin=1.25,
        discriminator="residual",
        logit_laplace_weight=0.1,
        judge=JudgeConfig(
            "lpips",
            perceptual_weight=0.1,
            adversarial_weight=0.1,
            adversarial_start=0.0,
            adversarial=Adversarial("non_saturating", r1=10, r1_every=16, adaptive=False),
            discriminator_width=128,
        ),
        tokenizer_training=TrainConfig(500_000, 256, optimizers={"main": cosine, "discriminator": cosine}),
        generator_training=TrainConfig(450_000, 1024, optimizers={"main": second}, checkpoint_every=5000),
        sampling=SampleConfig(0.0, 0, 1.0, images=50_000),
    )
    return Recipe(config, KIT.stages)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim(
    "c7",
    rule=measure.ten_times_and_better,
    says="8-dimensional normalised codes: 10 times as many in use as with plain 64-dimensional ones, and a lower error, "
    "on every seed",
)
def code_usage(bench: Bench) -> Measured:
    return measure.code_usage(bench)


@paper.claim(
    "c5", rule=at_most(0.999), says="error of the ViT tokenizer below that of a CNN of as many parameters, on every seed"
)
def better_than_cnn(bench: Bench) -> Measured:
    return measure.against_cnn(bench)


@paper.claim(
    "c6", rule=at_least(1.0), says="the ViT tokenizer at least as fast as a CNN of as many parameters, in every repetition"
)
def faster_than_cnn(bench: Bench) -> Measured:
    return measure.speed_against_cnn(bench)


@paper.claim("c10", rule=equals(1.0, absolute=0.3), says="VIM-Large within 30 % of iGPT-L's 1362 million parameters")
def similar_sizes(bench: Bench) -> Measured:
    return measure.similar_sizes()


@paper.claim(
    "c12",
    rule=equals(3),
    says="of one network: samples of a class are recognised above chance threefold, those of no class are nearer to digits "
    "than an untrained one's, a probe beats chance threefold and an untrained network's",
)
def one_model(bench: Bench) -> Measured:
    return measure.one_model(bench, KIT, laptop().config)


@paper.claim("c8", rule=at_least(2.0), says="a probe on the middle block at least 2 points above one on pixels, on every seed")
def probe(bench: Bench) -> Measured:
    return measure.probe(bench, KIT, laptop().config)


@paper.claim(
    "sizes",
    rule=at_most(0.005),
    says="depth x 11 width^2 + (2 x 8192 + 1024) width of the networks as built gives all five printed sizes within 0.5 %",
    statement="Parameters of the five printed sizes follow one formula",
    paper_value="32, 91, 599, 650, 1697 M",
    unit="largest relative difference",
)
def printed_sizes(bench: Bench) -> Measured:
    return measure.printed_sizes({name: variant.build for name, variant in paper.variants.items()})
