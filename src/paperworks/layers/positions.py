"""Positions of tokens: fixed sine and cosine tables, and rotary tables for one or two axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError


def sincos_1d(positions: Tensor, dim: int, theta: float = 10000.0) -> Tensor:
    """[N, dim]: sines, then cosines, of position x theta^(-2i / dim)."""
    if dim % 2:
        raise InputError(f"sine and cosine positions need an even width, not {dim}")
    frequencies = theta ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.double().flatten()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), 1).float()


def sincos_2d(height: int, width: int, dim: int, theta: float = 10000.0) -> Tensor:
    """[height x width, dim], rows first: the first half of the channels encodes the column, the second half the row."""
    if dim % 4:
        raise InputError(f"two-dimensional sine and cosine positions need a width divisible by 4, not {dim}")
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat((sincos_1d(columns, dim // 2, theta), sincos_1d(rows, dim // 2, theta)), 1)


def rotary_1d(positions: Tensor, dim: int, theta: float = 10000.0) -> Tensor:
    """Table [N, dim / 2, 2] of cosines and sines of position x theta^(-2i / dim) (2104.09864)."""
    if dim % 2:
        raise InputError(f"rotary positions need an even width, not {dim}")
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions.double().flatten()[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), -1).float()


def rotary_2d(rows: Tensor, columns: Tensor, dim: int, theta: float = 10000.0) -> Tensor:
    """Table [N, dim / 2, 2]: the first half of the channels turns with the row, the second half with the column."""
    if dim % 4:
        raise InputError(f"two-dimensional rotary positions need a width divisible by 4, not {dim}")
    return torch.cat((rotary_1d(rows, dim // 2, theta), rotary_1d(columns, dim // 2, theta)), 1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x [..., L, dim] with neighbouring channels (2i, 2i + 1) turned by the table's angles [L, dim / 2, 2]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin = table[..., 0].to(x.device), table[..., 1].to(x.device)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def resized_positions(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A learned table [h, w, C] for another grid: bilinear with antialiasing, [size[0] x size[1], C]."""
    grid = table.permute(2, 0, 1)[None].float()
    resized = F.interpolate(grid, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).reshape(size[0] * size[1], -1).to(table.dtype)
