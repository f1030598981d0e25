"""Block-causal attention: positions come in blocks, each sees its own block and all earlier ones (VAR, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

SLICED_FROM = 256
"""From this length on, one call per block without a mask beats one call with an L x L mask: it never computes the
masked half and allocates nothing of size L x L. Below, the calls' own overhead dominates."""


SHORT = 64
"""Up to this length a CPU is faster with two plain batched products: its fused kernel works in tiles longer than the
sequence (measured at 30 tokens in bfloat16, forward and backward: 2.4 times)."""


def block_ends(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(begin, end) of each block."""
    return [(end - size, end) for size, end in zip(sizes, accumulate(sizes))]


def block_numbers(sizes: Sequence[int]) -> list[int]:
    """The number of the block that each position belongs to."""
    return [number for number, size in enumerate(sizes) for _ in range(size)]


def block_causal_mask(sizes: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Boolean [L, L], True where the row may look at the column."""
    block = torch.tensor(block_numbers(sizes), device=device)
    return block[:, None] >= block[None, :]


def block_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int], scale: float, mask: Tensor
) -> Tensor:
    """Attention over [rows, heads, L, dim] with sum(sizes) == L; `mask` is `block_causal_mask(sizes)`."""
    if query.shape[2] <= SHORT and query.device.type == "cpu":
        return _plain_attention(query, key, value, mask, scale)
    if query.shape[2] < SLICED_FROM:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    parts = [
        F.scaled_dot_product_attention(query[:, :, begin:end], key[:, :, :end], value[:, :, :end], scale=scale)
        for begin, end in block_ends(sizes)
    ]
    return torch.cat(parts, dim=2)


def block_diagonal_mask(sizes: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Boolean [L, L], True where row and column are of one block."""
    block = torch.tensor(block_numbers(sizes), device=device)
    return block[:, None] == block[None, :]


@cache
def _short_diagonal_mask(sizes: tuple[int, ...]) -> Tensor:
    return block_diagonal_mask(sizes)


def block_diagonal_attention(query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int], scale: float) -> Tensor:
    """Every block sees itself alone (HMAR 2506.04421): independent calls, no mask and nothing of size L x L (but for very short
    sequences on a CPU, see SHORT).

    [rows, heads, L, dim] with sum(sizes) == L.
    """
    if query.shape[2] <= SHORT and query.device.type == "cpu":
        return _plain_attention(query, key, value, _short_diagonal_mask(tuple(sizes)), scale)
    # split, not slices: going backward, a slice fills a tensor of the whole length with zeros, a split concatenates once
    blocks = zip(*(whole.split(list(sizes), dim=2) for whole in (query, key, value)))
    return torch.cat([F.scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in blocks], dim=2)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    scores = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).float() * scale
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(value.dtype)
    return torch.bmm(weights, value.flatten(0, 1)).unflatten(0, query.shape[:2])


def group_causal_mask(length: int, group: int, first: int) -> Tensor:
    """bool [length, length], True where the row may look: the first ones back alone, later ones at all groups up to their own
    (DetailFlow 2505.21473)."""
    number = torch.arange(length)
    mask = number[:, None] // group >= number[None] // group
    return torch.where(number[:, None] < first, number[:, None] >= number[None], mask)
