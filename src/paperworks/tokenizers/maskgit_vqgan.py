"""The VQGAN of MaskGIT (2202.04200, section 3) in the form that TiTok takes its proxy codes and its pixel decoder from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.autoencoder import Decoder, Encoder, maskgit_names, to_signed
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.tokenizers.protocol import TokenizerSpec, check_images, fingerprint
from paperworks.tokenizers.quantizers import Quantized, VectorQuantizer, with_hit_average


class MaskGITVQGAN(nn.Module, Pretrained):
    """Images [B, in_channels, image_size, image_size] in [0, 1] <-> a square map of tokens, side image_size / d.

    The network itself works in [0, 1]. Sizes are of the autoencoder (see its docs); codes have z_channels numbers.
    """

    def __init__(
        self,
        image_size: int = 256,
        vocab_size: int = 1024,
        z_channels: int = 256,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        groups: int = 32,
        patch: int = 1,
        in_channels: int = 3,
    ):
        super().__init__()
        self.image_size, self.in_channels = image_size, in_channels
        self.downsampling = patch * 2 ** (len(ch_mult) - 1)
        if image_size % self.downsampling:
            raise InputError(f"image_size={image_size} does not divide by {self.downsampling}, which the encoder shrinks it by")
        sizes = autoencoder_sizes(z_channels, ch, ch_mult, num_res_blocks, groups, patch, in_channels)
        self.encoder = Encoder(**sizes)
        self.decoder = Decoder(**sizes)
        # its loss weighs the encoder's side with 1 and the codes' side with beta, the other way round than usual
        self.quantize = VectorQuantizer(vocab_size, z_channels, beta=1.0, codebook_weight=0.25)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """`maskgit-vqgan-imagenet-f16-256.bin` and its like, with the names of 1d-tokenizer's configuration."""
        model = cls(
            official.get("resolution", 256),
            official.get("num_embeddings", 1024),
            official.get("z_channels", 256),
            ch=official.get("hidden_channels", 128),
            ch_mult=official.get("channel_mult", (1, 1, 2, 2, 4)),
            num_res_blocks=official.get("num_res_blocks", 2),
            in_channels=official.get("num_channels", 3),
        )
        return load_official(model, with_hit_average(state_dict, model), rename=maskgit_names)

    @property
    def side(self) -> int:
        """Of the token map."""
        return self.image_size // self.downsampling

    @property
    def vocab_size(self) -> int:
        return self.quantize.vocab_size

    @property
    def spec(self) -> TokenizerSpec:
        parts = ("quantize.embedding", "decoder.")
        marks = [(key, value) for key, value in self.state_dict().items() if key.startswith(parts)]
        shapes, size = ((self.side, self.side),), self.image_size
        return TokenizerSpec(
            "maskgit-vqgan", size, self.in_channels, shapes, self.vocab_size, self.quantize.channels, fingerprint(marks)
        )

    def features(self, images: Tensor) -> Tensor:
        """What is quantised: [B, h, w, z_channels]."""
        check_images(images, self.in_channels, self.downsampling)
        return self.encoder(images).permute(0, 2, 3, 1)

    def decode_raw(self, features: Tensor) -> Tensor:
        """Features [B, h, w, z_channels] to about [0, 1], unbounded."""
        return self.decoder(features.permute(0, 3, 1, 2).to(self.decoder.conv_in.weight.dtype))

    def decode_signed(self, features: Tensor) -> Tensor:
        """About [-1, 1], unbounded; for training."""
        return to_signed(self.decode_raw(features))

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        return [self.quantize.encode(self.features(images)).flatten(1)]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Images in [0, 1] of tokens [B, n]."""
        side = round(indices[0].shape[1] ** 0.5)
        if side * side != indices[0].shape[1]:
            raise InputError(f"{indices[0].shape[1]} tokens are no square map; this tokenizer has {self.side**2}")
        return self.decode_raw(self.quantize.lookup(indices[0]).unflatten(1, (side, side))).clamp(0, 1)

    def decode_soft(self, weights: Sequence[Tensor]) -> Tensor:
        """Images of weights [B, n, V] over the codes."""
        return self.decode_raw(self.quantize.soft_lookup(weights[0]).unflatten(1, (self.side, self.side))).clamp(0, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (about [0, 1]) and the quantiser's record, for training."""
        quantized = self.quantize(self.features(images))
        return self.decode_raw(quantized.features), quantized


def autoencoder_sizes(
    z_channels: int,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    groups: int = 32,
    patch: int = 1,
    in_channels: int = 3,
) -> dict[str, Any]:
    """Arguments of the autoencoder's two halves in this style."""
    return {
        "z_channels": z_channels,
        "ch": ch,
        "ch_mult": tuple(ch_mult),
        "num_res_blocks": num_res_blocks,
        "groups": groups,
        "patch": patch,
        "in_channels": in_channels,
        "middle_attention": False,
        "style": "maskgit",
    }
