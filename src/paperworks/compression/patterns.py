"""What is removed together: single weights, whole filters, or n of every m neighbours. All rank by magnitude.

A pattern cuts a weight tensor into `units(shape)` removable units (per group for N:M) and ranks them from the smallest
upwards; removing the first `k` units is comparing the ranks with k. So one sort serves every ratio of a distortion curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paperworks.errors import InputError


class Pattern(Protocol):
    def units(self, shape: tuple[int, ...]) -> int:
        """How many ranks there are; each carries numel / units weights."""

    def rank(self, magnitude: Tensor) -> Tensor:
        """int32, broadcastable to the weight's shape: 0 for what goes first. Ties are broken by position."""


def count(ratio: float, units: int) -> int:
    """Units that a ratio removes: int(ratio * units), rounded down as the paper's code does."""
    return min(units, max(0, int(ratio * units)))


def kept_weights(pattern: Pattern, shape: tuple[int, ...], ratio: float) -> int:
    units = pattern.units(shape)
    return math.prod(shape) // units * (units - count(ratio, units))


@dataclass(frozen=True)
class SingleWeights:
    """Unstructured: every weight on its own (the paper's setting)."""

    def units(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def rank(self, magnitude: Tensor) -> Tensor:
        return _positions(magnitude.flatten()).view(magnitude.shape)


@dataclass(frozen=True)
class Filters:
    """Whole output channels, by their summed magnitude."""

    def units(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    def rank(self, magnitude: Tensor) -> Tensor:
        return _positions(magnitude.flatten(1).sum(1)).view(-1, *[1] * (magnitude.ndim - 1))


@dataclass(frozen=True)
class OutOfEach:
    """N:M: among every `group` consecutive weights (of the flattened tensor) the same number goes."""

    group: int = 4

    def units(self, shape: tuple[int, ...]) -> int:
        if math.prod(shape) % self.group:
            raise InputError(f"a weight of shape {shape} does not divide into groups of {self.group}; skip that layer")
        return self.group

    def rank(self, magnitude: Tensor) -> Tensor:
        self.units(tuple(magnitude.shape))
        return _positions(magnitude.reshape(-1, self.group)).view(magnitude.shape)


def _positions(values: Tensor) -> Tensor:
    """Position of each value in ascending order along the last dimension."""
    order = values.argsort(dim=-1, stable=True)
    steps = torch.arange(values.shape[-1], dtype=torch.int32, device=values.device).expand_as(values)
    return torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, steps)
