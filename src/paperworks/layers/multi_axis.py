"""Multi-axis attention (MaxViT, 2204.01697, section 3.1): windows of neighbours, and a sparse grid over the whole map.

Both attend within groups of as many tokens, however large the map, so the cost grows with the number of pixels. One after the
other they pass anything anywhere. Maps are [N, H, W, ...] here. Where groups do not divide a map it is padded and what is
outside is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.drop_path import DropPath
from paperworks.layers.grids import Size, cut_grid, join_grid
from paperworks.layers.transformer import ActivationKind, FeedForward
from paperworks.layers.windows import cut_windows, join_windows

Axis = Literal["block", "grid"]
AXES: tuple[Axis, ...] = ("block", "grid")


def as_size(window: int | Size) -> Size:
    """One number is both sides."""
    high, wide = (window, window) if isinstance(window, int) else window
    if min(high, wide) < 1:
        raise InputError(f"a window of {high}x{wide} tokens: both sides are 1 or more")
    return high, wide


CUT: dict[str, Callable[[Tensor, Size], Tensor]] = {"block": cut_windows, "grid": cut_grid}
JOIN: dict[str, Callable[[Tensor, Size, Size], Tensor]] = {"block": join_windows, "grid": join_grid}


class RelativeBias(nn.Module):
    """A learned number per head for every offset between two tokens of a window; gives [heads, L, L], query by key.

    The table is [heads, 2 h - 1, 2 w - 1], its middle the offset 0; entry (row, column) belongs to keys that lie
    (row - h + 1, column - w + 1) from their query. In a grid the offset counts cells.
    """

    index: Tensor

    def __init__(self, window: Size, heads: int):
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.empty(heads, 2 * window[0] - 1, 2 * window[1] - 1))
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", offsets(window), persistent=False)

    def forward(self) -> Tensor:
        length = self.window[0] * self.window[1]
        return self.relative_position_bias_table.flatten(1).index_select(1, self.index).view(self.heads, length, length)

    @torch.no_grad()
    def resize(self, window: Size) -> None:
        """The same bias over another window: the table is interpolated, as in the paper's fine-tuning at higher resolution."""
        table = resized_table(self.relative_position_bias_table, window)
        self.relative_position_bias_table = nn.Parameter(table, self.relative_position_bias_table.requires_grad)
        self.window = window
        self.index = offsets(window).to(self.index.device)


def offsets(window: Size) -> Tensor:
    """int64 [L x L]: the place of each (query, key) pair's offset in a flattened table."""
    high, wide = window
    rows = torch.arange(high)[None, :] - torch.arange(high)[:, None] + high - 1
    columns = torch.arange(wide)[None, :] - torch.arange(wide)[:, None] + wide - 1
    return (rows[:, None, :, None] * (2 * wide - 1) + columns[None, :, None, :]).flatten()


def resized_table(table: Tensor, window: Size) -> Tensor:
    """[heads, 2 h - 1, 2 w - 1] for another window, bilinearly."""
    size = (2 * window[0] - 1, 2 * window[1] - 1)
    if tuple(table.shape[1:]) == size:
        return table.clone()
    return F.interpolate(table[None].float(), size, mode="bilinear", align_corners=False)[0].to(table.dtype)


def _recorded() -> bool:
    """Whether steps are written down for images of other sizes: those may be padded where these are not."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


class MultiAxisAttention(nn.Module):
    """[N, H, W, C] -> the same: softmax(q k^T / sqrt(d) + bias) v within every window ("block") or over the grid ("grid").

    Queries, keys and values are projected before the map is cut, which commutes.
    """

    def __init__(self, dim: int, axis: Axis = "block", window: int | Size = 7, head_dim: int = 32):
        super().__init__()
        if dim % head_dim:
            raise InputError(f"a width of {dim} does not divide into heads of {head_dim}")
        if axis not in AXES:
            raise InputError(f"axis {axis!r}: there are 'block' and 'grid'")
        self.axis, self.window, self.heads = axis, as_size(window), dim // head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rel_pos = RelativeBias(self.window, self.heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.mix(self.qkv(x), self.rel_pos()))

    def mix(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """[N, H, W, 3 C], bias [heads, L, L] -> [N, H, W, C]: everything between the two products."""
        height, width = qkv.shape[1:3]
        groups = CUT[self.axis](qkv, self.window)
        q, k, v = groups.flatten(1, 2).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mask = bias[None]
        if self._may_be_padded(height, width):
            inside = self._inside(height, width, qkv.device)
            mask = bias.masked_fill(~inside[:, None, None], -torch.inf).expand(qkv.shape[0], -1, -1, -1, -1).flatten(0, 1)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        # exporters may lay the heads' results out otherwise than the kernel does, so that flattening needs a copy
        tokens = torch.cat(seen.unbind(1), -1) if _recorded() else seen.transpose(1, 2).flatten(2)
        return JOIN[self.axis](tokens, self.window, (height, width))

    def _may_be_padded(self, height: int, width: int) -> bool:
        return _recorded() or bool(height % self.window[0] or width % self.window[1])

    def _inside(self, height: int, width: int, device: torch.device) -> Tensor:
        """bool [groups of an image, L]: which tokens belong to the map. Every group has at least one."""
        inside = torch.ones(1, height, width, 1, device=device)
        return CUT[self.axis](inside, self.window).flatten(1) > 0

    def resize_window(self, window: int | Size) -> None:
        """Groups of another size; the bias is interpolated."""
        self.window = as_size(window)
        self.rel_pos.resize(self.window)


class AxisBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) on [N, H, W, C], along one axis."""

    def __init__(
        self,
        dim: int,
        axis: Axis = "block",
        window: int | Size = 7,
        *,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        activation: ActivationKind = "gelu_tanh",
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = MultiAxisAttention(dim, axis, window, head_dim)
        self.norm2 = norm(dim)
        self.mlp = FeedForward(dim, int(mlp_ratio * dim), activation)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
