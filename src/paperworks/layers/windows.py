"""Windows of maps: cut into rectangles of one size and put together again. A stripe is a window as long as the map.

Maps are [N, H, W, ...] here, with the channels (and whatever else belongs to a position) behind: cutting moves whole positions.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    down, across = (-side % part for side, part in zip(x.shape[1:3], window))
    if not down and not across:
        return x
    behind = [0, 0] * (x.ndim - 3)
    return F.pad(x, [*behind, across // 2, across - across // 2, down // 2, down - down // 2])


def crop_padding(x: Tensor, size: Size) -> Tensor:
    """What was there before `pad_to_windows`: the middle (H, W) of [N, H', W', ...]."""
    for side, length in enumerate(size, start=1):
        if x.shape[side] != length:
            x = x.narrow(side, (x.shape[side] - length) // 2, length)
    return x


# --- padding, cutting and joining at once, also where sizes are symbols -------------------------------------------------------

Window = tuple[int | None, int | None]
"""height and width; None: as long as the map's side, whatever that is"""


def cut_windows(x: Tensor, window: Window) -> Tensor:
    """`to_windows` of maps of any size: zeros around those that windows do not divide."""
    if exporting():
        return _cut_by_index(x, window)
    size = window[0] or x.shape[1], window[1] or x.shape[2]
    return to_windows(pad_to_windows(x, size), size)


def join_windows(tokens: Tensor, window: Window, size: Size) -> Tensor:
    """[N x windows, h * w, C], the positions of a window row by row -> [N, H, W, C] of size (H, W), zeros cropped."""
    if exporting():
        return _join_by_index(tokens, window, size)
    high, wide = window[0] or size[0], window[1] or size[1]
    padded = size[0] + -size[0] % high, size[1] + -size[1] % wide
    return crop_padding(from_windows(tokens.unflatten(1, (high, wide)), padded), size)


def as_tokens(x: Tensor) -> Tensor:
    """[N, H, W, ...] -> [N, H * W, ...]."""
    if not exporting():
        return x.flatten(1, 2)
    number = torch.arange(x.shape[1] * x.shape[2], device=x.device)
    return x[:, number // x.shape[2], _rest(number, x.shape[2])]


def exporting() -> bool:
    """Whether steps are written down for images of other sizes than the one that is shown. Reshaping would have to know too
    much about those sizes, and padding may be needed for them where it is not here; so positions are looked up instead."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _cut_by_index(x: Tensor, window: Window) -> Tensor:
    (height, width), (down, across) = x.shape[1:3], _counts(x.shape[1:3], window)
    number = torch.arange(x.shape[0] * down * across, device=x.device)
    rows, row_inside = _places(_rest(number // across, down), height, down, window[0])
    columns, column_inside = _places(_rest(number, across), width, across, window[1])
    cut = x[(number // (down * across))[:, None, None], rows[:, :, None], columns[:, None, :]]
    inside = (row_inside[:, :, None] & column_inside[:, None, :])[(..., *[None] * (x.ndim - 3))]
    return cut * inside.to(x.dtype)


def _places(number: Tensor, side: int, count: int, part: int | None) -> tuple[Tensor, Tensor]:
    """Of windows with these numbers along a side: the positions [M, part] and whether they lie on the map."""
    if not part:
        place = torch.arange(side, device=number.device)[None]
        return place, torch.ones_like(place, dtype=torch.bool)
    place = number[:, None] * part + torch.arange(part, device=number.device) - (count * part - side) // 2
    return place.clamp(0, side - 1), (place >= 0) & (place < side)


def _join_by_index(tokens: Tensor, window: Window, size: Size) -> Tensor:
    down, across = _counts(size, window)
    rows, columns = (
        torch.arange(side, device=tokens.device) + (count * part - side) // 2 if part else torch.arange(side)
        for side, count, part in zip(size, (down, across), window)
    )
    high, wide = window[0] or size[0], window[1] or size[1]
    images = torch.arange(tokens.shape[0] // (down * across), device=tokens.device)[:, None, None]
    windows = (images * down + (rows // high)[:, None]) * across + columns // wide
    return tokens[windows, _rest(rows, high)[:, None] * wide + _rest(columns, wide)]


def _counts(size: Sequence[int], window: Window) -> tuple[int, int]:
    """Windows above and beside one another. Exported division rounds towards zero, so that -(-side // part) would not do."""
    down, across = ((side + part - 1) // part if part else 1 for side, part in zip(size, window))
    return down, across


def _rest(number: Tensor, divisor: int) -> Tensor:
    """number % divisor; ONNX has no remainder by a size."""
    return number - number // divisor * divisor
