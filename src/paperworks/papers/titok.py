"""TiTok (2406.07550): an image as a short sequence of codes without a grid, and masked or random-order generation of them.

paperworks run titok                                 digits in 12 codes, minutes on two cores
paperworks run titok --generator rar                 another generator: bert, uvit, rar
paperworks run titok --decoder pixels                the later tokenizers: one stage, without a proxy; vae: latents, not codes
paperworks run titok --data FOLDER                   your own photos
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from paperworks.generators.masked import MaskedTransformer
from paperworks.generators.random_order import RandomOrderTransformer
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.masked_prediction import MaskedPrediction
from paperworks.objectives.proxy_codes import ProxyCodes
from paperworks.paper import Bench, Measured, Paper, Recipe, Variant, at_least, at_most, equals
from paperworks.papers import _titok_claims as measure
from paperworks.papers import card
from paperworks.papers._generation import adamw, default_channels, shows_photos, tokenizer_training
from paperworks.papers._titok_recipe import (
    KIT,
    GeneratorConfig,
    GeneratorKind,
    ProxyConfig,
    TiTokConfig,
    TiTokSampling,
    TokenizerConfig,
)
from paperworks.papers._token_recipe import JudgeConfig, add_verbs
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN
from paperworks.tokenizers.titok import SIZES, TiTok
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

DecoderKind = Literal["proxy", "pixels", "vae"]

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
def laptop(
    data: str = "default",
    generator: GeneratorKind = "bert",
    decoder: DecoderKind = "proxy",
    latents: int = 12,
    seed: int = 0,
) -> Recipe:
    """All stages on 32-pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        generator: "bert" or "uvit" (masked tokens, 8 passes) or "rar" (a token at a time, trained in random orders)
        decoder: what it learns: a 2-D tokenizer's codes before pixels ("proxy"), "pixels" at once, or "vae", pixels at once
            from continuous latents, for which no generator is trained
        latents: codes an image
        seed: of initial weights, data order and sampling
    """
    rar, proxy = generator == "rar", decoder == "proxy"
    config = TiTokConfig(
        data=data,
        channels=default_channels(data),
        flip=shows_photos(data),
        seed=seed,
        tokenizer=TokenizerConfig(
            latents, quantizer="vae" if decoder == "vae" else "vq", target="proxy" if proxy else "pixels"
        ),
        generator=GeneratorConfig(generator),
        judge=JudgeConfig(
            "pyramid",
            codebook_weight=0.0 if proxy else 1.0,
            adversarial_weight=0.1,
            adversarial_start=0.4 if proxy else 0.7,
            adversarial=Adversarial(lecam=0.001),
            discriminator_width=16,
        ),
        # without the two stages before it, the one that is left has their time
        tokenizer_training=tokenizer_training(350 if proxy else 1200, 32, 1.5e-3),
        generator_training=TrainConfig(540, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99),
        sampling=TiTokSampling(guidance=2.0 if rar else 1.5, top_p=0.96),
    )
    return Recipe(config, KIT.stages)


L2 = 0.25
"""images are compared in [-1, 1] here and in [0, 1] in the paper, where squares are a quarter as large"""


def _adamw(steps: int, batch: int, warmup: int, betas: tuple[float, float]) -> TrainConfig:
    """AdamW at 1e-4 for the tokenizer and its discriminator, cosine to a tenth."""
    schedule = ScheduleConfig("cosine", warmup=warmup / steps, end=0.1)
    optimizer = OptimizerConfig(lr=1e-4, betas=betas, weight_decay=1e-4, schedule=schedule)
    both = {"main": optimizer, "discriminator": optimizer}
    return TrainConfig(steps, batch, optimizers=both, clip=1.0, ema=0.999, checkpoint_every=5000)


def _imagenet(data: str, seed: int, network: GeneratorConfig, sampling: TiTokSampling, **parts: Any) -> Recipe:
    """What all published models share: 256 pixels with the shorter side as it is, mirrored; centres for the generator."""
    schedule = ScheduleConfig("cosine", warmup=0.02, end=0.05)
    optimizer = OptimizerConfig(lr=2e-4, betas=(0.9, 0.96), weight_decay=0.03, schedule=schedule)
    config = TiTokConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=2,
        flip=True,
        margin=1.0,
        crop_tokens=False,
        seed=seed,
        proxy=ProxyConfig(1024, 256, 128, (1, 1, 2, 2, 4), 2, 32, 1),
        generator=network,
        generator_training=TrainConfig(
            500_000, 2048, optimizers={"main": optimizer}, clip=1.0, ema=0.9999, checkpoint_every=5000
        ),
        sampling=sampling,
        **parts,
    )
    return Recipe(config, KIT.stages)


BERT = GeneratorConfig("bert", 768, 24, 16, 0.1)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", size: Literal["l32", "b64", "s128"] = "l32", seed: int = 0) -> Recipe:
    """The published setting: 1 M steps of stage 1, 500,000 of stage 2 and of the generator; needs a cluster. The proxy is
    trained here as well, instead of fetched; ConvNeXt-S's weights are fetched.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        size: l32, b64 or s128
        seed: of initial weights, data order and sampling
    """
    vit, latents = {"l32": ("large", 32), "b64": ("base", 64), "s128": ("small", 128)}[size]
    network = GeneratorConfig("uvit", 1024, 20, 16, 0.1) if size == "s128" else BERT
    steps: dict[str, Any] = {"l32": (8, "linear", 9.5), "b64": (8, "linear", 11.0), "s128": (64, "power-cosine", 2.8)}
    guidance = {"l32": 4.5, "b64": 3.0, "s128": 6.9}[size]
    return _imagenet(
        data,
        seed,
        network,
        TiTokSampling(guidance, images=50_000, steps=steps[size][0], schedule=steps[size][1], noise=steps[size][2]),
        tokenizer=TokenizerConfig(latents, SIZES[vit], SIZES[vit], 4096),
        judge=JudgeConfig(
            "convnext",
            l2_weight=L2,
            perceptual_weight=0.1,
            codebook_weight=0.0,
            adversarial_weight=0.01,
            adversarial_start=0.04,
            adversarial=Adversarial(lecam=0.001, adaptive=False),
            discriminator_width=128,
            discriminator_layers=3,
        ),
        proxy_training=_adamw(500_000, 256, 5000, (0.9, 0.999)),
        latents_training=_adamw(1_000_000, 256, 10_000, (0.9, 0.99)),
        tokenizer_training=_adamw(500_000, 256, 5000, (0.9, 0.999)),
    )


@paper.recipe("later")
def one_stage(
    data: str = "imagenet",
    size: Literal["bl64", "bl128", "sl256", "ll32_vae", "bl64_vae", "bl128_vae"] = "bl64",
    seed: int = 0,
) -> Recipe:
    """The models released after the paper: pixels at once, 8192 codes or 16 continuous channels, trained as TA-TiTok's are
    (650,000 steps, LPIPS and ConvNeXt-S, a discriminator from step 200,000). Their generators were not described: codes get
    B-64's, latents none. Needs a cluster.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        size: encoder and decoder (small, base, large), latents, and whether they are continuous
        seed: of initial weights, data order and sampling
    """
    name, _, vae = size.partition("_")
    encoder, decoder = ({"s": "small", "b": "base", "l": "large"}[letter] for letter in name[:2])
    codes: dict[str, Any] = {"code_dim": 16, "quantizer": "vae"} if vae else {"vocab_size": 8192, "code_dim": 64}
    return _imagenet(
        data,
        seed,
        BERT,
        TiTokSampling(3.0, images=50_000, steps=8, schedule="linear", noise=11.0),
        tokenizer=TokenizerConfig(int(name[2:]), SIZES[encoder], SIZES[decoder], normalize=False, target="pixels", **codes),
        judge=JudgeConfig(
            "lpips_convnext",
            l2_weight=L2,
            adversarial_weight=0.1,
            adversarial_start=200_000 / 650_000,
            adversarial=Adversarial(lecam=0.001, adaptive=False),
            discriminator_width=128,
            discriminator_layers=3,
        ),
        tokenizer_training=_adamw(650_000, 256, 10_000, (0.9, 0.999)),
    )


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


def _competitive(measured: Measured) -> bool:
    return at_most(1.0)(measured) and all(measured.numbers["falls"])


@paper.claim(
    "c10",
    rule=_competitive,
    says="error at most that of a 2-D code of as many tokens and bits, and lower with 16 than with 8 codes and with 32 than "
    "with 16, on every seed",
)
def competitive(bench: Bench) -> Measured:
    return measure.competitive(bench)


def _grows(measured: Measured) -> bool:
    return all(gain > 0 for gain in measured.per_seed)


@paper.claim(
    "c11",
    rule=_grows,
    says="16 codes without a grid save a larger share of a 4 x 4 grid's error at 64 than at 32 pixels, on every seed",
)
def grows_with_resolution(bench: Bench) -> Measured:
    return measure.grows_with_resolution(bench)
