"""Losses that look at more than single pixels: features of a frozen network, or a pyramid that needs no network at all.

Each is a module (made, real) -> scalar on images [B, C, H, W] in [0, 1]; made ones may overshoot.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError


class FeatureMaps(Protocol):
    """A frozen network that gives intermediate maps of images in [0, 1]."""

    def feature_maps(self, images: Tensor) -> list[Tensor]: ...


class Frozen(nn.Module):
    """Holds a network that is never trained and stays in eval mode."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network: Any = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.network.eval()
        return self


class FeaturePerceptual(Frozen):
    """Distance between channel-normalised feature maps, summed over layers: LPIPS (1801.03924, eq. 1) with equal weights.

    `network` is a module with `feature_maps` (see FeatureMaps); it is frozen here.
    """

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.network.feature_maps(real)
        distance = made.new_zeros(())
        for ours, theirs in zip(self.network.feature_maps(made), wanted):
            ours, theirs = F.normalize(ours.float(), dim=1), F.normalize(theirs.float(), dim=1)
            distance = distance + (ours - theirs).square().sum(1).mean()
        return distance


class LPIPSLoss(Frozen):
    """LPIPS with its learned weights, from torchmetrics. The VGG weights are fetched on first use; raises InputError when
    that is not possible. One-channel images are shown to it as grey ones."""

    def __init__(self, network: nn.Module | None = None):
        super().__init__(_lpips_network() if network is None else network)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        made, real = (2 * images.expand(-1, 3, -1, -1) - 1 for images in (made, real))
        return self.network(made.clamp(-1, 1), real).mean()


def _lpips_network() -> nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:  # its network only: the metric around it keeps sums over batches
        return LearnedPerceptualImagePatchSimilarity("vgg").net
    except Exception as error:  # no torchvision, no network, a broken download: each has its own exception
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"LPIPS weights could not be fetched ({reason}): use perceptual='lite0' or 'pyramid'") from None


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
