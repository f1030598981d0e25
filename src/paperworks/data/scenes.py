"""Made-up scenes: small pictures (digits) pasted on crops of photos, with their boxes and a class for every pixel.

Where everything lies is known exactly, so detection and segmentation can be learned and measured without a labelled set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from paperworks.data.listing import Split
from paperworks.data.opening import open_images
from paperworks.data.seeds import mix
from paperworks.data.source import ImageSource
from paperworks.errors import InputError

INK = 0.3
"""coverage from which a pixel belongs to the pasted picture"""
TRIES = 40
"""places thrown away because they touch what is there already"""


@dataclass(frozen=True)
class SceneConfig:
    size: int = 64
    """pixels of the scene's side"""
    sides: tuple[tuple[int, int], ...] = ((10, 14), (24, 30))
    """smallest and largest side of a pasted picture before it is cut to its ink, one range per pasted picture"""
    contrast: float = 0.35
    """least difference between a picture's brightness and that of what it is pasted on"""
    told_apart: bool = True
    """labels are the pictures' classes; otherwise there is one class, that of whatever was pasted"""

    def check(self) -> None:
        if not self.sides or any(not 4 <= low <= high <= self.size for low, high in self.sides):
            raise InputError(f"sides={self.sides}: ranges of 4 to {self.size} pixels, as the scene has {self.size}")
        if not 0 <= self.contrast <= 0.5:
            raise InputError(f"contrast={self.contrast} is 0 to 0.5: brightness is 0 to 1")


class Scenes(Dataset[dict[str, Any]]):
    """`count` scenes, each a pure function of (seed, its number).

    pictures: labelled images of bright things on black (digits). photos: what scenes are cut from.
    A sample: `image` uint8 [3, S, S]; `boxes` float [K, 4] as x1, y1, x2, y2 in pixels, around the ink; `labels` int64 [K];
    `pixel` int64 [S, S], 0 where nothing was pasted and a picture's class plus 1 where its ink is. K is the number of `sides`.
    """

    def __init__(self, pictures: ImageSource, photos: Sequence[Tensor], count: int, config: SceneConfig, *, seed: int):
        config.check()
        if not len(pictures) or pictures.classes is None:
            raise InputError("scenes are made of labelled pictures: open them with labels='required'")
        if not photos or any(min(photo.shape[-2:]) < config.size for photo in photos):
            raise InputError(f"scenes are cut from photos of at least {config.size} pixels, and there has to be one")
        if count < 1:
            raise InputError(f"{count} scenes: make at least one")
        self.pictures, self.photos, self.count, self.config, self.seed = pictures, photos, count, config, seed
        self.classes = list(pictures.classes) if config.told_apart else ["something"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        rng = np.random.default_rng(mix(self.seed, index))
        size = self.config.size
        scene = self._ground(rng)
        classes = torch.zeros(size, size, dtype=torch.int64)
        taken = torch.zeros(size, size, dtype=torch.bool)
        boxes, labels = [], []
        for low, high in self.config.sides:
            sample = self.pictures[int(rng.integers(len(self.pictures)))]
            ink = _ink(sample["image"].as_subclass(Tensor), int(rng.integers(low, high + 1)))
            if ink is None:
                raise InputError(f"{sample['key']} is black: scenes are made of bright pictures on black")
            top, left = _place(taken, ink.shape, rng)
            bottom, right = top + ink.shape[0], left + ink.shape[1]
            under = scene[:, top:bottom, left:right]
            scene[:, top:bottom, left:right] = under + ink * (self._colour(under, ink, rng) - under)
            label = int(sample["label"]) if self.config.told_apart else 0
            classes[top:bottom, left:right][ink > INK] = label + 1
            taken[top:bottom, left:right] = True
            boxes.append((left, top, right, bottom))
            labels.append(label)
        return {
            "image": (scene.clamp(0, 1) * 255).round().to(torch.uint8),
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "labels": torch.tensor(labels),
            "pixel": classes,
        }

    def _ground(self, rng: np.random.Generator) -> Tensor:
        """A crop of a photo, float [3, S, S] in [0, 1], shrunk by up to four first where the photo is large enough."""
        photo, size = self.photos[int(rng.integers(len(self.photos)))], self.config.size
        side = int(rng.integers(size, min(4 * size, *photo.shape[-2:]) + 1))
        top, left = (int(rng.integers(extent - side + 1)) for extent in photo.shape[-2:])
        crop = photo[:, top : top + side, left : left + side].float().div(255)
        return F.interpolate(crop[None], (size, size), mode="bilinear", antialias=True)[0]

    def _colour(self, under: Tensor, ink: Tensor, rng: np.random.Generator) -> Tensor:
        """[3, 1, 1]: any hue, as bright as the ground under the ink is not."""
        ground = float((under.mean(0) * ink).sum() / ink.sum())
        room = [(0.0, ground - self.config.contrast), (ground + self.config.contrast, 1.0)]
        low, high = max(room, key=lambda part: part[1] - part[0])
        colour = torch.tensor(rng.uniform(0.2, 1.0, 3), dtype=torch.float32)
        colour = colour / colour.mean() * rng.uniform(low, high)
        return colour.clamp(0, 1)[:, None, None]


def open_scenes(data: str, split: Split, count: int, config: SceneConfig, *, seed: int) -> Scenes:
    """Scenes of that part of `data` on that part of the embedded photos."""
    photos = open_images("photos", split=split, channels=3)
    grounds = [photos[index]["image"].as_subclass(Tensor) for index in range(len(photos))]
    return Scenes(open_images(data, split=split, labels="required", channels=1), grounds, count, config, seed=seed)


def _ink(image: Tensor, side: int) -> Tensor | None:
    """Coverage [h, w] in [0, 1] of a bright picture uint8 [C, H, W] resized to `side`, cut to its ink; None: all black."""
    grey = image.float().div(255).mean(0, keepdim=True)[None]
    grey = F.interpolate(grey, (side, side), mode="bilinear", antialias=True)[0, 0]
    if not grey.any():
        return None
    grey = grey / grey.max()
    covered = grey > INK
    rows, columns = (covered.any(axis).nonzero().squeeze(1) for axis in (1, 0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(taken: Tensor, shape: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a free place; after many tries any place."""
    top = left = 0
    for _ in range(TRIES):
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(taken.shape, shape))
        if not taken[top : top + shape[0], left : left + shape[1]].any():
            break
    return top, left
