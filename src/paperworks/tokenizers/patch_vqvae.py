"""PUT's P-VQVAE (2205.05076, section 3.1; 2404.00513 for the larger form): an encoder that sees one patch at a time, two code
books, and a convolutional decoder that takes the known pixels from a reference branch at every resolution.

The released code works on images of 0..255; here they are [0, 1] as everywhere, [-1, 1] inside. The hole is black inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.autoencoder import to_signed, to_unit
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.tokenizers.dual_quantizer import Distance, DualQuantizer, token_types
from paperworks.tokenizers.protocol import TokenizerSpec, check_images, fingerprint
from paperworks.tokenizers.quantizers import check_indices, with_hit_average

Upsample = Literal["deconv", "nearest", "bilinear"]


class LinearBlock(nn.Module):
    """r + MLP(r) with r = relu(x): the first ReLU of the released blocks works in place, so their skip is rectified too."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        return rectified + self.fc2(F.relu(self.fc1(rectified)))


class ConvBlock(nn.Module):
    """The same with a 3 x 3 and a 1 x 1 convolution."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, hidden, 3, padding=1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        return rectified + self.conv2(F.relu(self.conv1(rectified)))


class PatchEncoder(nn.Module):
    """Images [B, C, H, W] in [-1, 1] -> [B, H/p, W/p, out]; every output depends on the pixels of its own patch alone."""

    def __init__(self, in_channels: int, patch: int, width: int, out: int, blocks: int, bottleneck: int = 2):
        super().__init__()
        self.patch = patch
        self.stem = nn.Linear(in_channels * patch * patch, width)
        self.blocks = nn.Sequential(*[LinearBlock(width, width // bottleneck) for _ in range(blocks)])
        self.head = nn.Linear(width, out)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(images, self.patch).permute(0, 2, 3, 1)
        return F.relu(self.head(F.relu(self.blocks(self.stem(patches)))))


class UpStage(nn.Module):
    """ReLU, twice the resolution, and `blocks` residual blocks there."""

    def __init__(self, channels: int, out: int, kind: Upsample, blocks: int, bottleneck: int):
        super().__init__()
        if kind not in ("deconv", "nearest", "bilinear"):
            raise InputError(f"upsample={kind!r}: there are deconv, nearest and bilinear")
        self.kind, self.channels, self.out = kind, channels, out
        self.up: nn.Module = (
            nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)
            if kind == "deconv"
            else nn.Conv2d(channels, out, 3, padding=1)
        )
        self.blocks = nn.Sequential(*[ConvBlock(out, out // bottleneck) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        if self.kind != "deconv":
            x = F.interpolate(x, scale_factor=2.0, mode=self.kind)
        return self.blocks(self.up(x))


class ReferenceEncoder(nn.Module):
    """The decoder mirrored, on the masked image: features at every resolution from the image's own downwards."""

    def __init__(self, in_channels: int, stages: Sequence[UpStage], bottleneck: int):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, stages[-1].out, 3, padding=1)
        self.blocks, self.downs = nn.ModuleList(), nn.ModuleList()
        for stage in reversed(stages):
            self.blocks.append(nn.Sequential(*[ConvBlock(stage.out, stage.out // bottleneck) for _ in stage.blocks]))
            self.downs.append(nn.Conv2d(stage.out, stage.channels, 4, stride=2, padding=1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Before their activation, coarsest first."""
        maps = [self.stem(image)]
        for blocks, down in zip(self.blocks, self.downs):
            maps.append(down(F.relu(blocks(maps[-1]))))
        return maps[::-1]


class PatchDecoder(nn.Module):
    """Features [B, channels, h, w] -> images in about [-1, 1], `2 ** stages` times as large.

    Where pixels are known, the reference branch's features take the place of the decoder's before every up-sampling and
    before the last convolution (equation 4).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        patch: int,
        width: int,
        blocks: int,
        *,
        base_channels: int = 64,
        bottleneck: int = 2,
        upsample: Upsample = "deconv",
        stage_blocks: int = 0,
        reference: bool = True,
    ):
        super().__init__()
        stages = patch.bit_length() - 1
        if patch < 2 or patch != 2**stages:
            raise InputError(f"patch={patch} must be a power of two, 2 at least: the decoder doubles the resolution")
        widths = [width] + [base_channels * 2**level for level in reversed(range(stages))]
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ConvBlock(width, width // bottleneck) for _ in range(blocks)])
        ups = [UpStage(a, b, upsample, stage_blocks, bottleneck) for a, b in pairwise(widths)]
        self.ups = nn.ModuleList(ups)
        self.head = nn.Conv2d(base_channels, out_channels, 3, padding=1)
        self.reference = ReferenceEncoder(out_channels, ups, bottleneck) if reference else None

    @property
    def last_layer(self) -> Tensor:
        return self.head.weight

    def forward(self, features: Tensor, image: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """image [B, C, H, W]: the masked image; known [B, 1, H, W]: 1 where it may be used. Nothing is known without."""
        x = self.blocks(self.stem(features))
        maps: list[Tensor] = []
        if self.reference is not None and image is not None and known is not None:
            maps = self.reference(image)
        for level, stage in enumerate(self.ups):
            if maps and known is not None:
                x = _merged(x, maps[level], known)
            x = stage(x)
        if maps and known is not None:
            x = _merged(x, maps[-1], known)
        return self.head(F.relu(x))


def _merged(x: Tensor, reference: Tensor, known: Tensor) -> Tensor:
    """The reference where the (nearest-resized) mask says known."""
    factor = known.shape[-1] // x.shape[-1]
    return torch.where(known[..., ::factor, ::factor] > 0, reference, x)


class PatchVQVAE(nn.Module, Pretrained):
    """Images [B, in_channels, H, W] in [0, 1], sides divisible by `patch` <-> tokens, one per patch.

    vocab_size, clean_codes: codes of both parts together, and of the part for patches that are fully known, which is the
    vocabulary of generators. width, encoder_blocks: of the encoder; decoder_width (the same if None), decoder_blocks,
    base_channels (at full resolution), upsample, stage_blocks: of the decoder. image_size: of the images it is trained on.
    """

    def __init__(
        self,
        image_size: int = 256,
        patch: int = 8,
        *,
        in_channels: int = 3,
        width: int = 256,
        channels: int = 256,
        code_dim: int = 256,
        encoder_blocks: int = 8,
        decoder_blocks: int = 8,
        decoder_width: int | None = None,
        base_channels: int = 64,
        bottleneck: int = 2,
        vocab_size: int = 1024,
        clean_codes: int = 512,
        ema: float = 0.99,
        distance: Distance = "euclidean",
        upsample: Upsample = "deconv",
        stage_blocks: int = 0,
        reference: bool = True,
    ):
        super().__init__()
        if image_size % patch:
            raise InputError(f"image_size={image_size} does not divide into patches of {patch}")
        self.image_size, self.patch, self.in_channels = image_size, patch, in_channels
        self.encoder = PatchEncoder(in_channels, patch, width, channels, encoder_blocks, bottleneck)
        self.quant_conv = nn.Linear(channels, code_dim)
        self.quantize = DualQuantizer(vocab_size, code_dim, clean_codes, distance=distance, ema=ema)
        self.post_quant_conv = nn.Linear(code_dim, channels)
        self.decoder = PatchDecoder(
            channels,
            in_channels,
            patch,
            decoder_width or width,
            decoder_blocks,
            base_channels=base_channels,
            bottleneck=bottleneck,
            upsample=upsample,
            stage_blocks=stage_blocks,
            reference=reference,
        )

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        masked_embed_start: int,
        image_size: int = 256,
        upsample_type: Upsample = "nearest",
        distance_type: Distance = "euclidean",
        **ignored: Any,
    ) -> Self:
        """Weights of liuqk3/PUT: of a codec, or the `content_codec.*` of a transformer's checkpoint. Widths and depths are
        read off the weights; the split of the code book is not in them (512 in the 2022 configurations, 8192 in 2024's), nor
        is the way of up-sampling where it is not a transposed convolution."""
        weights = codec_weights(state_dict)
        kwargs = _architecture(weights)
        if kwargs["upsample"] != "deconv":
            kwargs["upsample"] = upsample_type
        model = cls(image_size, clean_codes=masked_embed_start, distance=distance_type, **kwargs)
        names = _Names(kwargs["patch"].bit_length() - 1, kwargs["stage_blocks"])
        flat = {
            key: value[..., 0, 0] if key.startswith(POINTWISE) and value.ndim == 4 else value for key, value in weights.items()
        }
        return load_official(model, with_hit_average(flat, model), rename=names)

    # --- what others need to know ---

    @property
    def vocab_size(self) -> int:
        """Codes that a complete image consists of."""
        return self.quantize.clean_codes

    @property
    def spec(self) -> TokenizerSpec:
        side = self.image_size // self.patch
        parts = ("quantize.embedding", "post_quant_conv", "decoder")
        marks = fingerprint((name, value) for name, value in self.state_dict().items() if name.startswith(parts))
        return TokenizerSpec(
            "PatchVQVAE", self.image_size, self.in_channels, ((side, side),), self.vocab_size, self.quantize.channels, marks
        )

    # --- training ---

    def features(self, images: Tensor, known: Tensor | None = None) -> Tensor:
        """What is quantised: [B, h, w, code_dim] of images whose unknown pixels (known [B, 1, H, W] is 0) are made black."""
        signed = to_signed(images)
        if known is not None:
            signed = torch.where(known > 0, signed, -1.0)
        return self.quant_conv(self.encoder(signed))

    def decode_signed(self, features: Tensor, images: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Quantised features [B, h, w, code_dim] -> images in about [-1, 1]; the known pixels of `images` are the reference."""
        x = self.post_quant_conv(features).permute(0, 3, 1, 2)
        if images is None or known is None:
            return self.decoder(x)
        return self.decoder(x, torch.where(known > 0, to_signed(images), -1.0), known)

    @torch.no_grad()
    def standardize(self, features: Tensor) -> None:
        """Rescale the last layer so that these of its outputs [N, code_dim] have mean 0 and deviation 1, as codes that start
        from N(0, 1) have: untrained features differ by hundredths, and all patches would fall to a few codes."""
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
        self.quant_conv.weight.div_(deviation[:, None])
        self.quant_conv.bias.copy_((self.quant_conv.bias - mean) / deviation)

    # --- tokens ---

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Tokens [B, h w] of complete images."""
        check_images(images, self.in_channels, self.patch)
        return [self.quantize.encode(self.features(images)).flatten(1)]

    @torch.no_grad()
    def encode_masked(self, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their types, both [B, h, w]; codes of patches that the hole touches are those of the second part."""
        check_images(images, self.in_channels, self.patch)
        types, _ = token_types(known, self.patch)
        return self.quantize.encode(self.features(images, known), types), types

    def lookup(self, tokens: Tensor) -> Tensor:
        """Code vectors [..., code_dim]."""
        return self.quantize.lookup(tokens)

    @torch.no_grad()
    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Tokens [B, h w] (or [B, h, w] of any shape) -> images in [0, 1], without a reference."""
        return to_unit(self.decode_signed(self.lookup(self._grid(indices[0]))))

    @torch.no_grad()
    def fill(self, tokens: Tensor, images: Tensor, known: Tensor, *, paste: bool = True) -> Tensor:
        """Tokens [B, h, w] and the known pixels -> images in [0, 1]. `paste` puts the known pixels back bit for bit; without
        it they have passed through the reference branch."""
        made = to_unit(self.decode_signed(self.lookup(tokens), images, known))
        return torch.where(known > 0, images, made) if paste else made

    def _grid(self, tokens: Tensor) -> Tensor:
        check_indices(tokens, self.quantize.vocab_size)
        if tokens.ndim == 3:
            return tokens
        side = self.image_size // self.patch
        if tokens.shape[1] != side * side:
            raise InputError(
                f"{tokens.shape[1]} tokens are not the {side} x {side} of {self.image_size} pixels: give [B, h, w]"
            )
        return tokens.unflatten(1, (side, side))


# --- released weights -------------------------------------------------------------------------------------------------

POINTWISE = ("quant_conv.", "post_quant_conv.")
"""1 x 1 convolutions there, linear layers here"""


def codec_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The codec's part of a checkpoint, without what only training needs."""
    prefix = "content_codec."
    inside = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    found = {key: value for key, value in (inside or dict(state_dict)).items() if not key.startswith("loss.")}
    if "encoder.pre_layers.0.weight" not in found:
        raise InputError("these weights hold no P-VQVAE: encoder.pre_layers.0.weight is missing")
    return found


def _architecture(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments read off released weights."""

    def blocks(pattern: str) -> int:
        return len({m[1] for key in weights if (m := re.match(pattern, key))})

    stem, head = weights["encoder.pre_layers.0.weight"], weights["decoder.post_layers.1.weight"]
    in_channels, base = head.shape[:2]
    patch = round((stem.shape[1] / in_channels) ** 0.5)
    stages = patch.bit_length() - 1
    embedding = weights.get("quantize.embedding", weights.get("quantize.embedding.weight"))
    if embedding is None:
        raise InputError("these weights hold no code book: quantize.embedding is missing")
    hidden = [value.shape[0] for key, value in weights.items() if re.match(r"\w+coder\.res_layers\.0\..*\.1\.weight", key)]
    return {
        "patch": patch,
        "in_channels": in_channels,
        "width": stem.shape[0],
        "channels": weights["encoder.post_layers.1.weight"].shape[0],
        "code_dim": embedding.shape[1],
        "encoder_blocks": blocks(r"encoder\.res_layers\.(\d+)\."),
        "decoder_blocks": blocks(r"decoder\.res_layers\.(\d+)\."),
        "decoder_width": weights["decoder.pre_layers.0.weight"].shape[0],
        "base_channels": base,
        "bottleneck": stem.shape[0] // hidden[0] if hidden else 2,
        "vocab_size": embedding.shape[0],
        "ema": 0.99 if "quantize.cluster_size" in weights else 0.0,
        "upsample": "deconv" if "decoder.up_layers.0.deconv.weight" in weights else "nearest",
        "stage_blocks": blocks(r"decoder\.up_layers\.(\d+)\.") // max(1, stages) - 1,
        "reference": any(key.startswith("decoder.encoder.") for key in weights),
    }


class _Names:
    """Official key -> ours. Layers of the decoder's stages and of its reference encoder are numbered through there."""

    FIXED = {
        r"^encoder\.pre_layers\.0\.": "encoder.stem.",
        r"^encoder\.res_layers\.(\d+)\.layers\.1\.": r"encoder.blocks.\1.fc1.",
        r"^encoder\.res_layers\.(\d+)\.layers\.3\.": r"encoder.blocks.\1.fc2.",
        r"^encoder\.post_layers\.1\.": "encoder.head.",
        r"^decoder\.pre_layers\.0\.": "decoder.stem.",
        r"^decoder\.res_layers\.(\d+)\.conv\.1\.": r"decoder.blocks.\1.conv1.",
        r"^decoder\.res_layers\.(\d+)\.conv\.3\.": r"decoder.blocks.\1.conv2.",
        r"^decoder\.post_layers\.1\.": "decoder.head.",
        r"^quantize\.embedding_avg$": "quantize.embed_avg",
        r"^quantize\.embedding$": "quantize.embedding.weight",
    }

    def __init__(self, stages: int, stage_blocks: int):
        self.stages, self.per_stage = stages, stage_blocks + 1

    def __call__(self, key: str) -> str:
        if found := re.match(r"decoder\.up_layers\.(\d+)\.(.*)", key):
            stage, place = divmod(int(found[1]), self.per_stage)
            if place == 0:
                return f"decoder.ups.{stage}.up.{found[2].split('.')[-1]}"
            return f"decoder.ups.{stage}.blocks.{place - 1}.{_convolution(found[2])}"
        if found := re.match(r"decoder\.encoder\.layers\.(\d+)\.(.*)", key):
            if found[1] == "0":
                return f"decoder.reference.stem.{found[2]}"
            stage, place = divmod(int(found[1]) - 1, self.per_stage)
            if place == self.per_stage - 1:
                return f"decoder.reference.downs.{stage}.{found[2].split('.')[-1]}"
            return f"decoder.reference.blocks.{stage}.{place}.{_convolution(found[2])}"
        for pattern, replacement in self.FIXED.items():
            if re.match(pattern, key):
                return re.sub(pattern, replacement, key)
        return key


def _convolution(name: str) -> str:
    """conv.1.weight -> conv1.weight, conv.3.weight -> conv2.weight"""
    return name.replace("conv.1.", "conv1.").replace("conv.3.", "conv2.")
