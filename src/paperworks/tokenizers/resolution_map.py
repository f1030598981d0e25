"""Which resolution a prefix of tokens stands for (DetailFlow 2505.21473, section 3.2), and the resizing that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError


@dataclass(frozen=True)
class ResolutionMap:
    """`tokens` for images of `image_size` pixels: the first `causal` of them one by one, then in groups of `group`."""

    image_size: int
    tokens: int
    group: int
    patch: int
    """of the decoder, whose image sides are multiples of it"""
    causal: int = 0
    """0 for one group"""
    power: float = 1.5

    def __post_init__(self) -> None:
        if self.tokens % self.group or self.first % self.group or self.first > self.tokens:
            raise InputError(
                f"{self.tokens} tokens, {self.first} of them one by one, do not divide into groups of {self.group}"
            )
        if self.image_size % self.patch:
            raise InputError(f"image_size={self.image_size} does not divide into patches of {self.patch}")

    @property
    def first(self) -> int:
        """Tokens that come one by one."""
        return self.causal or self.group

    @property
    def lengths(self) -> list[int]:
        """Prefixes that are whole: each of the first tokens, then whole groups."""
        return [*range(1, self.first + 1), *range(self.first + self.group, self.tokens + 1, self.group)]

    def check(self, length: int) -> None:
        if length not in self.lengths:
            best = min(self.lengths, key=lambda other: abs(other - length))
            raise InputError(f"a prefix of {length} tokens ends inside a group of {self.group}: take {best}")

    def resolution(self, length: int) -> int:
        """floor(S - (S - 1) ((N - t) / (N - 1))^p), within 1 to S: what t tokens can show."""
        if self.tokens == 1:
            return self.image_size
        scale = (self.image_size - 1) / (self.tokens - 1) ** self.power
        found = int(self.image_size - scale * (self.tokens - length) ** self.power)
        return max(1, min(found, self.image_size))

    def decoded(self, length: int) -> int:
        """The same rounded up to whole patches: the side of the image that t tokens are decoded to."""
        return min(-(-self.resolution(length) // self.patch) * self.patch, self.image_size)

    def best(self) -> dict[int, int]:
        """For every side that is decoded to, the prefix whose resolution comes closest (the longest of equal ones)."""
        found: dict[int, int] = {}
        for length in self.lengths:
            side = self.decoded(length)
            distance = abs(self.resolution(length) - side)
            if side not in found or distance <= abs(self.resolution(found[side]) - side):
                found[side] = length
        return found

    def round_up(self, length: int) -> int:
        """The shortest whole prefix of at least so many tokens."""
        return length if length <= self.first else -(-length // self.group) * self.group

    def corrupted(self, length: int, generator: torch.Generator) -> int | None:
        """Where an error is planted in a prefix of `length`: a single token at the start, the first of a group later on, and
        never in the last group; later tokens, also those after the prefix, are encoded again to repair it. None in a prefix of
        one token."""
        last = length if length <= self.first else length - self.group
        if length == 1:
            return None
        place = int(torch.randint(last, (), generator=generator, device=generator.device))
        return place if place < self.first else place // self.group * self.group

    def corrupted_end(self, start: int) -> int:
        """End of what is replaced from `start` on."""
        return start + (1 if start < self.first else self.group)


def resize(images: Tensor, side: int) -> Tensor:
    """Square images to another side: means of areas when shrinking, bicubic when growing (not clamped)."""
    if images.shape[-1] == side:
        return images
    if images.shape[-1] > side:
        return F.interpolate(images, size=(side, side), mode="area")
    return F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
