"""Tensors as pictures: grids, tiny images enlarged without blurring."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paperworks.errors import InputError

WIDTH = 900
"""pixels that a row of images is enlarged towards"""
ENLARGED = 8
"""times at most"""
GAP = 3
FRAME = (128, 128, 134, 110)
"""grey that sets images apart on a light and on a dark page; what is beyond them is transparent"""
LARGEST_PNG = 400_000
"""bytes from which a page holds a picture as lossy WebP"""


def to_pixels(images: Tensor) -> np.ndarray:
    """[N, 1 or 3, H, W] in [0, 1] -> uint8 [N, H, W, 3]. What is not finite becomes 0 or 1."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"a grid needs images [N, 1 or 3, H, W], not {list(images.shape)}")
    if not images.numel():
        raise InputError(f"a grid needs at least one image with pixels, not {list(images.shape)}")
    if not images.is_floating_point():
        raise InputError(f"a grid needs floats in [0, 1], not {images.dtype}: divide uint8 by 255")
    images = torch.nan_to_num(images.detach().float().cpu()).clamp(0, 1).expand(-1, 3, -1, -1)
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def enlargement(columns: int, width: int) -> int:
    """The whole factor by which a row of `columns` images comes closest to 900 pixels."""
    return max(1, min(ENLARGED, round(WIDTH / (columns * width))))


def grid(images: Tensor, columns: int = 10, *, scale: int | None = None, cell: tuple[int, int] | None = None) -> Image.Image:
    """One picture (RGBA) of all images, row by row, each within a thin frame.

    `scale`: whole enlargement, chosen to fill about 900 pixels when None; `cell`: (width, height) of each image instead, for
    pictures that must align.
    """
    pixels = to_pixels(images)
    count, height, width = pixels.shape[:3]
    columns = max(1, min(columns, count))
    if cell is None:
        scale = scale or enlargement(columns, width)
        cell = (width * scale, height * scale)
    across, down = cell[0] + GAP, cell[1] + GAP
    canvas = Image.new("RGBA", (columns * across + GAP, -(-count // columns) * down + GAP), (0, 0, 0, 0))
    for number, image in enumerate(pixels):
        line, column = divmod(number, columns)
        left, top = column * across, line * down
        canvas.paste(FRAME, (left, top, left + across + GAP, top + down + GAP))
        canvas.paste(Image.fromarray(image).resize(cell, Image.Resampling.NEAREST), (left + GAP, top + GAP))
    return canvas


def single(image: Tensor, scale: int) -> Image.Image:
    """One image [1 or 3, H, W] without a frame."""
    pixels = to_pixels(image[None])[0]
    return Image.fromarray(pixels).resize((pixels.shape[1] * scale, pixels.shape[0] * scale), Image.Resampling.NEAREST)


def save_grid(images: Tensor, path: str | Path, columns: int = 10) -> Path:
    """A grid of images [N, 1 or 3, H, W] in [0, 1] as a PNG or JPEG file; folders are made."""
    path = Path(path)
    picture = grid(images, columns)
    if path.suffix.lower() in (".jpg", ".jpeg"):  # has no transparency
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture.save(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; use .png or .jpg") from None
    return path


def data_uri(picture: Image.Image) -> str:
    """A picture inside the page itself: PNG while small, WebP for large photographs."""
    buffer, kind = io.BytesIO(), "png"
    picture.save(buffer, "PNG", optimize=True)
    if buffer.tell() > LARGEST_PNG:
        buffer, kind = io.BytesIO(), "webp"
        picture.save(buffer, "WEBP", quality=92)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
