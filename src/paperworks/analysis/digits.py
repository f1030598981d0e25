"""A small classifier of digits, trained here in half a minute: tells whether made digits are digits, and which."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.data import Transformed, open_images
from paperworks.data.transforms import eval_shift
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

SIDE = 32
MEAN, DEVIATION = 0.1, 0.28
"""of digits on a black canvas of 32 x 32"""


class DigitClassifier(nn.Module):
    """Digits [N, 1 or 3, H, W] in [0, 1], white on black -> features [N, 128] and logits [N, 10].

    Channels are averaged; up to 32 x 32 the image is padded with black, larger ones are resized.
    """

    def __init__(self, network: nn.Sequential):
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DigitClassifier:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images)

    def features(self, images: Tensor) -> Tensor:
        """[N, 128]: what the last layer sees."""
        return self.network[:-1](_canvas(images))

    def logits(self, images: Tensor) -> Tensor:
        """[N, 10]."""
        return self.network(_canvas(images))


def digit_classifier(folder: str | Path, seed: int = 0) -> DigitClassifier:
    """The classifier kept in `folder`, trained on the 4,000 digits of "mnist5k" on the first call.

    An interrupted training goes on; another seed needs another folder. About 98 % of the 1,000 test digits are recognised.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network()
    objective = Classify(network, smoothing=0.05, mean=(MEAN,), std=(DEVIATION,))
    data = Transformed(open_images("mnist5k"), eval_shift(SIDE), seed=seed)
    schedule = ScheduleConfig("one_cycle", warmup=0.2)
    config = TrainConfig(
        steps=310,  # 10 epochs
        batch_size=128,
        optimizers={"main": OptimizerConfig("adamw", lr=4e-3, weight_decay=0.02, schedule=schedule)},
        precision="32",
        seed=seed,
        log_every=62,
        checkpoint_every=155,
    )
    fit(objective, data, config, Path(folder), batch_transform=_moved, label="digit classifier")
    return DigitClassifier(network)


def _network() -> nn.Sequential:
    """Three convolutions that go from 32 x 32 to 4 x 4, then 128 features and 10 classes."""

    def normed(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(
        *[nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False), *normed(16)],
        *[nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.MaxPool2d(2), *normed(32)],
        *[nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.MaxPool2d(2), *normed(64)],
        *[nn.Flatten(), nn.Linear(64 * (SIDE // 8) ** 2, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()],
        nn.Linear(128, 10),
    )


def _canvas(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise InputError(f"digits must be floats [N, 1 or 3, H, W] in [0, 1], not {images.dtype} {list(images.shape)}")
    images = images.mean(1, keepdim=True)
    height, width = images.shape[-2:]
    if max(height, width) > SIDE:
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    else:
        down, right = SIDE - height, SIDE - width
        images = F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
    return (images - MEAN) / DEVIATION


def _moved(batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Every digit turned by up to 12 degrees, sized by up to 10 % and shifted by up to 2.5 pixels."""
    images = batch["image"]
    turn, size, right, down = (2 * torch.rand(4, len(images), generator=generator) - 1).to(images.device)
    angle, scale = turn * math.radians(12), 1 + 0.1 * size
    reach = 2.5 * 2 / SIDE
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cosine, -sine, reach * right, sine, cosine, reach * down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return batch | {"image": F.grid_sample(images, grid, mode="bilinear", align_corners=False)}
