"""DiT-XL/2 as far as counting goes: what papers compare their parameters and operations with."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn


class DiTCost(nn.Module):
    """DiT-XL/2 (2212.09748) as far as counting goes: 28 adaLN-zero blocks of width 1152 on tokens [B, n, 16]
    of 2 x 2 x 4 numbers: 256 at 256 pixels, 1024 at 512."""

    def __init__(self, dim: int = 1152, depth: int = 28, heads: int = 16):
        super().__init__()
        self.patches = nn.Linear(16, dim)
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.classes = nn.Embedding(1001, dim)
        self.blocks = nn.ModuleList(_block(dim, heads) for _ in range(depth))
        self.ada = nn.ModuleList(nn.Linear(dim, 6 * dim) for _ in range(depth))
        self.final_ada, self.final = nn.Linear(dim, 2 * dim), nn.Linear(dim, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        condition = self.time(torch.zeros(len(x), 256, device=x.device)) + self.classes.weight[:1]
        for block, ada in zip(self.blocks, self.ada):
            ada(condition)
            x = block(x)
        self.final_ada(condition)
        return self.final(x)


def _block(dim: int, heads: int) -> nn.Module:
    return timm.models.vision_transformer.Block(dim, heads, 4.0, qkv_bias=True, norm_layer=_plain_norm)


def _plain_norm(dim: int, **_: Any) -> nn.Module:
    return nn.LayerNorm(dim, elementwise_affine=False)
