"""Encoded bytes -> uint8 pixels: every kind of file that people have becomes upright grey, RGB or RGBA."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .avif .jp2 .ppm .pgm .pbm .pnm .tga".split()  # noqa: SIM905
)
SMALL = 16 << 10
"""bytes of a JPEG up to which PIL spends more time on its header than on its pixels"""


class Unreadable(Exception):
    """One image cannot be used; the message says why. It is skipped and listed, or stops a strict run."""


def decode(data: bytes, channels: int = 3) -> Tensor:
    """uint8 [channels, H, W] of an encoded image (the first frame of an animation). Raises Unreadable."""
    if not data:
        raise Unreadable("empty file")
    if channels == 3 and len(data) < SMALL and (pixels := _small_jpeg(data)) is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return from_pil(image, channels)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise Unreadable(f"damaged image ({error or type(error).__name__})") from None


def _small_jpeg(data: bytes) -> Tensor | None:
    """torchvision's decoder gives the same pixels as PIL four times as fast for thumbnails; None for anything but a plain,
    complete JFIF file without EXIF, and for whatever it refuses: PIL has the last word."""
    if not (data.startswith(b"\xff\xd8\xff\xe0") and data.endswith(b"\xff\xd9")) or b"Exif" in data[:4096]:
        return None
    try:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB).contiguous()
    except RuntimeError:
        return None


def from_pil(image: Image.Image, channels: int = 3) -> Tensor:
    """uint8 [channels, H, W] (1 grey, 3 RGB, 4 RGBA), turned upright by its EXIF entry; transparency is laid on white unless
    four channels are asked for; 16-bit grey keeps its upper byte; floating-point grey in [0, 1] or [0, 255] is scaled."""
    with contextlib.suppress(Exception):  # a broken EXIF block does not make the pixels useless
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    if image.has_transparency_data and channels != 4:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    if image.mode != MODES[channels]:
        image = image.convert(MODES[channels])
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def from_any(value: Any, channels: int = 3) -> Tensor:
    """uint8 [channels, H, W] of what data set objects hold: a PIL image, encoded bytes, a numpy array (HW or HWC), or a
    tensor (HW or CHW, uint8 or floats in [0, 1]). Raises Unreadable."""
    if isinstance(value, Image.Image):
        return from_pil(value, channels)
    if isinstance(value, bytes | bytearray):
        return decode(bytes(value), channels)
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
        value = value.permute(2, 0, 1) if value.ndim == 3 else value
    if not isinstance(value, Tensor) or value.ndim not in (2, 3):
        raise Unreadable(f"{type(value).__name__} is not an image")
    pixels = torch.as_tensor(value).as_subclass(Tensor)
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels
    if pixels.is_floating_point():
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise Unreadable("floating-point image with values outside [0, 1] (leave Normalize out of its transform)")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8 or pixels.shape[0] not in MODES:
        raise Unreadable(f"image of {pixels.dtype} with {pixels.shape[0]} channels")
    return with_channels(pixels, channels).contiguous()


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """uint8 [..., C, H, W] with another number of channels: grey is repeated, colours become their luma (ITU-R 601), alpha is
    laid on white or is opaque."""
    have = pixels.shape[-3]
    if have == channels:
        return pixels
    if have == 4:
        colour, alpha = pixels[..., :3, :, :].float(), pixels[..., 3:, :, :].float() / 255
        return with_channels((colour * alpha + 255 * (1 - alpha)).round().to(torch.uint8), channels)
    if channels == 1:
        luma = pixels.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32).view(3, 1, 1)
        return (pixels * luma).sum(-3, keepdim=True).round().to(torch.uint8)
    pixels = pixels.expand(*pixels.shape[:-3], 3, -1, -1)
    return pixels if channels == 3 else torch.cat([pixels, torch.full_like(pixels[..., :1, :, :], 255)], dim=-3)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 [H, W]."""
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 255:  # also when not finite
            raise Unreadable("floating-point image with values outside [0, 255]")
        return (values * (255 if high <= 1 else 1)).round().astype(np.uint8)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise Unreadable("32-bit image with values outside 16 bits")
    return (values >> 8).astype(np.uint8)
