"""Losses that look at more than single pixels: features of a frozen network, or a pyramid that needs no network at all."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureMaps(Protocol):
    """A frozen network that gives intermediate maps of images in [0, 1]."""

    def feature_maps(self, images: Tensor) -> list[Tensor]: ...


class FeaturePerceptual(nn.Module):
    """Distance between channel-normalised feature maps, summed over layers: LPIPS (1801.03924, eq. 1) with equal weights.

    Images in [0, 1], any size the network takes; returns the mean over the batch.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeaturePerceptual:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        network: FeatureMaps = self.network  # type: ignore[assignment]
        with torch.no_grad():
            wanted = network.feature_maps(real)
        distance = made.new_zeros(())
        for ours, theirs in zip(network.feature_maps(made), wanted):
            distance = distance + (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(1).mean()
        return distance


class PyramidLoss(nn.Module):
    """L1 between the bands of two Laplacian pyramids, each band weighted by its scale (as in 1707.05776, section 3.1).

    Works offline and on images too small for a classifier's features: strokes and edges weigh as much as areas.
    """

    def __init__(self, levels: int = 3):
        super().__init__()
        self.levels = levels

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        difference = made - real  # the pyramid is linear, so one of the difference will do
        loss = made.new_zeros(())
        for level in range(self.levels):
            if min(difference.shape[-2:]) < 4:
                break
            smaller = F.avg_pool2d(difference, 2)
            band = difference - F.interpolate(smaller, size=difference.shape[-2:], mode="bilinear", align_corners=False)
            loss = loss + band.abs().mean() * 2**-level
            difference = smaller
        return loss + difference.abs().mean()


class LPIPSLoss(nn.Module):
    """LPIPS with its learned weights, from torchmetrics (the network's weights are fetched on first use)."""

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        from paperworks.errors import InputError

        try:
            self.metric = LearnedPerceptualImagePatchSimilarity("vgg", normalize=True)
        except Exception as error:
            raise InputError(f"LPIPS weights could not be fetched ({error}): use perceptual='lite0' or 'pyramid'") from None

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        return self.metric(made.clamp(0, 1), real)
