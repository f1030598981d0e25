"""Seeds that are pure functions of where in a run they are used, so that no random state has to be carried or restored."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

MASK = 0xFFFFFFFFFFFFFFFF


def mixed_seed(*words: int | str) -> int:
    """A 63-bit seed from numbers and names; neighbouring steps, ranks and seeds get unrelated ones (splitmix64-like)."""
    mixed = 0
    for word in words:
        number = zlib.crc32(word.encode()) if isinstance(word, str) else word
        mixed = ((mixed ^ (number & MASK)) * 0x9E3779B97F4A7C15) & MASK
        mixed ^= mixed >> 29
    return mixed & (MASK >> 1)


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators (dropout and stochastic depth of ready-made networks draw from them)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def untouched_randomness(device: torch.device) -> Iterator[None]:
    """Whatever the block draws from the global generators of torch, numpy and Python, the caller does not notice."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
