"""Holes for inpainting: free-form strokes, boxes and halves of bounded size, each a pure function of (seed, epoch, index).

A hole is True where pixels are to be made anew, everywhere in this library. Lengths are shares of the image's shorter side,
so that the same configuration gives the same kind of holes at any size.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from paperworks.data.seeds import mix
from paperworks.data.source import ImageSource
from paperworks.errors import InputError

TRIES = 60
"""drawings thrown away for their size before a plain band of the wanted size is taken"""

Drawn = Literal["hole", "known"]


@dataclass(frozen=True)
class HoleConfig:
    """Which holes are drawn, and how large. The defaults are PUT's strokes (2205.05076) at its 256 pixels."""

    share: tuple[float, float] = (0.2, 0.6)
    """smallest and largest part of the image that a hole may take"""
    strokes: float = 1.0
    """how often strokes are drawn, relative to boxes and halves"""
    boxes: float = 0.0
    halves: float = 0.0
    drawn: Drawn = "known"
    """what strokes are: what stays known (as PUT draws them) or the hole"""
    vertices: tuple[int, int] = (5, 10)
    length: float = 100 / 256
    """longest segment of a stroke"""
    width: tuple[float, float] = (10 / 256, 30 / 256)
    smallest: float = 64 / 256**2
    """holes of a smaller area than this part of the image are closed"""

    def check(self) -> None:
        low, high = self.share
        if not 0 <= low < high <= 1:
            raise InputError(f"share={self.share} must be two growing parts of the image between 0 and 1")
        frequencies = (self.strokes, self.boxes, self.halves)
        if min(frequencies) < 0 or not sum(frequencies):
            raise InputError("strokes, boxes and halves say how often each is drawn: none may be negative, one must not be 0")
        if not 1 <= self.vertices[0] <= self.vertices[1] or not 0 < self.width[0] <= self.width[1] or self.length <= 0:
            raise InputError(f"vertices={self.vertices}, width={self.width} and length={self.length} draw no strokes")
        if self.drawn not in ("hole", "known"):
            raise InputError(f"drawn={self.drawn!r}: strokes are the 'hole' or what stays 'known'")


def draw_hole(height: int, width: int, config: HoleConfig, rng: np.random.Generator) -> np.ndarray:
    """One hole, bool [height, width], whose share lies within `config.share`."""
    config.check()
    low, high = config.share
    kinds = np.array([config.strokes, config.boxes, config.halves], dtype=float)
    kind = rng.choice(3, p=kinds / kinds.sum())
    for _ in range(TRIES):
        wanted = rng.uniform(low, high)
        if kind == 0:
            known = config.drawn == "known"
            hole = draw_strokes(height, width, 1 - wanted if known else wanted, config, rng) ^ known
        else:
            hole = _box(height, width, wanted, rng) if kind == 1 else _half(height, width, wanted, rng)
        hole = without_small(hole, config.smallest * height * width)
        if low <= hole.mean() <= high:
            return hole
    return _half(height, width, (low + high) / 2, rng)


def draw_strokes(height: int, width: int, share: float, config: HoleConfig, rng: np.random.Generator) -> np.ndarray:
    """Random polylines with round joints until they cover `share` of the image, bool [height, width]."""
    side, area = min(height, width), height * width
    thin, thick = (side * width for width in config.width)
    picture = Image.new("L", (width, height))
    pen = ImageDraw.Draw(picture)
    covered = np.zeros((height, width), dtype=bool)
    while np.count_nonzero(covered) < share * area:
        x, y, *numbers = rng.random(2 + 3 * int(rng.integers(config.vertices[0], config.vertices[1] + 1))).tolist()
        x, y = x * width, y * height
        for wide, angle, reach in zip(numbers[::3], numbers[1::3], numbers[2::3]):
            stroke, far = max(1.0, thin + wide * (thick - thin)), side * config.length * reach
            to_x = min(max(x + far * math.sin(math.tau * angle), 0.0), width - 1.0)
            to_y = min(max(y + far * math.cos(math.tau * angle), 0.0), height - 1.0)
            pen.line((x, y, to_x, to_y), fill=1, width=round(stroke))
            radius = stroke / 2
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
            x, y = to_x, to_y
        covered = np.asarray(picture) > 0
    return covered


def without_small(hole: np.ndarray, area: float) -> np.ndarray:
    """The hole without its connected parts of fewer than `area` pixels."""
    if area <= 1:
        return hole
    parts, count = ndimage.label(hole)
    if not count:
        return hole
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= area)[parts]


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A box anywhere, its sides' shares of the image's sides at most 1:2 apart where that fits."""
    slant = rng.uniform(max(share, math.sqrt(share / 2)), min(1.0, math.sqrt(share * 2)))
    rows = min(height, max(1, round(height * slant)))
    columns = min(width, max(1, round(height * width * share / rows)))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    hole = np.zeros((height, width), dtype=bool)
    hole[top : top + rows, left : left + columns] = True
    return hole


def _half(height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A band along one of the four sides."""
    side = rng.integers(4)
    hole = np.zeros((height, width), dtype=bool)
    if side < 2:
        hole[: round(height * share)] = True
    else:
        hole[:, : round(width * share)] = True
    return np.ascontiguousarray(hole[::-1, ::-1]) if side % 2 else hole


def draw_holes(
    indices: Sequence[int], size: tuple[int, int], config: HoleConfig, *, seed: int, epoch: int = 0, name: str = "hole"
) -> Tensor:
    """bool [len(indices), height, width]; hole i depends on (seed, epoch, indices[i], name) alone, not on the batch."""
    salt = zlib.crc32(name.encode())
    drawn = [draw_hole(*size, config, np.random.default_rng(mix(seed, epoch, index, salt))) for index in indices]
    return torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, *size, dtype=torch.bool)


def read_hole(mask: Tensor, name: str = "the mask") -> Tensor:
    """A user's mask [1, H, W] or [H, W], uint8 or in [0, 1], white where pixels are to be made anew -> bool [H, W].

    InputError for anything between black and white over more than 5 % of it (a photo, or a blurred mask): a few grey pixels
    from a lossy file are rounded.
    """
    values = mask.reshape(mask.shape[-2:]).float() / (255 if mask.dtype == torch.uint8 else 1)
    soft = float(((values > 0.1) & (values < 0.9)).float().mean())
    if soft > 0.05:
        raise InputError(f"{name} has {soft:.0%} grey pixels: it must be black (keep) and white (make anew) only")
    return values > 0.5


class WithHoles(Dataset[dict[str, Any]]):
    """Samples of `dataset` with holes beside their images: bool [H, W] under each of `names`.

    provided: masks drawn elsewhere (white = hole), taken for `provided_share` of the samples, resized without smoothing.
    """

    def __init__(
        self,
        dataset: Any,
        size: int,
        config: HoleConfig,
        *,
        seed: int,
        names: Sequence[str] = ("hole",),
        provided: ImageSource | None = None,
        provided_share: float = 0.8,
    ):
        config.check()
        self.dataset, self.size, self.config, self.seed = dataset, size, config, seed
        self.names, self.provided, self.provided_share = tuple(names), provided, provided_share
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index %= len(self)
        return dict(self.dataset[index]) | {name: self._holes(name, [index])[0] for name in self.names}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor] | None:
        found = self.dataset.batch(indices) if hasattr(self.dataset, "batch") else None
        indices = [int(index) % len(self) for index in indices]
        return None if found is None else found | {name: self._holes(name, indices) for name in self.names}

    def _holes(self, name: str, indices: Sequence[int]) -> Tensor:
        size = (self.size, self.size)
        if self.provided is None:
            return draw_holes(indices, size, self.config, seed=self.seed, epoch=self.epoch, name=name)
        salt, made = zlib.crc32(name.encode()), []
        for index in indices:
            rng = np.random.default_rng(mix(self.seed, self.epoch, index, salt))
            if rng.uniform() < self.provided_share:
                made.append(self._provided(rng))
            else:
                made.append(torch.from_numpy(draw_hole(*size, self.config, rng)))
        return torch.stack(made)

    def _provided(self, rng: np.random.Generator) -> Tensor:
        """One of the given masks, of a share within the bounds if a few tries find one."""
        assert self.provided is not None
        low, high = self.config.share
        for _ in range(TRIES):
            mask = self.provided.read(int(rng.integers(len(self.provided))))[:1].float()[None] / 255
            hole = torch.nn.functional.interpolate(mask, size=(self.size, self.size), mode="nearest")[0, 0] > 0.5
            if low <= float(hole.float().mean()) <= high:
                break
        return hole
