"""Global pooling of a map to a vector, under timm's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperworks.errors import InputError

POOLS = ("avg", "max", "avgmax", "catavgmax")


class GlobalPool(nn.Module):
    """[N, C, H, W] -> [N, C * width]: mean, maximum, their average, or both side by side (width 2)."""

    def __init__(self, kind: str = "avg"):
        super().__init__()
        if kind not in POOLS:
            raise InputError(f"no global pooling {kind!r}; there are {', '.join(POOLS)}")
        self.kind = kind
        self.width = 2 if kind == "catavgmax" else 1

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "avg":
            return x.mean((2, 3))
        if self.kind == "max":
            return x.amax((2, 3))
        mean, largest = x.mean((2, 3)), x.amax((2, 3))
        return torch.cat((mean, largest), dim=1) if self.kind == "catavgmax" else (mean + largest) / 2
