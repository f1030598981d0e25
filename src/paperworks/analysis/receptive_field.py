"""The effective receptive field of any network with feature maps (1701.04128; measured as in 2203.06717, appendix).

Which pixels move the centre of the last feature map, averaged over images, as the side of the smallest centred square that
holds a given share of the log-scaled contributions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)

Features = Callable[[Tensor], Tensor]
"""images [N, C, H, W] -> feature map [N, D, h, w]"""


@dataclass(frozen=True)
class Square:
    """The smallest centred square with more than `share` of the contributions; side and area are None where none is."""

    share: float
    side: int | None
    area: float | None
    """as a share of the image"""


@dataclass(frozen=True)
class ReceptiveField:
    contribution: Tensor
    """[H, W], mean over the images"""
    scaled: Tensor
    """log10(contribution + 1) over its maximum"""
    squares: tuple[Square, ...]
    images: int
    """that had gradients; others were skipped"""


def effective_receptive_field(
    network: nn.Module | Features, images: Iterable[Tensor], thresholds: Sequence[float] = THRESHOLDS
) -> ReceptiveField:
    """network: one of timm's protocol, or a function images -> last feature map. images: [3, H, W] each, as the network takes
    them. Put the network into evaluation mode first; its weights get no gradients."""
    features = last_map(network) if isinstance(network, nn.Module) else network
    total, count = None, 0
    for image in images:
        contribution = centre_gradient(features, image[None] if image.ndim == 3 else image)
        if not bool(torch.isfinite(contribution).all()):
            continue
        total = contribution if total is None else total + contribution
        count += 1
    if total is None:
        raise InputError("no image gave a finite gradient: is the network in evaluation mode, are the images finite?")
    if not bool(total.any()):
        raise InputError("the centre of the last feature map depends on no pixel: images larger than the network's reduction")
    mean = total / count
    scaled = log_scaled(mean)
    return ReceptiveField(mean, scaled, tuple(centred_squares(scaled, thresholds)), count)


def last_map(network: nn.Module) -> Features:
    """Images -> last feature map [N, D, h, w], of transformers too, whose own features are tokens or [N, h, w, D]."""
    if hasattr(network, "forward_intermediates"):
        take: Any = network.forward_intermediates
        return lambda images: take(images, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]
    if hasattr(network, "forward_features") and getattr(network, "output_fmt", "NCHW") == "NCHW":
        found: Any = network.forward_features
        return found
    raise InputError(
        f"{type(network).__name__} has neither forward_intermediates nor forward_features with maps [N, D, h, w]: "
        "give a function from images to the last feature map"
    )


def centre_gradient(features: Features, image: Tensor) -> Tensor:
    """[N, C, H, W] -> [H, W]: positive gradients of the summed ReLU of the map's centre, over images and channels."""
    image = image.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        found = features(image)
        if found.ndim != 4:
            raise InputError(
                f"a receptive field needs a feature map [N, D, h, w], not {list(found.shape)}: "
                "give a function from images to the map before pooling"
            )
        centre = F.relu(found[:, :, found.shape[2] // 2, found.shape[3] // 2]).sum()
        (gradient,) = torch.autograd.grad(centre, image)
    return F.relu(gradient).sum((0, 1))


def log_scaled(contribution: Tensor) -> Tensor:
    """log10(contribution + 1) divided by its maximum."""
    logs = torch.log10(contribution + 1)
    return logs / logs.max()


def centred_squares(scaled: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> list[Square]:
    """For each share the smallest odd square around the centre (side 3 and more) that holds more of the map [H, W]."""
    height, width = scaled.shape
    total = scaled.double().sum()
    # share inside the square of each half side, from one cumulative table
    table = F.pad(scaled.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    halves = range(1, height // 2)
    shares = []
    for half in halves:
        top, left = height // 2 - half, width // 2 - half
        bottom, right = height // 2 + half + 1, width // 2 + half + 1
        inside = (
            table[bottom, right] - table[max(top, 0), right] - table[bottom, max(left, 0)] + table[max(top, 0), max(left, 0)]
        )
        shares.append(float(inside / total))
        if left <= 0 or right >= width:
            break
    found = []
    for threshold in thresholds:
        half_side = next((half for half, share in zip(halves, shares) if share > threshold), None)
        side = None if half_side is None else 2 * half_side + 1
        found.append(Square(threshold, side, None if side is None else side / height * side / width))
    return found
