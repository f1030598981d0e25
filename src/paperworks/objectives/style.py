"""Content and style of images in the feature maps of a frozen network (1603.08155), as inpainting losses use them.

The published losses read VGG-19's maps; any network with `feature_maps` will do (`analysis.features.lite0` needs no download),
with weights of its own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.perceptual import Frozen


def gram(features: Tensor) -> Tensor:
    """[B, C, H, W] -> products of channels [B, C, C], divided by C H W."""
    flat = features.flatten(2).float()
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


class ContentStyle(Frozen):
    """(made, real, unknown) -> content: L1 between feature maps; style: L1 between Gram matrices of what is unknown, the rest
    black; each summed over the maps whose numbers are given. Images [B, 1 or 3, H, W] in [0, 1], unknown [B, 1, H, W]."""

    def __init__(self, network: nn.Module, content: Sequence[int] = (0, 1, 2), style: Sequence[int] = (0, 1, 2)):
        super().__init__(network)
        self.content_maps, self.style_maps = tuple(content), tuple(style)

    def forward(self, made: Tensor, real: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        # both kinds of images in one pass, in full precision: Gram matrices are sums of many products
        with torch.autocast(made.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.network.feature_maps(torch.cat((real, real * unknown)).float())
            given = self.network.feature_maps(torch.cat((made, made * unknown)).float())
        half = len(made)
        content = [F.l1_loss(given[number][:half], wanted[number][:half]) for number in self.content_maps]
        style = [F.l1_loss(gram(given[number][half:]), gram(wanted[number][half:])) for number in self.style_maps]
        return torch.stack(content).sum(), torch.stack(style).sum()


class FirstMaps(nn.Module):
    """The first feature maps of the embedded ImageNet classifier (`analysis.features.Lite0`), at 1/2, 1/4, 1/8: the part that
    small images can use, in a fifth of the time."""

    def __init__(self, classifier: Any, count: int = 3):
        super().__init__()
        self.classifier, self.count = classifier, count

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        signed = 2 * images.expand(-1, 3, -1, -1) - 1
        return self.classifier.network.forward_intermediates(
            signed, indices=list(range(self.count)), intermediates_only=True, stop_early=True
        )


class VGG19Maps(nn.Module):
    """torchvision's VGG-19 as a network of feature maps: relu1_1, 2_1, 3_1, 4_1, 5_1 (the published content layers) and
    relu2_2, 3_4, 4_4, 5_2 (the style layers), numbered 0 to 8 in that order. Its weights are fetched on first use."""

    CONTENT, STYLE = (0, 1, 2, 3, 4), (5, 6, 7, 8)
    LAYERS = (1, 6, 11, 20, 29, 8, 17, 26, 31)

    def __init__(self, network: nn.Module | None = None):
        super().__init__()
        self.features: Any = _vgg19() if network is None else network

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        found, x = {}, images.expand(-1, 3, -1, -1)
        for number, layer in enumerate(self.features[: max(self.LAYERS) + 1]):
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)  # not in place: maps are kept
            found[number] = x
        return [found[number] for number in self.LAYERS]


def _vgg19() -> nn.Module:
    from torchvision.models import VGG19_Weights, vgg19

    try:
        return vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features
    except Exception as error:  # no network, a broken download: each has its own exception
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"VGG-19's weights could not be fetched ({reason}): use the embedded network, 'lite0'") from None
