"""Grids of maps: groups of tokens that lie far apart. The counterpart of `windows`, with the same calls and paddings.

A grid of G x G' cuts the map [N, H, W, ...] into G x G' equal cells, as large as the map asks for. A group has one token of
every cell, the one at the same place inside each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError

Size = tuple[int, int]
"""height and width"""


def cut_grid(x: Tensor, grid: Size) -> Tensor:
    """[N, H, W, ...] -> [N x groups, G, G', ...], an image's groups row by row, by the place of their tokens inside a cell."""
    if _recorded():
        return _cut_by_index(x, grid)
    down, across = (-side % part for side, part in zip(x.shape[1:3], grid))
    if down or across:
        x = F.pad(x, [0, 0] * (x.ndim - 3) + [across // 2, across - across // 2, down // 2, down - down // 2])
    batch, height, width, *rest = x.shape
    cells = x.reshape(batch, grid[0], height // grid[0], grid[1], width // grid[1], *rest)
    groups = cells.permute(0, 2, 4, 1, 3, *range(5, cells.ndim))
    return groups.reshape(-1, *grid, *rest)


def join_grid(tokens: Tensor, grid: Size, size: Size) -> Tensor:
    """[N x groups, G * G', C], the cells row by row -> the map [N, H, W, C] of size (H, W)."""
    if _recorded():
        return _join_by_index(tokens, grid, size)
    down, across = (-(-side // part) for side, part in zip(size, grid))
    if len(tokens) % (down * across) or tokens.shape[1] != grid[0] * grid[1]:
        found = f"{len(tokens)} groups of {tokens.shape[1]} tokens"
        raise InputError(f"{found} do not make maps of {size[0]}x{size[1]}: those have {down * across} of {grid[0]}x{grid[1]}")
    cells = tokens.reshape(-1, down, across, *grid, tokens.shape[2])
    x = cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, grid[0] * down, grid[1] * across, tokens.shape[2])
    for side, length in enumerate(size, start=1):
        if x.shape[side] != length:
            x = x.narrow(side, (x.shape[side] - length) // 2, length)
    return x


# --- the same for networks that are exported, whose sizes are symbols ---------------------------------------------------------


def _recorded() -> bool:
    """Whether steps are written down for images of other sizes."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _cut_by_index(x: Tensor, grid: Size) -> Tensor:
    places, inside = [], []
    for side, part in zip(x.shape[1:3], grid):
        cell = (side + part - 1) // part
        index = torch.arange(cell, device=x.device)[:, None] + torch.arange(part, device=x.device) * cell
        index = index - (cell * part - side) // 2
        inside.append(((index >= 0) & (index < side)).to(x.dtype))
        places.append(index.clamp(min=0).minimum(torch.full_like(index, side - 1)))
    (rows, columns), (high, wide) = places, inside
    cut = x[:, rows[:, None, :, None], columns[None, :, None, :]]
    kept = (high[:, None, :, None] * wide[None, :, None, :]).view(*cut.shape[1:5], *[1] * (x.ndim - 3))
    return (cut * kept).flatten(0, 2)


def _join_by_index(tokens: Tensor, grid: Size, size: Size) -> Tensor:
    which: list[Tensor] = []
    where: list[Tensor] = []
    counts = []
    for side, part in zip(size, grid):
        cell = (side + part - 1) // part
        start = (cell * part - side) // 2
        for found, index in ((which, torch.arange(cell)[None]), (where, torch.arange(part)[:, None])):
            found.append(index.to(tokens.device).expand(part, cell).flatten()[start : start + side])
        counts.append(cell)
    images = torch.arange(tokens.shape[0] // (counts[0] * counts[1]), device=tokens.device)[:, None, None]
    groups = (images * counts[0] + which[0][:, None]) * counts[1] + which[1]
    return tokens[groups, where[0][:, None] * grid[1] + where[1]]
