"""A long sequence goes through a layer a stretch of tokens at a time where nothing is learned.

Tensors of tens of megabytes are given back to the system and asked for anew in every layer, and the system clears each page of
them: at 50,000 tokens that costs as much again as the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paperworks.layers.windows import exporting

AT_ONCE = 1 << 21
"""numbers in the widest tensor of a stretch"""
LEAST = 1024
"""tokens of a stretch: products of fewer rows are slower"""


def stretch(x: Tensor, width: int) -> int:
    """How many tokens of x [N, L, C] go at once through a layer whose widest tensor has `width` numbers a token: all of them
    where gradients or a graph are wanted."""
    if torch.is_grad_enabled() or exporting() or torch.compiler.is_compiling():
        return x.shape[1]
    return min(x.shape[1], max(LEAST, AT_ONCE // (x.shape[0] * width)))


def by_stretches(layer: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """layer(x) of x [N, L, C], for a layer that looks at each token by itself or remembers those it was given before."""
    tokens = stretch(x, width)
    if tokens == x.shape[1]:
        return layer(x)
    first = layer(x[:, :tokens])
    y = first.new_empty(*x.shape[:2], first.shape[2])
    y[:, :tokens] = first
    for start in range(tokens, x.shape[1], tokens):
        y[:, start : start + tokens] = layer(x[:, start : start + tokens])
    return y
