"""PUT end to end: small images or crops of photos with holes, the patch codec, the un-quantised transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperworks.analysis.features import lite0
from paperworks.data import ImageSource, Transformed, open_images, random_crops
from paperworks.data.masks import HoleConfig, WithHoles, draw_holes
from paperworks.data.transforms import Drawn, resize_shorter, to_float, train_crop
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.generators.unquantized_sampling import FillConfig, InputKind
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.objectives.inpainting_codec import InpaintingCodecTraining
from paperworks.objectives.style import ContentStyle, FirstMaps, VGG19Maps
from paperworks.objectives.unquantized_prediction import UnquantizedPrediction
from paperworks.paper import Run
from paperworks.papers._generation import (
    adamw,
    framed,
    load_part,
    open_split,
    open_test,
    save_part,
    skipped_images,
    tokenizer_training,
    training_images,
)
from paperworks.papers._generation_report import evenly
from paperworks.tokenizers.patch_vqvae import PatchVQVAE, Upsample
from paperworks.training import TrainConfig, fit

FEW = 64
"""photos up to which crops are cut once and kept; more are read and cropped while training"""


@dataclass(frozen=True)
class CodecConfig:
    patch: int = 4
    width: int = 128
    channels: int = 64
    code_dim: int = 64
    encoder_blocks: int = 4
    decoder_blocks: int = 3
    base_channels: int = 32
    vocab_size: int = 128
    clean_codes: int = 96
    """of vocab_size: codes of complete patches; the others are for patches that a hole touches"""
    ema: float = 0.9
    """0.99 where training is long"""
    upsample: Upsample = "nearest"
    """"deconv" is the 2022 form, "nearest" the later one, without its dots"""
    stage_blocks: int = 0


@dataclass(frozen=True)
class CodecLossConfig:
    network: Literal["lite0", "vgg19", "none"] = "lite0"
    """whose feature maps content and style are compared in: "vgg19" is the paper's and fetches its weights; weights of the
    terms below are for the embedded one"""
    gradient_weight: float = 5.0
    content_weight: float = 0.01
    style_weight: float = 0.1
    adversarial_weight: float = 0.1
    """0 for no discriminator"""
    start: float = 0.3
    """share of the training after which all terms but L1 join"""
    erase: float = 0.2
    no_reference: float = 0.3
    noisy: float = 0.0
    """share of the training in which codes are drawn with noise (2024)"""
    discriminator_width: int = 16
    discriminator_layers: int = 2


@dataclass(frozen=True)
class TransformerConfig:
    dim: int = 128
    layers: int = 4
    heads: int = 4
    mask_embedding: bool = False
    """a learned vector for the hole (2024)"""
    drop_path: float = 0.0
    positions: Literal["zeros", "sines"] = "sines"
    """"zeros" as released, where training is long"""
    random_quantize: float = 0.3
    features: InputKind = "continuous"
    """"quantized" is the baseline that reads codes"""
    poly: float = 0.0
    """weight of the poly loss's first term (2024)"""


@dataclass(frozen=True)
class PUTConfig:
    data: str = "photos"
    image_size: int = 32
    channels: int = 3
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    crops: int = 12_000
    """cut from up to 64 photos; of more photos each is cropped at random in every epoch"""
    scales: tuple[float, ...] = (3.0, 5.0, 8.0)
    """shorter sides, in crops, that photos are reduced to before they are cut"""
    recolour: bool = True
    """let colours change places in crops of a few photos"""
    seed: int = 0
    holes: HoleConfig = field(
        default_factory=lambda: HoleConfig(boxes=0.3, halves=0.1, width=(0.12, 0.4), length=0.6, smallest=1 / 64)
    )
    masks: str = ""
    """a folder of mask pictures (white = hole) that four fifths of the training holes come from"""
    codec: CodecConfig = CodecConfig()
    losses: CodecLossConfig = CodecLossConfig()
    codec_training: TrainConfig = field(default_factory=lambda: tokenizer_training(500, 32, 2e-3))
    transformer: TransformerConfig = TransformerConfig()
    transformer_training: TrainConfig = field(
        default_factory=lambda: TrainConfig(1400, 32, optimizers={"main": adamw(2e-3)}, clip=2.0, ema=0.99)
    )
    filling: FillConfig = field(default_factory=lambda: FillConfig(per_pass=4, keep=10))
    held_out: int = 500
    """images or crops that are measured"""


# --- images and holes -------------------------------------------------------------------------------------------------


def cut_crops(
    source: ImageSource, size: int, count: int, scales: tuple[float, ...], seed: int, recolour: bool = False
) -> ImageSource:
    """`count` squares from a few photos, an equal number at each scale, half of them mirrored. recolour: red, green and blue
    change places, and crops get darker or lighter, since a few photos hold few colours."""
    photos = [source.read(index) for index in range(len(source))]
    keys = [source.key(index) for index in range(len(source))]
    parts = []
    for number, scale in enumerate(scales):
        shares = count // len(scales) + (number < count % len(scales))
        sides = [max(size, min(round(scale * size), *photo.shape[1:])) for photo in photos]
        smaller = [resize_shorter(photo[None], side)[0] for photo, side in zip(photos, sides)]
        at_scale = ImageSource.from_tensor(smaller, name=source.name, keys=keys, licence=source.licence)
        cut = random_crops(at_scale, size, shares, seed + number)
        parts.append(torch.stack([cut.read(index) for index in range(len(cut))]))
    crops = torch.cat(parts)
    generator = torch.Generator().manual_seed(seed)
    crops = crops[torch.randperm(len(crops), generator=generator)]
    mirrored = torch.rand(len(crops), 1, 1, 1, generator=generator) < 0.5
    crops = torch.where(mirrored, crops.flip(3), crops)
    if recolour and crops.shape[1] == 3:
        order = torch.rand(len(crops), 3, generator=generator).argsort(1)
        crops = crops.gather(1, order[:, :, None, None].expand_as(crops))
        gamma = 2 ** (2 * torch.rand(len(crops), 1, 1, 1, generator=generator) - 1)
        crops = ((crops.float() / 255) ** gamma * 255).round().to(torch.uint8)
    return ImageSource.from_tensor(crops, name=f"{source.name} crops", licence=source.licence)


def are_large(source: ImageSource, size: int) -> bool:
    """Whether images are photos to cut crops from rather than pictures to be framed whole."""
    return min(min(source.read(index).shape[1:]) for index in range(min(len(source), 8))) >= 2 * size


def training_set(config: PUTConfig, source: ImageSource, batch_size: int) -> WithHoles:
    images: Any
    if are_large(source, config.image_size):
        if len(source) <= FEW:
            count = max(config.crops, batch_size)
            crops = cut_crops(source, config.image_size, count, config.scales, config.seed, recolour=config.recolour)
            images = Transformed(crops, None, seed=config.seed)
        else:
            crop: Drawn = train_crop(config.image_size, margin=1.0, flip=True)
            images = Transformed(source, crop, seed=config.seed, size=max(len(source), batch_size))
    else:
        images = training_images(source, config.image_size, config.seed, batch_size)
    provided = open_images(config.masks, channels=1, labels="none") if config.masks else None
    return WithHoles(images, config.image_size, config.holes, seed=config.seed, provided=provided)


def held_out(config: PUTConfig, data: str | None = None, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] in [0, 1] that were not trained on, and holes bool [N, H, W]; always the same ones."""
    source = open_test(config.data, channels=config.channels, strict=config.strict)
    if data is not None:
        source = open_images(data, channels=config.channels, labels="none")
    wanted = count or config.held_out
    if are_large(source, config.image_size) and len(source) <= FEW:
        cut = cut_crops(source, config.image_size, wanted, config.scales, seed=99)
        images = to_float(torch.stack([cut.read(index) for index in range(len(cut))]))
    else:
        images = framed(evenly(source, wanted), config.image_size)
    size = (config.image_size, config.image_size)
    return images, draw_holes(range(len(images)), size, config.holes, seed=99)


# --- the two stages ---------------------------------------------------------------------------------------------------


def build_codec(config: PUTConfig) -> PatchVQVAE:
    return PatchVQVAE(config.image_size, in_channels=config.channels, **vars(config.codec))


def content_style(name: str) -> ContentStyle | None:
    if name == "none":
        return None
    if name == "vgg19":
        return ContentStyle(VGG19Maps(), VGG19Maps.CONTENT, VGG19Maps.STYLE)
    return ContentStyle(FirstMaps(lite0()))


def codec_objective(config: PUTConfig) -> InpaintingCodecTraining:
    part, steps = config.losses, config.codec_training.steps
    torch.manual_seed(config.seed)  # initial weights; everything later draws from named generators
    codec = build_codec(config)
    judge: nn.Module | None = None
    if part.adversarial_weight:
        judge = PatchDiscriminator(config.channels, part.discriminator_width, part.discriminator_layers)
    return InpaintingCodecTraining(
        codec,
        perceptual=content_style(part.network),
        discriminator=judge,
        start=round(part.start * steps),
        gradient_weight=part.gradient_weight,
        content_weight=part.content_weight,
        style_weight=part.style_weight,
        adversarial_weight=part.adversarial_weight,
        erase=part.erase,
        no_reference=part.no_reference,
        noisy_steps=round(part.noisy * steps),
    )


def train_codec(config: PUTConfig, run: Run) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps = run.stage_folder("codec"), config.codec_training
    objective = codec_objective(config)
    fitted = fit(objective, training_set(config, source, steps.batch_size), steps, folder, label="codec")
    save_part(objective.tokenizer, folder)
    return {"photos": len(source), "skipped": skipped_images(source), "seconds": round(fitted.seconds, 1)}


def build_transformer(config: PUTConfig, codec: PatchVQVAE) -> UnquantizedTransformer:
    part, spec = config.transformer, codec.spec
    return UnquantizedTransformer(
        spec.code_channels,
        spec.tokens,
        spec.vocab_size,
        part.dim,
        part.layers,
        part.heads,
        mask_embedding=part.mask_embedding,
        drop_path=part.drop_path,
        codec=spec.id,
        positions=part.positions,
    )


def transformer_objective(config: PUTConfig, codec: PatchVQVAE, seed: int) -> UnquantizedPrediction:
    part = config.transformer
    torch.manual_seed(seed)
    return UnquantizedPrediction(
        build_transformer(config, codec), codec, random_quantize=part.random_quantize, features=part.features, poly=part.poly
    )


def train_transformer(config: PUTConfig, run: Run) -> Mapping[str, Any]:
    codec = load_codec(run)
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps = run.stage_folder("transformer"), config.transformer_training
    objective = transformer_objective(config, codec, config.seed + 1)
    fitted = fit(objective, training_set(config, source, steps.batch_size), steps, folder, label="transformer")
    best = fitted.averaged
    assert isinstance(best, UnquantizedPrediction)
    save_part(best.model, folder)
    return {"seconds": round(fitted.seconds, 1), "parameters": sum(p.numel() for p in best.model.parameters())}


def load_codec(run: Run) -> PatchVQVAE:
    return load_part(PatchVQVAE, run.folder / "codec")


def load_transformer(run: Run) -> UnquantizedTransformer:
    return load_part(UnquantizedTransformer, run.folder / "transformer")
