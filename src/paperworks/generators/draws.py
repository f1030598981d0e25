"""Where samplers get their random numbers: a generator per row, or tensors recorded earlier.

One uniform number per draw, turned into a token by the inverse of the cumulative distribution, makes parity with recorded
runs, reproducibility over batch sizes and tests one mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from paperworks.errors import InputError


class Draws:
    """Named draws of shape [rows, ...]. Row r of every draw comes from generator r alone, so the same seed gives the same
    image in any batch."""

    def __init__(self, generators: Sequence[torch.Generator] = (), recorded: Mapping[str, Tensor] | None = None):
        self.generators = list(generators)
        self.recorded = recorded

    @classmethod
    def seeded(cls, seed: int, rows: int, first: int = 0) -> Draws:
        """Rows first, first + 1, ... of the stream `seed`."""
        return cls([torch.Generator().manual_seed(seed * 1_000_003 + first + row) for row in range(rows)])

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """In [0, 1)."""
        return self._draw(name, shape, lambda tail, generator: torch.rand(tail, generator=generator))

    def exponential(self, name: str, shape: Sequence[int]) -> Tensor:
        """Mean 1; -log of it is a Gumbel variable."""
        return self._draw(name, shape, lambda tail, generator: torch.empty(tail).exponential_(generator=generator))

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return self._draw(name, shape, lambda tail, generator: torch.randn(tail, generator=generator))

    def _draw(self, name: str, shape: Sequence[int], make: Callable[[Sequence[int], torch.Generator], Tensor]) -> Tensor:
        if self.recorded is not None:
            if name not in self.recorded:
                raise InputError(f"no recorded draw {name!r}; there are {', '.join(self.recorded)}")
            return self.recorded[name].reshape(tuple(shape))
        if len(self.generators) != shape[0]:
            raise InputError(f"{len(self.generators)} generators cannot draw for {shape[0]} rows: give one per row")
        return torch.stack([make(list(shape[1:]), generator) for generator in self.generators])


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """Token of each draw: the first index whose cumulative probability exceeds the uniform number.

    logits [..., V] (may hold -inf), uniform [...] -> int64 [...].
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # the last sum can miss 1 by rounding; dividing keeps every draw inside the support
    cumulative = cumulative / cumulative[..., -1:]
    below_one = uniform.double().clamp(max=1 - 2**-53)  # float32 numbers just below 1 arrive as 1
    return torch.searchsorted(cumulative, below_one[..., None], right=True)[..., 0]


def guide(conditional: Tensor, null: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance; `weight` 0 is the conditional prediction alone (the total weight on it is 1 + weight)."""
    return torch.lerp(null, conditional, 1 + weight)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Logits with everything outside the top k, then outside the smallest set of mass >= p, at -inf; the best always stays.

    0 switches a filter off. Only the k survivors are sorted for top-p.
    """
    vocabulary = logits.shape[-1]
    if top_k > vocabulary:
        raise InputError(f"top_k={top_k} but there are only {vocabulary} tokens")
    if not 0 <= top_p <= 1:
        raise InputError(f"top_p={top_p} must lie between 0 (off) and 1")
    if not top_k and not top_p:
        return logits
    values, indices = logits.topk(top_k or vocabulary, dim=-1)
    if top_p:
        probability = values.softmax(-1)
        before = probability.cumsum(-1) - probability
        before[..., 0] = -1.0
        values = values.masked_fill(before >= top_p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, indices, values)
