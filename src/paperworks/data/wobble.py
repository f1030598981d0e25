"""Small images turned, stretched, slanted, moved, brightened or darkened a little, a whole batch at once.

Every result is one of the image's own values sent through a curve, so the transforms also suit networks for which a byte is a
symbol: black stays black, and no mixture of neighbours turns up that an image as it lies would not hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.transforms import Drawn, eval_shift
from paperworks.errors import InputError


class Wobble(Drawn):
    """The centre square of `size` (padded with black where the image is smaller), seen through a random affine map: turned by
    up to `degrees`, each side longer or shorter by up to the share `stretch`, slanted by up to `slant`, moved by up to `move`
    pixels along each axis, mirrored half of the time when `flip`. The nearest pixel is taken, black beyond the image."""

    def __init__(
        self,
        size: int,
        *,
        degrees: float = 12.0,
        stretch: float = 0.12,
        slant: float = 0.12,
        move: float = 1.0,
        flip: bool = False,
    ):
        if not (0 <= degrees <= 180 and 0 <= stretch < 1 and slant >= 0 and move >= 0):
            raise InputError(f"degrees={degrees}, stretch={stretch}, slant={slant}, move={move} make no wobble")
        self.centre = eval_shift(size)
        self.limits = torch.tensor([math.radians(degrees), stretch, stretch, slant, 2 * move / size, 2 * move / size])
        self.flip = flip
        self.draws = 6 + flip

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        squares = self.centre.apply(images, uniforms[:, :0])
        turn, wider, higher, slant, right, down = ((2 * uniforms[:, :6].float() - 1) * self.limits).unbind(1)
        across, along = 1 / (1 + wider), 1 / (1 + higher)
        if self.flip:
            across = torch.where(uniforms[:, 6] < 0.5, -across, across)
        # from a place in the result to a place in the image, both from -1 to 1: move, turn, slant, stretch
        cos, sin = turn.cos(), turn.sin()
        first = torch.stack((across * (cos - slant * sin), across * (sin + slant * cos)), 1)
        second = torch.stack((-along * sin, along * cos), 1)
        linear = torch.stack((first, second), 1)
        moved = linear @ torch.stack((-right, -down), 1)[:, :, None]
        grid = F.affine_grid(torch.cat((linear, moved), 2), list(squares.shape), align_corners=False)
        return F.grid_sample(squares.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


class Tone(Drawn):
    """All values of an image through one curve v -> v^g with g from 1 / `most` to `most`, even on a logarithmic scale; black
    and white stay. Without it a network learns training images by the exact greys that they happen to hold."""

    draws = 1

    def __init__(self, most: float = 1.6):
        if most < 1:
            raise InputError(f"most={most}: the largest exponent is at least 1")
        self.most = most

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        exponents = self.most ** (2 * uniforms[:, :1].float() - 1)
        curves = ((torch.arange(256) / 255) ** exponents * 255).round().to(torch.uint8)  # [B, 256]
        return curves.gather(1, images.flatten(1).long()).view_as(images)


class Chain(Drawn):
    """One after the other, each with draws of its own."""

    def __init__(self, *steps: Drawn):
        self.steps = steps
        self.draws = sum(step.draws for step in steps)

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        for step in self.steps:
            images, uniforms = step.apply(images, uniforms[:, : step.draws]), uniforms[:, step.draws :]
        return images
