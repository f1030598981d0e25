"""Ratings of images: a distribution over ordered scores, learned by how far its mass lies from the given one (1709.05424).

Cross-entropy does not know that a 7 is nearer to an 8 than a 2 is; the distance between cumulative distributions does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.classify import Classify


def rating_distance(predicted: Tensor, wanted: Tensor) -> Tensor:
    """[N]: the earth mover's distance of equation 1 with r = 2, between distributions [N, scores] whose rows add up to 1: the
    root of the mean squared difference of what is at or below each score."""
    squared = (predicted - wanted).cumsum(1).square().mean(1)
    return squared.clamp_min(1e-12).sqrt()  # where nothing is left to move the root has no gradient


def mean_score(shares: Tensor) -> Tensor:
    """[N]: the mean of distributions [N, scores] over the scores 1, 2, ..."""
    return shares @ torch.arange(1, shares.shape[1] + 1, device=shares.device, dtype=shares.dtype)


class Rate(Classify):
    """Trains `model` (normalised images -> logits of the scores in their order) on `target` float [B, scores], how many people
    gave each score, as counts or shares; or on `label` int64 [B], the one score, counted from 0."""

    def _between(self, logits: Tensor, truth: Tensor) -> Tensor:
        if not truth.is_floating_point():
            return rating_distance(logits.softmax(1), F.one_hot(truth, logits.shape[1]).to(logits)).mean()
        if truth.shape != logits.shape:
            raise InputError(f"target has {truth.shape[1]} scores, the network {logits.shape[1]}: build it with as many")
        return rating_distance(logits.softmax(1), truth / truth.sum(1, keepdim=True)).mean()
