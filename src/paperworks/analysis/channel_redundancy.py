"""How much the channels of a network repeat one another, and how many say nothing (T2T-ViT 2101.11986, section 1, figure 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperworks.errors import InputError

QUIET = 0.01
"""share of the median channel's deviation below which a channel counts as dead"""


class Redundancy(NamedTuple):
    similarity: float
    """mean absolute correlation of two different channels, between 0 and 1; dead ones left out"""
    dead: float
    """share of channels that hardly change"""


@torch.no_grad()
def channel_redundancy(features: Tensor) -> Redundancy:
    """Of features [N, C] (N positions of some images), or maps [N, C, H, W]. Raises InputError for fewer than two rows or
    channels, and where fewer than two channels are alive."""
    if features.ndim == 4:
        features = features.movedim(1, -1).flatten(0, 2)
    if features.ndim != 2 or min(features.shape) < 2:
        raise InputError(f"features are [N, C] or [N, C, H, W] with at least two rows and channels, not {list(features.shape)}")
    centred = features.double() - features.double().mean(0)
    deviation = centred.square().mean(0).sqrt()
    alive = deviation > QUIET * deviation.median()
    count = int(alive.sum())
    if count < 2:
        raise InputError(f"{count} of {len(alive)} channels change at all: nothing to compare")
    normed = centred[:, alive] / deviation[alive]
    correlation = (normed.T @ normed / len(normed)).abs()
    similarity = (correlation.sum() - correlation.trace()) / (count * (count - 1))
    return Redundancy(float(similarity), 1 - count / len(alive))
