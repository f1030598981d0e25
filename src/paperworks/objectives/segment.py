"""Semantic segmentation: a class for every pixel, from one map of a backbone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.protocol import Backbone
from paperworks.errors import InputError
from paperworks.objectives.classify import Normalise
from paperworks.training.objective import Batch, Context, Losses, Objective


class Segment(Objective):
    """Trains `body` and `decoder` on `image` with `pixel` int64 [B, H, W].

    The decoder takes the body's last map, normed where its protocol norms maps, and gives scores [B, classes, H, W].
    """

    needs = {"image": "float NCHW in [0, 1]", "pixel": "int64 [B, H, W]"}

    def __init__(self, body: Backbone, decoder: nn.Module):
        super().__init__()
        self.body, self.decoder = body, decoder
        self.normalise = Normalise()

    def scores(self, images: Tensor) -> Tensor:
        """Images in [0, 1], float [N, 3, H, W] -> [N, classes, H, W]."""
        maps = self.body.forward_intermediates(self.normalise(images), indices=1, norm=True, intermediates_only=True)
        return self.decoder(maps[-1])

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        scores, truth = self.scores(batch["image"]), batch["pixel"]
        if scores.shape[2:] != truth.shape[1:]:
            raise InputError(f"scores of {tuple(scores.shape[2:])} pixels for classes of {tuple(truth.shape[1:])} pixels")
        loss = F.cross_entropy(scores, truth)
        with torch.no_grad():
            accuracy = (scores.argmax(1) == truth).float().mean()
        return Losses.mean(loss, len(truth), accuracy=accuracy)

    def compiled_modules(self) -> list[nn.Module]:
        return [self.decoder]  # the body is called by a method of its own


def mean_iou(objective: Segment, batches: Iterable[dict[str, Any]], classes: int) -> float:
    """Percent: intersection over union of all pixels together, mean of the classes. Batches hold uint8 images."""
    from torchmetrics.classification import MulticlassJaccardIndex

    objective.eval()
    judge = MulticlassJaccardIndex(classes)
    with torch.no_grad():
        for batch in batches:
            judge.update(objective.scores(batch["image"].float().div(255)).argmax(1), batch["pixel"])
    return 100 * float(judge.compute())
