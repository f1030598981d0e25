"""A perceptual loss on what a classifier concludes: TiTok's second stage compares the logits of ConvNeXt-S (2406.07550).

As in `perceptual`: modules (made, real) -> scalar on images [B, C, H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.perceptual import Frozen

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LogitPerceptual(Frozen):
    """Mean squared difference between a frozen ImageNet classifier's logits of both images, resized to `side`.

    network: images normalised as on ImageNet -> logits; ConvNeXt-S by default, whose weights are fetched on first use (raises
    InputError when that is not possible). One-channel images are shown to it as grey ones.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module | None = None, side: int = 224):
        super().__init__(_convnext_small() if network is None else network)
        self.side = side
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.network(self._as_trained(real))
        return F.mse_loss(self.network(self._as_trained(made)).float(), wanted.float())

    def _as_trained(self, images: Tensor) -> Tensor:
        size = (self.side, self.side)
        resized = F.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return (resized.expand(-1, 3, -1, -1) - self.mean) / self.deviation


class WeightedLosses(nn.Module):
    """A sum of such losses, each times its weight."""

    def __init__(self, parts: Sequence[tuple[float, nn.Module]]):
        super().__init__()
        self.weights = [weight for weight, _ in parts]
        self.losses = nn.ModuleList(loss for _, loss in parts)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        return torch.stack([weight * loss(made, real) for weight, loss in zip(self.weights, self.losses)]).sum()


def _convnext_small() -> nn.Module:
    from torchvision import models

    try:
        return models.convnext_small(weights=models.ConvNeXt_Small_Weights.IMAGENET1K_V1)
    except Exception as error:  # no network or a broken download: each has its own exception
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"ConvNeXt-S weights could not be fetched ({reason}): use perceptual='lite0' or 'pyramid'") from None
