"""Object detection with any of torchvision's detectors: their own losses, the images of a batch at one size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.objectives.classify import Normalise
from paperworks.training.objective import Batch, Context, Losses, Objective


class Detect(Objective):
    """Trains a detector of torchvision's protocol (lists of images and of boxes -> losses by name) on batches with `image`,
    `boxes` [B, K, 4] as x1, y1, x2, y2 in pixels and `labels` int64 [B, K] from 0; K is the same for all images.

    detector: built with `classes + 1` classes when its class 0 is the background (Faster R-CNN), so labels reach it from 1;
    `background=False` for detectors without one (RetinaNet, FCOS). Its own normalisation of images should be switched off.
    """

    needs = {"image": "float NCHW in [0, 1]", "boxes": "float [B, K, 4]", "labels": "int64 [B, K]"}

    def __init__(self, detector: nn.Module, *, background: bool):
        super().__init__()
        self.detector = detector
        self.background = background
        self.normalise = Normalise()

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        images = list(self.normalise(batch["image"]))
        first = int(self.background)
        truth = [{"boxes": boxes, "labels": labels + first} for boxes, labels in zip(batch["boxes"], batch["labels"])]
        parts = self.detector(images, truth)
        total = torch.stack(list(parts.values())).sum()
        return Losses.mean(total, len(images), **parts)

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Images float [N, 3, H, W] in [0, 1] -> per image `boxes`, `labels` from 0 and `scores`."""
        if self.training:
            raise InputError("call eval() before detect(): a detector in training mode wants the boxes")
        with torch.no_grad():
            found = self.detector(list(self.normalise(images)))
        return [{**each, "labels": each["labels"] - int(self.background)} for each in found]
