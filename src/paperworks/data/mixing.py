"""mixup and cutmix on a collated batch: images are blended with, or pasted into, those of the batch in reverse order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.transforms import to_float
from paperworks.errors import InputError


def soft_labels(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """float32 [B, classes]: 1 - smoothing at the label plus smoothing / classes everywhere."""
    return F.one_hot(labels, classes).to(torch.float32) * (1 - smoothing) + smoothing / classes


@dataclass(frozen=True)
class Mix:
    """A batch transform: reads `image` [B, C, H, W] and `label` [B], adds the soft labels `target` [B, classes].

    One draw per batch: with `probability` it is mixed; if both kinds are on, `switch` is the chance of cutmix. Alphas are the
    parameters of the Beta distribution of the share that each image keeps (mixup 1710.09412, cutmix 1905.04899); 0 turns a
    kind off. The share of cutmix is that of the pixels actually kept after its box was clipped at the border.
    """

    classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """uint8 images become float in [0, 1]; the batch given is left as it was."""
        if "label" not in batch:
            raise InputError("mixing needs labels: open the images with labels='required'")
        images = to_float(batch["image"])
        target = soft_labels(batch["label"], self.classes, self.smoothing)
        chance, kind, seed = torch.rand(3, generator=generator, dtype=torch.float64, device=generator.device).tolist()
        if (self.mixup > 0 or self.cutmix > 0) and chance < self.probability:
            draws = np.random.default_rng(int(seed * 2**53))  # torch has no seeded Beta distribution
            if self.cutmix > 0 and (self.mixup <= 0 or kind < self.switch):
                images, kept = _paste(images, draws.beta(self.cutmix, self.cutmix), *draws.random(2))
            else:
                kept = draws.beta(self.mixup, self.mixup)
                images = images * kept + images.flip(0) * (1 - kept)
            target = target * kept + target.flip(0) * (1 - kept)
        return batch | {"image": images, "target": target}


def _paste(images: Tensor, kept: float, down: float, right: float) -> tuple[Tensor, float]:
    """A box of the share 1 - kept, centred anywhere, clipped at the border; and the share of pixels really kept."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - kept)
    center_y, center_x = int(down * height), int(right * width)
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(center_y - half_y, 0), min(center_y + half_y, height)
    left, right_edge = max(center_x - half_x, 0), min(center_x + half_x, width)
    mixed = images.clone()
    mixed[..., top:bottom, left:right_edge] = images.flip(0)[..., top:bottom, left:right_edge]
    return mixed, 1 - (bottom - top) * (right_edge - left) / (height * width)
