"""Windows of maps: cut into rectangles of one size and put together again. A stripe is a window as long as the map.

Maps are [N, H, W, ...] here, with the channels (and whatever else belongs to a position) behind: cutting moves whole positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError

Size = tuple[int, int]
"""height and width"""


def to_windows(x: Tensor, window: Size) -> Tensor:
    """[N, H, W, ...] -> [N x windows, h, w, ...], windows of an image row by row. Bands as wide as the map cost no copy."""
    batch, height, width, *rest = x.shape
    high, wide = window
    if height % high or width % wide:
        raise InputError(
            f"a map of {height}x{width} does not divide into windows of {high}x{wide}; pad_to_windows makes it fit"
        )
    cut = x.reshape(batch, height // high, high, width // wide, wide, *rest)
    return cut.transpose(2, 3).reshape(batch * (height // high) * (width // wide), high, wide, *rest)


def from_windows(windows: Tensor, size: Size) -> Tensor:
    """The inverse of `to_windows`: [N x windows, h, w, ...] -> [N, H, W, ...] for size (H, W)."""
    count, high, wide, *rest = windows.shape
    down, across = size[0] // high, size[1] // wide
    if down * high != size[0] or across * wide != size[1] or count % (down * across):
        raise InputError(f"{count} windows of {high}x{wide} do not fill maps of {size[0]}x{size[1]}")
    cut = windows.reshape(count // (down * across), down, across, high, wide, *rest)
    return cut.transpose(2, 3).reshape(count // (down * across), *size, *rest)


def pad_to_windows(x: Tensor, window: Size) -> Tensor:
    """[N, H, W, ...] with zeros around, so that the sides are multiples of the window's; an odd one goes below or right."""
    height, width = x.shape[1:3]
    # written so that the sum of a side and its zeros is seen to be a multiple even where sizes are symbols
    down = -(-height // window[0]) * window[0] - height
    across = -(-width // window[1]) * window[1] - width
    if not _recorded() and not down and not across:
        return x
    behind = [0, 0] * (x.ndim - 3)
    return F.pad(x, [*behind, across // 2, across - across // 2, down // 2, down - down // 2])


def crop_padding(x: Tensor, size: Size) -> Tensor:
    """What was there before `pad_to_windows`: the middle (H, W) of [N, H', W', ...]."""
    if not _recorded() and tuple(x.shape[1:3]) == size:
        return x
    top, left = (x.shape[1] - size[0]) // 2, (x.shape[2] - size[1]) // 2
    return x[:, top : top + size[0], left : left + size[1]]


def _recorded() -> bool:
    """Whether steps are written down for images of other sizes: those may need zeros where these need none."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()
