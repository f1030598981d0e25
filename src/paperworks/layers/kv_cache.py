"""A pre-allocated key/value cache: one tensor for all layers, written in place, read as views (nothing is concatenated)."""

from __future__ import annotations

import torch
from torch import Tensor

from paperworks.errors import InputError


class KVCache:
    """Keys and values of `layers` attention layers for up to `length` positions.

    Every layer calls `append` with the same new positions; `commit(n)` then makes them (or only the first n of them,
    when the rest was provisional) part of the past.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        length: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.store = torch.empty(layers, 2, rows, heads, length, head_dim, device=device, dtype=dtype)
        self.used = 0

    @property
    def length(self) -> int:
        return self.store.shape[4]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, n, dim] after the past; returns the past and the new positions together."""
        end = self.used + keys.shape[2]
        if end > self.length:
            raise InputError(f"the cache holds {self.length} positions and was asked for {end}: allocate it longer")
        self.store[layer, 0, :, :, self.used : end] = keys
        self.store[layer, 1, :, :, self.used : end] = values
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]

    def commit(self, positions: int) -> None:
        self.used += positions

    def rollback(self, used: int) -> None:
        """Forget everything after the first `used` positions."""
        self.used = used
