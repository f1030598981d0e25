"""VAR end to end: train the multi-scale tokenizer, train the next-scale transformer on its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.generators.next_scale import NextScaleTransformer
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Run
from paperworks.papers._generation import (
    FramedImages,
    Perceptual,
    TensorSet,
    adamw,
    class_names,
    framed_copies,
    kept_tensors,
    load_part,
    open_split,
    perceptual_loss,
    save_part,
    skipped_images,
    tokenizer_training,
    training_images,
)
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.training import Fitted, TrainConfig, fit


@dataclass(frozen=True)
class TokenizerConfig:
    """The autoencoder and what it is trained for."""

    patch_nums: tuple[int, ...] = (1, 2, 3, 4)
    """sides of the token maps; the last one times 2^(len(ch_mult) - 1) is the image's side"""
    vocab_size: int = 256
    z_channels: int = 16
    ch: int = 16
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 1
    groups: int = 8
    perceptual: Perceptual = "pyramid"
    adversarial_weight: float = 0.5
    """0 for no discriminator"""
    adversarial_start: float = 0.5
    """share of the training after which the discriminator joins"""
    discriminator_width: int = 16
    discriminator_layers: int = 2


@dataclass(frozen=True)
class TransformerConfig:
    depth: int = 6
    embed_dim: int = 192
    num_heads: int = 3
    drop_path_rate: float = 0.0
    shared_aln: bool = False
    label_dropout: float = 0.1


@dataclass(frozen=True)
class SamplingConfig:
    guidance: float = 1.0
    top_k: int = 0
    top_p: float = 0.96
    images: int = 1000
    """made for the Frechet distance"""


@dataclass(frozen=True)
class VARConfig:
    data: str = "default"
    image_size: int = 32
    channels: int = 1
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    copies: int = 4
    """how often each training image is tokenized, each time with another random crop"""
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TrainConfig = field(default_factory=lambda: tokenizer_training(900, 32, 2e-3))
    transformer: TransformerConfig = TransformerConfig()
    transformer_training: TrainConfig = field(
        default_factory=lambda: TrainConfig(900, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.995)
    )
    sampling: SamplingConfig = SamplingConfig()


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def build_tokenizer(config: VARConfig) -> MultiScaleVQVAE:
    part = config.tokenizer
    tokenizer = MultiScaleVQVAE(
        vocab_size=part.vocab_size,
        z_channels=part.z_channels,
        ch=part.ch,
        ch_mult=part.ch_mult,
        num_res_blocks=part.num_res_blocks,
        v_patch_nums=part.patch_nums,
        in_channels=config.channels,
        groups=part.groups,
    )
    if config.image_size != tokenizer.image_size:
        raise InputError(
            f"image_size={config.image_size}, but {len(part.ch_mult) - 1} halvings down to a map of {part.patch_nums[-1]} x "
            f"{part.patch_nums[-1]} need {tokenizer.image_size}: change image_size, tokenizer.ch_mult or tokenizer.patch_nums"
        )
    return tokenizer


def tokenizer_objective(config: VARConfig) -> TokenizerTraining:
    part = config.tokenizer
    torch.manual_seed(config.seed)  # initial weights; everything later draws from named generators
    tokenizer = build_tokenizer(config)
    judge = PatchDiscriminator(config.channels, part.discriminator_width, part.discriminator_layers)
    return TokenizerTraining(
        tokenizer,
        perceptual=perceptual_loss(part.perceptual),
        discriminator=judge if part.adversarial_weight else None,
        adversarial_weight=part.adversarial_weight,
        adversarial_start=round(part.adversarial_start * config.tokenizer_training.steps),
    )


def train_tokenizer(config: VARConfig, run: Run) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder = run.stage_folder("tokenizer")
    steps = config.tokenizer_training
    data = training_images(source, config.image_size, config.seed, steps.batch_size)
    objective = tokenizer_objective(config)
    fitted = fit(objective, data, steps, folder, label="tokenizer")
    save_part(objective.tokenizer, folder)
    return {
        "images": len(source),
        "classes": class_names(source),
        "skipped": skipped_images(source),
        "seconds": round(fitted.seconds, 1),
    }


# --- stage 2 ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def tokenize(tokenizer: MultiScaleVQVAE, images: Tensor | FramedImages, labels: Tensor, batch_size: int = 200) -> TensorSet:
    """Images [N, C, H, W] in [0, 1] as token maps."""
    tokens, inputs = [], []
    for batch in images.split(batch_size):
        indices = tokenizer.encode(batch)
        tokens.append(torch.cat(indices, 1))
        inputs.append(tokenizer.quantize.next_inputs(indices))
    return TensorSet(tokens=torch.cat(tokens), inputs=torch.cat(inputs), label=labels)


def training_tokens(config: VARConfig, run: Run, tokenizer: MultiScaleVQVAE) -> TensorSet:
    """Every training image `copies` times, each time framed differently; kept in a file, so a resumed run reads it."""

    def make() -> dict[str, Tensor]:
        source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
        images = framed_copies(source, config.image_size, config.copies, config.seed)
        return tokenize(tokenizer, images, images.labels).columns

    return kept_tensors(run.stage_folder("transformer") / "tokens.safetensors", make)


def build_transformer(config: VARConfig, classes: int) -> NextScaleTransformer:
    part = config.transformer
    torch.manual_seed(config.seed + 1)
    return NextScaleTransformer(
        num_classes=classes,
        depth=part.depth,
        embed_dim=part.embed_dim,
        num_heads=part.num_heads,
        patch_nums=config.tokenizer.patch_nums,
        vocab_size=config.tokenizer.vocab_size,
        code_channels=config.tokenizer.z_channels,
        drop_path_rate=part.drop_path_rate,
        shared_aln=part.shared_aln,
    )


def train_transformer(config: VARConfig, run: Run) -> Mapping[str, Any]:
    tokenizer = load_tokenizer(run)
    data = training_tokens(config, run, tokenizer)
    model = build_transformer(config, len(run.result("tokenizer")["classes"]))
    folder = run.stage_folder("transformer")
    steps = config.transformer_training
    objective = TokenPrediction(model, config.transformer.label_dropout)
    fitted = fit(objective, data.at_least(steps.batch_size), steps, folder, label="transformer")
    best = averaged_model(fitted)
    assert isinstance(best, NextScaleTransformer)
    save_part(best, folder)
    return {"seconds": round(fitted.seconds, 1), "parameters": sum(p.numel() for p in model.parameters())}


def averaged_model(fitted: Fitted) -> nn.Module:
    objective = fitted.averaged
    assert isinstance(objective, TokenPrediction)
    return objective.model


# --- what a run made --------------------------------------------------------------------------------------------------


def load_tokenizer(run: Run) -> MultiScaleVQVAE:
    return load_part(MultiScaleVQVAE, run.folder / "tokenizer")


def load_transformer(run: Run) -> NextScaleTransformer:
    return load_part(NextScaleTransformer, run.folder / "transformer")
