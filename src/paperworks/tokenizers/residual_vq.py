"""An image tokenizer of several levels: VQGAN's autoencoder around a residual quantiser (RQ-VAE 2203.01941)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paperworks.errors import InputError
from paperworks.tokenizers.protocol import TokenizerSpec, fingerprint
from paperworks.tokenizers.quantizers import ResidualQuantizer
from paperworks.tokenizers.vqgan_lc import VQGANLC


class ResidualVQVAE(VQGANLC):
    """Images [B, in_channels, H, W] in [0, 1] <-> `depth` token maps, coarse to fine, each of all positions.

    Fewer maps than `depth` decode to a coarser image. ema: decay of code books that follow their vectors; 0 trains them by
    gradients. The autoencoder's arguments are VQGANLC's.
    """

    def __init__(
        self,
        image_size: int = 256,
        depth: int = 8,
        vocab_size: int = 1024,
        embed_dim: int = 64,
        *,
        ema: float = 0.99,
        z_channels: int = 256,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention: bool = True,
        groups: int = 32,
        patch: int = 1,
        in_channels: int = 3,
    ):
        autoencoder: dict[str, Any] = {
            "z_channels": z_channels,
            "ch": ch,
            "ch_mult": ch_mult,
            "num_res_blocks": num_res_blocks,
            "attention": attention,
            "groups": groups,
            "patch": patch,
            "in_channels": in_channels,
        }
        super().__init__(image_size, 1, 1, embed_dim, kind="fc", **autoencoder)
        self.quantize: Any = ResidualQuantizer(depth, vocab_size, embed_dim, ema=ema, beta=0.25)

    @property
    def depth(self) -> int:
        return self.quantize.levels

    @property
    def spec(self) -> TokenizerSpec:
        side = self.image_size // self.downsampling
        marks = [(key, value) for key, value in self.quantize.state_dict().items() if key.endswith("embedding.weight")]
        shapes = ((side, side),) * self.depth
        size, channels = self.image_size, self.in_channels
        return TokenizerSpec("rvq", size, channels, shapes, self.vocab_size, self.quantize.channels, fingerprint(marks))

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """int64 [B, h w] per level, coarse to fine."""
        return [found.flatten(1) for found in self.quantize.encode(self.features(images))]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Images [B, C, H, W] in [0, 1] of the first levels' tokens, [B, h w] each."""
        return self._decode(self.quantize.lookup(indices))

    def decode_soft(self, weights: Sequence[Tensor]) -> Tensor:
        raise InputError("a residual tokenizer has no soft weights: give tokens of each level to decode")
