"""What inpainting with continuous features asks of a tokenizer, and a coat that gives it to any tokenizer of one grid."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.tokenizers.dual_quantizer import token_types
from paperworks.tokenizers.protocol import TokenizerSpec


@runtime_checkable
class InpaintingCodec(Protocol):
    """known is [B, 1, H, W], 1 where pixels may be looked at; grids are [B, h, w]."""

    patch: int
    image_size: int

    @property
    def spec(self) -> TokenizerSpec: ...

    def features(self, images: Tensor, known: Tensor | None = None) -> Tensor:
        """[B, h, w, C] of images with the unknown pixels black."""
        ...

    def encode(self, images: Tensor) -> list[Tensor]: ...

    def encode_masked(self, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]: ...

    def lookup(self, tokens: Tensor) -> Tensor: ...

    def fill(self, tokens: Tensor, images: Tensor, known: Tensor, *, paste: bool = True) -> Tensor: ...


class MaskedCodec(nn.Module):
    """A tokenizer of one square token map, such as ViT-VQGAN's, as an inpainting codec. Its encoder looks across patches, so
    the hole's black leaks into the features of known patches: that is the loss which PUT's encoder avoids."""

    def __init__(self, tokenizer: Any):
        super().__init__()
        spec = tokenizer.spec
        if len(spec.shapes) != 1 or len(spec.shapes[0]) != 2:
            raise InputError(
                f"inpainting needs a tokenizer with one token map of rows and columns, {spec.kind} has {spec.shapes}"
            )
        self.tokenizer, self.spec, self.image_size = tokenizer, spec, spec.image_size
        self.patch = spec.image_size // spec.shapes[0][0]

    def features(self, images: Tensor, known: Tensor | None = None) -> Tensor:
        masked = images if known is None else torch.where(known > 0, images, 0.0)
        found = self.tokenizer.features(masked)
        return found.reshape(len(found), *self.spec.shapes[0], -1)

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.tokenizer.encode(images)

    def encode_masked(self, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encode(torch.where(known > 0, images, 0.0))[0]
        return tokens.reshape(len(tokens), *self.spec.shapes[0]), token_types(known, self.patch)[0]

    def lookup(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.quantize.lookup(tokens)

    def fill(self, tokens: Tensor, images: Tensor, known: Tensor, *, paste: bool = True) -> Tensor:
        made = self.tokenizer.decode([tokens.flatten(1)])
        return torch.where(known > 0, images, made) if paste else made
