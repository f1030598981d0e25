"""Shape against texture: how a classifier decides pictures whose outline is of one class and whose surface is of another
(1811.12231; decisions from class probabilities by the mean over a coarse class's members)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperworks.errors import InputError


@dataclass(frozen=True)
class ShapeBias:
    bias: float
    """shape decisions over shape and texture decisions"""
    fraction_shape: float
    """of all pictures, those without a conflict included"""
    fraction_texture: float
    per_class: Tensor
    """[classes] by shape class; -1 where no picture was decided for shape or texture"""


def shape_bias(response: Tensor, shape: Tensor, texture: Tensor, classes: int) -> ShapeBias:
    """response, shape, texture: [N] class numbers. Pictures without a conflict count in the fractions' denominator only."""
    if not response.shape == shape.shape == texture.shape or response.ndim != 1:
        raise InputError("response, shape and texture are lists of class numbers of one length")
    for name, values in (("response", response), ("shape", shape), ("texture", texture)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise InputError(f"{name} has class numbers outside 0 to {classes - 1}")
    conflict = shape != texture
    if not bool(conflict.any()):
        raise InputError("no picture has a shape class that differs from its texture class")
    by_shape, by_texture = (response == shape) & conflict, (response == texture) & conflict
    decided = int(by_shape.sum() + by_texture.sum())
    per_class = torch.full((classes,), -1.0, dtype=torch.float64)
    for number in range(classes):
        own = shape == number
        hits, misses = int((by_shape & own).sum()), int((by_texture & own).sum())
        if hits + misses:
            per_class[number] = hits / (hits + misses)
    return ShapeBias(
        int(by_shape.sum()) / decided if decided else -1.0,
        int(by_shape.sum()) / len(response),
        int(by_texture.sum()) / len(response),
        per_class,
    )


@torch.no_grad()
def network_shape_bias(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    shape: Tensor,
    texture: Tensor,
    groups: Sequence[Sequence[int]],
    batch: int = 50,
) -> ShapeBias:
    """How a classifier decides pictures whose cues conflict.

    network: images [N, C, H, W], as they are given here, -> logits; in evaluation mode. groups: for each class that `shape` and
    `texture` count by, the network's classes that belong to it (the published test sorts 1000 classes of ImageNet into 16).
    """
    scores = [coarse_scores(network(part).softmax(1), groups) for part in images.split(batch)]
    return shape_bias(torch.cat(scores).argmax(1), shape, texture, len(groups))


def coarse_scores(probabilities: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """[N, classes] -> [N, len(groups)]: the mean probability of each group's classes. Groups must not share a class."""
    seen: set[int] = set()
    for group in groups:
        if not group:
            raise InputError("a group of classes is empty")
        if seen & set(group):
            raise InputError(f"class {min(seen & set(group))} is in two groups")
        seen |= set(group)
    return torch.stack([probabilities[:, list(group)].mean(1) for group in groups], 1)
