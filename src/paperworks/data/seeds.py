"""Random numbers that are a pure function of their coordinates (seed, epoch, index, draw): no generator is carried along, so
the number of workers, the order of reading and a restart cannot change them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MASK = 0xFFFFFFFFFFFFFFFF


def mix(*words: int) -> int:
    """One 63-bit seed from several integers; neighbouring integers give unrelated seeds."""
    state = 0
    for word in words:
        state = int(_scramble(np.array([(state + GOLDEN * ((word & MASK) + 1)) & MASK], dtype=np.uint64))[0])
    return state >> 1


def uniforms(seed: int, epoch: int, indices: Sequence[int], draws: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [len(indices), draws]; row i depends on (seed, epoch, indices[i]) only."""
    base = np.uint64(mix(seed, epoch))
    index = np.asarray(indices, dtype=np.int64).astype(np.uint64)
    state = _scramble(base + (index[:, None] + np.uint64(1)) * np.uint64(GOLDEN))
    state = _scramble(state + (np.arange(draws, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: int64 [length]."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(mix(seed, epoch)))


def share(keys: Sequence[str], labels: Tensor | None, count: int, seed: int) -> np.ndarray:
    """A boolean mask that picks `count` of the keys, in equal proportion of each label.

    Within a class the order is that of the keys' hashes, so the choice does not depend on the order of the files, and an
    image added later rarely moves others across. The images at the lowest quantiles of their class are picked.
    """
    hashes = np.array([zlib.crc32(key.encode()) for key in keys], dtype=np.uint64)
    hashes = _scramble(hashes + np.uint64(mix(seed)))
    group = np.zeros(len(keys), dtype=np.int64) if labels is None else labels.numpy()
    order = np.lexsort((hashes, group))
    _, first, sizes = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.arange(len(keys)) - np.repeat(first, sizes)
    quantile = np.empty(len(keys))
    quantile[order] = (rank + 0.5) / np.repeat(sizes, sizes)
    mask = np.zeros(len(keys), dtype=bool)
    mask[np.lexsort((hashes, quantile))[:count]] = True
    return mask


def _scramble(state: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words that mixes every bit."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
