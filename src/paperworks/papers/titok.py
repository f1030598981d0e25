"""TiTok (2406.07550): an image as a short sequence of codes without a grid, and masked or random-order generation of them.

paperworks run titok                                 digits in 12 codes, minutes on two cores
paperworks run titok --generator rar                 another generator: bert, uvit, rar
paperworks run titok --data FOLDER                   your own photos
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperworks.generators.draws import Draws
from paperworks.generators.masked import MaskedTransformer
from paperworks.generators.masked_sampling import GuidanceSchedule, MaskedSampling
from paperworks.generators.masked_sampling import sample as sample_masked
from paperworks.generators.random_order import RandomOrderTransformer
from paperworks.generators.random_order import sample_tokens as sample_in_order
from paperworks.layers.discriminators import BlurDiscriminator
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.masked_prediction import MaskedPrediction, RandomOrderPrediction
from paperworks.objectives.proxy_codes import ProxyCodes
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most, equals
from paperworks.papers import _titok_claims as measure
from paperworks.papers import card
from paperworks.papers._generation import (
    TensorSet,
    adamw,
    default_channels,
    framed,
    load_part,
    open_split,
    open_test,
    perceptual_loss,
    save_part,
    tokenizer_training,
    training_images,
)
from paperworks.papers._generation_report import spread_over
from paperworks.papers._token_recipe import JudgeConfig, Kit, SampleConfig, TokenConfig, add_verbs
from paperworks.reporting import Report
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN
from paperworks.tokenizers.protocol import reconstruct
from paperworks.tokenizers.titok import TiTok
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

GeneratorKind = Literal["bert", "uvit", "rar"]


@dataclass(frozen=True)
class ProxyConfig:
    """The MaskGIT-VQGAN whose codes stage 1 predicts and whose decoder stage 2 goes on with."""

    vocab_size: int = 128
    z_channels: int = 16
    ch: int = 24
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    groups: int = 8
    patch: int = 2


@dataclass(frozen=True)
class TokenizerConfig:
    latents: int = 12
    encoder: tuple[int, int, int] = (128, 3, 4)
    """width, blocks, heads"""
    decoder: tuple[int, int, int] = (128, 3, 4)
    vocab_size: int = 512
    code_dim: int = 12
    normalize: bool = True


@dataclass(frozen=True)
class GeneratorConfig:
    kind: GeneratorKind = "bert"
    dim: int = 192
    depth: int = 6
    heads: int = 6
    dropout: float = 0.0


@dataclass(frozen=True)
class TiTokSampling(SampleConfig):
    """temperature, top_k and top_p are RAR's; the others are the masked generators'."""

    steps: int = 8
    schedule: GuidanceSchedule = "linear"
    noise: float = 2.0
    """on tokens and confidences, at the first step"""


@dataclass(frozen=True)
class TiTokConfig(TokenConfig):
    proxy: ProxyConfig = ProxyConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    sampling: TiTokSampling = TiTokSampling()
    proxy_training: TrainConfig = field(default_factory=lambda: tokenizer_training(400, 32, 2e-3))
    latents_training: TrainConfig = field(
        default_factory=lambda: TrainConfig(500, 64, optimizers={"main": adamw(2e-3)}, clip=1.0)
    )


# --- parts ------------------------------------------------------------------------------------------------------------


def proxy_sizes(config: TiTokConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config.proxy).items() if name != "vocab_size"}


def build_proxy(config: TiTokConfig) -> MaskGITVQGAN:
    return MaskGITVQGAN(config.image_size, config.proxy.vocab_size, in_channels=config.channels, **proxy_sizes(config))


def build_tokenizer(config: TiTokConfig, pixel_decoder: bool = True) -> TiTok:
    """pixel_decoder: for stage 2; stage 1 has none."""
    patch = config.proxy.patch * 2 ** (len(config.proxy.ch_mult) - 1)
    return TiTok(
        config.image_size,
        patch,
        in_channels=config.channels,
        proxy_codes=config.proxy.vocab_size,
        pixel_decoder=proxy_sizes(config) if pixel_decoder else None,
        **vars(config.tokenizer),
    )


def build_generator(config: TiTokConfig, classes: int) -> nn.Module:
    part, tokens = config.generator, config.tokenizer
    sizes = (classes, tokens.latents, tokens.vocab_size, part.dim, part.depth, part.heads)
    if part.kind == "rar":
        return RandomOrderTransformer(*sizes, dropout=part.dropout)
    return MaskedTransformer(*sizes, form=part.kind, dropout=part.dropout)


def objective(config: TiTokConfig, model: nn.Module, tokenizer: TiTok, data: TensorSet) -> TokenPrediction:
    if isinstance(model, RandomOrderTransformer):
        return RandomOrderPrediction(model, config.label_dropout)
    assert isinstance(model, MaskedTransformer)
    return MaskedPrediction(model, config.label_dropout)


def sample(config: TiTokConfig, model: nn.Module, tokenizer: TiTok, labels: Tensor, draws: Draws) -> Tensor:
    part = config.sampling
    if isinstance(model, RandomOrderTransformer):
        filters: dict[str, Any] = {"temperature": part.temperature, "top_k": part.top_k, "top_p": part.top_p}
        return sample_in_order(model, labels, draws, guidance=part.guidance, **filters)
    assert isinstance(model, MaskedTransformer)
    return sample_masked(model, labels, draws, MaskedSampling(part.steps, part.guidance, part.schedule, noise=part.noise))


def settings(config: TiTokConfig) -> str:
    part = config.sampling
    if config.generator.kind == "rar":
        return f"{config.tokenizer.latents} passes, guidance up to {part.guidance:g}, top-p {part.top_p:g}."
    return f"{part.steps} passes, {part.schedule} guidance up to {part.guidance:g}, Gumbel noise from {part.noise:g}."


def passes(config: TiTokConfig) -> int:
    return config.tokenizer.latents if config.generator.kind == "rar" else config.sampling.steps


# --- stages -----------------------------------------------------------------------------------------------------------


def train_proxy(config: TiTokConfig, run: Run) -> Mapping[str, Any]:
    """The 2-D tokenizer, by pixels and perceptual loss."""
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps = run.stage_folder("proxy"), config.proxy_training
    torch.manual_seed(config.seed)
    learner = TokenizerTraining(build_proxy(config), perceptual=perceptual_loss(config.judge.perceptual))
    data = training_images(source, config.image_size, config.seed, steps.batch_size)
    fitted = fit(learner, data, steps, folder, label="proxy tokenizer")
    save_part(learner.tokenizer, folder)
    return {"seconds": round(fitted.seconds, 1)}


def train_latents(config: TiTokConfig, run: Run) -> Mapping[str, Any]:
    """Stage 1: the codes of that tokenizer from a few latents."""
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps = run.stage_folder("latents"), config.latents_training
    torch.manual_seed(config.seed)
    learner = ProxyCodes(build_tokenizer(config, pixel_decoder=False), load_part(MaskGITVQGAN, run.folder / "proxy"))
    data = training_images(source, config.image_size, config.seed, steps.batch_size)
    fitted = fit(learner, data, steps, folder, label="latents")
    save_part(learner.tokenizer, folder)
    return {"seconds": round(fitted.seconds, 1)}


def start_second_stage(config: TiTokConfig, tokenizer: TiTok, run: Run) -> None:
    first = load_part(TiTok, run.folder / "latents")
    tokenizer.start_second_stage(first, load_part(MaskGITVQGAN, run.folder / "proxy"))


def discriminator(config: TiTokConfig) -> nn.Module:
    judge = config.judge
    return BlurDiscriminator(config.channels, judge.discriminator_width, judge.discriminator_layers, groups=8)


def show_more(page: Report, config: TiTokConfig, run: Run, tokenizer: TiTok, model: Any) -> None:
    images = framed(spread_over(open_test(config.data, channels=config.channels), 12), config.image_size)
    proxy = load_part(MaskGITVQGAN, run.folder / "proxy")
    rows = {
        "held-out image": images,
        f"{proxy.side**2} codes of the 2-D proxy": reconstruct(proxy, images)[0],
        f"{tokenizer.latents} codes of TiTok": reconstruct(tokenizer, images)[0],
    }
    page.compare("Without a grid", rows, caption="The proxy only teaches TiTok's decoder; its codes are not kept.")
    page.metrics("Training the proxy", run.folder / "proxy" / "metrics.jsonl", ["generator/mse"])
    page.metrics(
        "Stage 1: predicting its codes",
        run.folder / "latents" / "metrics.jsonl",
        ["generator/proxy_loss", "generator/proxy_accuracy", "generator/code_usage"],
    )


class TiTokKit(Kit):
    @property
    def stages(self) -> tuple[Stage, ...]:
        return Stage("proxy", train_proxy), Stage("latents", train_latents), *super().stages


KIT = TiTokKit(
    "TiTok",
    TiTok,
    (MaskedTransformer, RandomOrderTransformer),
    build_tokenizer,
    build_generator,
    sample,
    passes,
    objective=objective,
    discriminator=discriminator,
    prepare=start_second_stage,
    settings=settings,
    more=show_more,
)

PIXELS = {"z_channels": 256}
"""the released pixel decoder: all else as built by default"""


def _first(size: str, latents: int) -> Any:
    return partial(TiTok, 256, 16, latents, size, size, pixel_decoder=PIXELS, legacy=True)


def _later(encoder: str, decoder: str, latents: int) -> Any:
    options: dict[str, Any] = {"vocab_size": 8192, "code_dim": 64, "normalize": False, "target": "pixels"}
    return partial(TiTok, 256, 16, latents, encoder, decoder, **options)


def _vae(encoder: str, decoder: str, latents: int) -> Any:
    return partial(TiTok, 256, 16, latents, encoder, decoder, code_dim=16, quantizer="vae", target="pixels")


paper = Paper(
    card("titok"),
    parts=[TiTok, MaskGITVQGAN, ProxyCodes, MaskedTransformer, MaskedPrediction, RandomOrderTransformer],
    variants={
        "titok_l_32": Variant(_first("large", 32), 641.05, "32 codes, pixel decoder of the proxy"),
        "titok_b_64": Variant(_first("base", 64), 204.81, "64 codes"),
        "titok_s_128": Variant(_first("small", 128), 83.67, "128 codes"),
        "titok_bl_64": Variant(_later("base", "large", 64), 390.02, "one stage, 8192 codes, pixels"),
        "titok_bl_128": Variant(_later("base", "large", 128), 390.18, "one stage, 8192 codes, pixels"),
        "titok_sl_256": Variant(_later("small", "large", 256), 330.26, "one stage, 8192 codes, pixels"),
        "titok_ll_32_vae": Variant(_vae("large", "large", 32), 606.88, "16 channels"),
        "titok_bl_64_vae": Variant(_vae("base", "large", 64), 389.42, "16 channels"),
        "titok_bl_128_vae": Variant(_vae("base", "large", 128), 389.58, "16 channels"),
        "maskgit_vqgan": Variant(MaskGITVQGAN, 54.52, "the proxy: 1024 codes, 16 x 16"),
        "generator_l_32": Variant(MaskedTransformer, 177.20, "BERT, 8 steps"),
        "generator_b_64": Variant(partial(MaskedTransformer, 1000, 64), 177.23, "BERT, 8 steps"),
        "generator_s_128": Variant(partial(MaskedTransformer, 1000, 128, 4096, 1024, 20, form="uvit"), 294.99, "64 steps"),
    },
)
add_verbs(paper, KIT, TiTokConfig)


@paper.recipe("laptop")
def laptop(data: str = "default", generator: GeneratorKind = "bert", latents: int = 12, seed: int = 0) -> Recipe:
    """All stages on 32-pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        generator: "bert" or "uvit" (masked tokens, 8 passes) or "rar" (a token at a time, trained in random orders)
        latents: codes an image
        seed: of initial weights, data order and sampling
    """
    rar = generator == "rar"
    config = TiTokConfig(
        data=data,
        channels=default_channels(data),
        seed=seed,
        tokenizer=TokenizerConfig(latents),
        generator=GeneratorConfig(generator),
        judge=JudgeConfig(
            "pyramid",
            codebook_weight=0.0,
            adversarial_weight=0.1,
            adversarial_start=0.4,
            adversarial=Adversarial(lecam=0.001),
            discriminator_width=16,
        ),
        tokenizer_training=tokenizer_training(350, 32, 1.5e-3),
        generator_training=TrainConfig(540, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99),
        sampling=TiTokSampling(guidance=2.0 if rar else 1.5, top_p=0.96),
    )
    return Recipe(config, KIT.stages)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", size: Literal["l32", "b64", "s128"] = "l32", seed: int = 0) -> Recipe:
    """The published setting: 1 M steps of stage 1, 500,000 of stage 2 and of the generator; needs a cluster. The proxy is
    trained here as well, instead of fetched.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        size: l32, b64 or s128
        seed: of initial weights, data order and sampling
    """
    vit, latents = {"l32": ((1024, 24, 16), 32), "b64": ((768, 12, 12), 64), "s128": ((512, 8, 8), 128)}[size]
    network = GeneratorConfig("uvit", 1024, 20, 16, 0.1) if size == "s128" else GeneratorConfig("bert", 768, 24, 16, 0.1)
    steps: dict[str, Any] = {"l32": (8, "linear", 9.5), "b64": (8, "linear", 11.0), "s128": (64, "power-cosine", 2.8)}
    guidance = {"l32": 4.5, "b64": 3.0, "s128": 6.9}[size]

    def training(count: int, batch: int, warmup: int, betas: tuple[float, float], lr: float = 1e-4) -> TrainConfig:
        schedule = ScheduleConfig("cosine", warmup=warmup / count, end=0.1)
        optimizer = OptimizerConfig(lr=lr, betas=betas, weight_decay=1e-4, schedule=schedule)
        both = {"main": optimizer, "discriminator": optimizer}
        return TrainConfig(count, batch, optimizers=both, clip=1.0, ema=0.999, checkpoint_every=5000)

    generator = OptimizerConfig(lr=2e-4, betas=(0.9, 0.96), weight_decay=0.03, schedule=ScheduleConfig("cosine", warmup=0.02))
    config = TiTokConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=1,
        seed=seed,
        proxy=ProxyConfig(1024, 256, 128, (1, 1, 2, 2, 4), 2, 32, 1),
        tokenizer=TokenizerConfig(latents, vit, vit, 4096),
        generator=network,
        judge=JudgeConfig(
            "lpips",
            perceptual_weight=0.1,
            codebook_weight=0.0,
            adversarial_weight=0.01,
            adversarial_start=0.04,
            adversarial=Adversarial(lecam=0.001, adaptive=False),
            discriminator_width=128,
            discriminator_layers=3,
        ),
        proxy_training=training(500_000, 256, 5000, (0.9, 0.999)),
        latents_training=training(1_000_000, 256, 10_000, (0.9, 0.99)),
        tokenizer_training=training(500_000, 256, 5000, (0.9, 0.999)),
        generator_training=TrainConfig(500_000, 2048, optimizers={"main": generator}, ema=0.9999, checkpoint_every=5000),
        sampling=TiTokSampling(guidance, images=50_000, steps=steps[size][0], schedule=steps[size][1], noise=steps[size][2]),
    )
    return Recipe(config, KIT.stages)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=equals(32), says="exactly 32 ids of a 256-pixel image, and they decode to 256 pixels")
def tokens(bench: Bench) -> Measured:
    return measure.tokens()


@paper.claim("c2", rule=equals(256), says="exactly 256 positions at factor 16, and 1024 at factor 8")
def grid_tokens(bench: Bench) -> Measured:
    return measure.grid_tokens()


@paper.claim("c6", rule=equals(64), says="4096 positions of DiT's latents at 512 pixels over 64 tokens, exactly 64")
def fewer_tokens(bench: Bench) -> Measured:
    return measure.fewer_tokens()


@paper.claim("c7", rule=at_least(100.0), says="DiT-XL/2's operations at 512 pixels at least 100 times those of 64 tokens")
def operations(bench: Bench) -> Measured:
    return measure.operations("L-64")


@paper.claim("c9", rule=at_least(20.0), says="DiT-XL/2's operations at 512 pixels at least 20 times those of 128 tokens")
def operations_best(bench: Bench) -> Measured:
    return measure.operations("B-128")


@paper.claim("c10", rule=at_most(1.0), says="error at most that of a 2-D code of as many tokens and bits, on every seed")
def competitive(bench: Bench) -> Measured:
    return measure.competitive(bench)
