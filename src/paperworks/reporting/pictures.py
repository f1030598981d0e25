"""Tensors as pictures: grids with labels, tiny images enlarged without blurring."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from paperworks.errors import InputError

WIDTH = 900
"""pixels that a grid is enlarged towards"""
GAP = 4
PAPER = (255, 255, 255)
INK = (60, 60, 66)


def to_pixels(images: Tensor) -> np.ndarray:
    """[N, 1 or 3, H, W] in [0, 1] -> uint8 [N, H, W, 3]."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"a grid needs images [N, 1 or 3, H, W], not {list(images.shape)}")
    if not len(images):
        raise InputError("a grid needs at least one image")
    images = torch.nan_to_num(images.detach().float().cpu()).clamp(0, 1).expand(-1, 3, -1, -1)
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def grid(
    images: Tensor,
    columns: int = 10,
    *,
    labels: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """One picture of all images. `labels`: a word per column above it; `rows`: a word per row at its left;
    `scale`: whole-number enlargement (chosen to fill about 900 pixels when None)."""
    pixels = to_pixels(images)
    count, height, width = pixels.shape[:3]
    columns = max(1, min(columns, count))
    lines = -(-count // columns)
    if scale is None:
        scale = max(1, min(8, WIDTH // (columns * width)))
    cell_w, cell_h = width * scale + GAP, height * scale + GAP
    font = ImageFont.load_default(size=15)
    left = max((int(font.getlength(word)) + 12 for word in rows), default=0) if rows else 0
    top = 24 if labels else 0
    canvas = Image.new("RGB", (left + columns * cell_w + GAP, top + lines * cell_h + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, image in enumerate(pixels):
        line, column = divmod(number, columns)
        tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(tile, (left + GAP + column * cell_w, top + GAP + line * cell_h))
    for column, word in enumerate((labels or [])[:columns]):
        draw.text((left + GAP + (column + 0.5) * cell_w, 4), _fitting(str(word), cell_w, font), INK, font, anchor="ma")
    for line, word in enumerate((rows or [])[:lines]):
        draw.text((4, top + GAP + (line + 0.5) * cell_h), str(word), INK, font, anchor="lm")
    return canvas


def save_grid(images: Tensor, path: str | Path, columns: int = 10) -> Path:
    """A grid as a PNG or JPEG file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        grid(images, columns).save(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; use .png or .jpg") from None
    return path


def data_uri(picture: Image.Image) -> str:
    """A picture inside the page itself: PNG while small, JPEG for large photographs."""
    buffer, kind = io.BytesIO(), "png"
    picture.save(buffer, "PNG", optimize=True)
    if buffer.tell() > 400_000:
        buffer, kind = io.BytesIO(), "jpeg"
        picture.save(buffer, "JPEG", quality=90)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def _fitting(word: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The word, shortened to fit above its column."""
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(word + "…") > width:
        word = word[:-1]
    return word + "…" if word else ""
