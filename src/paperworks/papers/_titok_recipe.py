"""TiTok's recipe: its configuration, how its parts are built, and the stages that only it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
from paperworks.layers.vector_quantization import CodeUsage
from paperworks.objectives.masked_prediction import MaskedPrediction, RandomOrderPrediction
from paperworks.objectives.proxy_codes import ProxyCodes
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Run, Stage
from paperworks.papers._generation import (
    TensorSet,
    adamw,
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
from paperworks.papers._token_recipe import Kit, SampleConfig, TokenConfig, averaged_tokenizer
from paperworks.reporting import Report
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN
from paperworks.tokenizers.protocol import reconstruct
from paperworks.tokenizers.titok import TiTok
from paperworks.training import TrainConfig, fit

GeneratorKind = Literal["bert", "uvit", "rar"]


@dataclass(frozen=True)
class ProxyConfig:
    """The MaskGIT-VQGAN whose codes stage 1 predicts and whose decoder stage 2 goes on with. Its sizes say how large a patch
    is, also where there is no proxy."""

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
    quantizer: Literal["vq", "vae"] = "vq"
    """codes, or a Gaussian of code_dim channels, for which there is no generator here"""
    target: Literal["proxy", "pixels"] = "proxy"
    """what the decoder learns: a proxy's codes and then, in a second stage, pixels; or pixels at once"""


@dataclass(frozen=True)
class GeneratorConfig:
    kind: GeneratorKind = "bert"
    dim: int = 192
    depth: int = 6
    heads: int = 6
    dropout: float = 0.0
    """BERT's attention drops as much"""


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

    @property
    def two_stages(self) -> bool:
        return self.tokenizer.target == "proxy"


# --- parts ------------------------------------------------------------------------------------------------------------


def proxy_sizes(config: TiTokConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config.proxy).items() if name != "vocab_size"}


def build_proxy(config: TiTokConfig) -> MaskGITVQGAN:
    return MaskGITVQGAN(config.image_size, config.proxy.vocab_size, in_channels=config.channels, **proxy_sizes(config))


def build_tokenizer(config: TiTokConfig, pixel_decoder: bool = True) -> TiTok:
    """pixel_decoder: for stage 2; stage 1 has none, nor has a decoder that predicts pixels itself."""
    patch = config.proxy.patch * 2 ** (len(config.proxy.ch_mult) - 1)
    return TiTok(
        config.image_size,
        patch,
        in_channels=config.channels,
        proxy_codes=config.proxy.vocab_size,
        pixel_decoder=proxy_sizes(config) if pixel_decoder and config.two_stages else None,
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


def discriminator(config: TiTokConfig) -> nn.Module:
    judge = config.judge
    groups = 8 if judge.discriminator_width % 32 else 32
    return BlurDiscriminator(config.channels, judge.discriminator_width, judge.discriminator_layers, groups)


# --- stages -----------------------------------------------------------------------------------------------------------

NO_PROXY = {"not needed": "the decoder predicts pixels"}


def train_proxy(config: TiTokConfig, run: Run) -> Mapping[str, Any]:
    """The 2-D tokenizer, by pixels and perceptual loss, weighed as in the second stage."""
    if not config.two_stages:
        return NO_PROXY
    judge = config.judge
    torch.manual_seed(config.seed)
    learner = TokenizerTraining(
        build_proxy(config),
        perceptual=perceptual_loss(judge.perceptual),
        l2_weight=judge.l2_weight,
        l1_weight=judge.l1_weight,
        perceptual_weight=judge.perceptual_weight,
    )
    return _train(config, run, learner, config.proxy_training, "proxy", "proxy tokenizer")


def train_latents(config: TiTokConfig, run: Run) -> Mapping[str, Any]:
    """Stage 1: the codes of that tokenizer from a few latents."""
    if not config.two_stages:
        return NO_PROXY
    torch.manual_seed(config.seed)
    learner = ProxyCodes(build_tokenizer(config, pixel_decoder=False), load_part(MaskGITVQGAN, run.folder / "proxy"))
    return _train(config, run, learner, config.latents_training, "latents", "latents")


def _train(
    config: TiTokConfig, run: Run, learner: TokenizerTraining, steps: TrainConfig, stage: str, label: str
) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    data = training_images(source, config.image_size, config.seed, steps.batch_size, flip=config.flip, margin=config.margin)
    folder = run.stage_folder(stage)
    fitted = fit(learner, data, steps, folder, label=label)
    save_part(averaged_tokenizer(fitted), folder)
    return {"seconds": round(fitted.seconds, 1)}


def start_second_stage(config: TiTokConfig, tokenizer: TiTok, run: Run) -> None:
    if config.two_stages:
        first = load_part(TiTok, run.folder / "latents")
        tokenizer.start_second_stage(first, load_part(MaskGITVQGAN, run.folder / "proxy"))


def show_more(page: Report, config: TiTokConfig, run: Run, tokenizer: TiTok, model: Any) -> None:
    if not config.two_stages:
        return
    images = framed(spread_over(open_test(config.data, channels=config.channels), 12), config.image_size)
    proxy = load_part(MaskGITVQGAN, run.folder / "proxy")
    rows = {
        "held-out image": images,
        f"{proxy.side**2} codes of the 2-D proxy": reconstruct(proxy, images)[0],
        f"{tokenizer.latents} codes of TiTok": KIT.rebuild(tokenizer, images)[0],
    }
    page.compare("Without a grid", rows, caption="The proxy only teaches TiTok's decoder; its codes are not kept.")
    page.metrics("Training the proxy", run.folder / "proxy" / "metrics.jsonl", ["generator/mse"])
    page.metrics(
        "Stage 1: predicting its codes",
        run.folder / "latents" / "metrics.jsonl",
        ["generator/proxy_loss", "generator/proxy_accuracy", "generator/code_usage"],
    )


class TiTokKit(Kit):
    """Two more stages in front, and tokenizers without codes."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        return Stage("proxy", train_proxy), Stage("latents", train_latents), *super().stages

    def generates(self, config: TiTokConfig) -> bool:
        return config.tokenizer.quantizer == "vq"

    @torch.inference_mode()
    def rebuild(self, tokenizer: TiTok, images: Tensor) -> tuple[Tensor, CodeUsage | None]:
        if tokenizer.kind == "vq":
            return reconstruct(tokenizer, images)
        parts = [tokenizer.decode_latents(tokenizer.encode_latents(part)) for part in images.split(200)]
        return torch.cat(parts).clone(), None


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
