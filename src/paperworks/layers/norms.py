"""Norms over the channels of NCHW maps, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError

NormName = Literal["batch", "layer", "none"]
Norm = NormName | Callable[[int], nn.Module]
"""a name, or a class or function: number of channels -> module on [N, C, H, W]"""


class LayerNorm2d(nn.LayerNorm):
    """Normalises each position of [N, C, H, W] over its channels. Works on the channels-last view, so the result of a
    channels-last input needs no copy."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return rows.permute(0, 3, 1, 2)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """ "batch" BatchNorm2d, "layer" LayerNorm2d (eps 1e-6), "none" identity, or what a given class or function makes."""
    if callable(kind):
        return kind(channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "layer":
        return LayerNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    raise InputError(f"no norm {kind!r}; there are 'batch', 'layer' and 'none'")
