"""Norms over the channels of NCHW maps, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
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


class GlobalResponseNorm(nn.Module):
    """GRN (2301.00808, section 3): [N, H, W, C] -> (gamma * G / mean(G) + 1) * x + beta, G the norm of each channel's map."""

    def __init__(self, channels: int, bias: bool = True, eps: float = 1e-6):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale(x)
        return x * scale if self.beta is None else torch.addcmul(self.beta, x, scale)

    def scale(self, x: Tensor) -> Tensor:
        """What x is multiplied with: [N, 1, 1, C]."""
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return torch.addcmul(torch.ones_like(self.gamma), self.gamma, response / (response.mean(-1, keepdim=True) + self.eps))


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
