"""What every tokenizer is to a generator: token maps of known sizes, codes of a known meaning, images in [0, 1]."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from paperworks.errors import InputError
from paperworks.layers.vector_quantization import CodeUsage


@dataclass(frozen=True)
class TokenizerSpec:
    """Everything a generator depends on. Two tokenizers with equal `id` give the same meaning to the same tokens."""

    kind: str
    """the class's name"""
    image_size: int
    image_channels: int
    shapes: tuple[tuple[int, ...], ...]
    """of each token map, in the order they are generated: ((1, 1), (2, 2), ...) or ((32,),) for a sequence"""
    vocab_size: int
    code_channels: int
    codes: str
    """fingerprint of the code book and whatever else turns tokens into features"""

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def id(self) -> str:
        sizes = ".".join("x".join(str(side) for side in dict.fromkeys(shape)) for shape in self.shapes)
        return f"{self.kind}-{self.image_size}px-{sizes}-{self.vocab_size}x{self.code_channels}-{self.codes}"

    def check(self, wanted: str, generator: str = "the generator") -> None:
        """Raises InputError unless `wanted`, the id that a generator was trained with, is this one ("" fits all)."""
        if wanted and wanted != self.id:
            raise InputError(
                f"{generator} was trained on tokens of {wanted}, this tokenizer is {self.id}: load the one it knows"
            )


@runtime_checkable
class Tokenizer(Protocol):
    """Images [B, image_channels, image_size, image_size] in [0, 1] <-> tokens, int64 [B, n] per token map.

    Ranges that a network uses inside ([-1, 1], 0..255, ImageNet statistics) never show.
    """

    @property
    def spec(self) -> TokenizerSpec: ...

    def encode(self, images: Tensor) -> list[Tensor]: ...

    def decode(self, indices: Sequence[Tensor]) -> Tensor: ...


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, images: Tensor, batch_size: int = 200) -> tuple[Tensor, CodeUsage]:
    """What is left of images [N, C, H, W] in [0, 1] after tokenizing, and which codes all of them together used."""
    usage, made = CodeUsage(tokenizer.spec.vocab_size), []
    for batch in images.split(batch_size):
        indices = tokenizer.encode(batch)
        for found in indices:
            usage.update(found)
        made.append(tokenizer.decode(indices))
    return torch.cat(made).clone(), usage


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Eight hexadecimal digits of named tensors; the same after saving, and after casting the tokenizer to bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:8]


def check_images(images: Any, channels: int, divisor: int = 1) -> None:
    """Raises InputError unless `images` are float [B, channels, H, W] in [0, 1] with sides that divide by `divisor`."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        what = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be floats [B, {channels}, H, W] in [0, 1], not {what}")
    if images.shape[1] != channels:
        raise InputError(f"images have {images.shape[1]} channels, the tokenizer was built for {channels}")
    if images.shape[-1] % divisor or images.shape[-2] % divisor:
        raise InputError(f"images of {tuple(images.shape[-2:])} pixels do not divide by {divisor}: crop or resize them")
    if len(images) and (float(images.amin()) < -0.01 or float(images.amax()) > 1.01):
        raise InputError(
            f"images must lie in [0, 1], these reach from {float(images.amin()):.3g} to {float(images.amax()):.3g}: "
            "divide bytes by 255, map [-1, 1] with (x + 1) / 2"
        )
