"""TensorFlow's "SAME": output size ceil(input / stride), the odd pixel of padding on the right and below.

Where the padding is the same on both sides the operator pads by itself. A pooling gets the odd pixel by rounding its output
size up, so that no map is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError


def same_pads(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Pixels (before, after) along one side of the map."""
    reach = dilation * (kernel - 1) + 1
    total = reach - stride + (-size) % stride
    if reach < stride:
        total = max(0, total)
    return total // 2, total - total // 2


def sizes_vary() -> bool:
    """Whether the map's size is not a number yet: then its parity must not decide which operators are recorded."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def same_windows(x: Tensor, kernel: int, value: float = 0.0) -> Tensor:
    """A map in which windows of an odd side at every second pixel lie where "SAME" has them, for sizes that vary.

    Always padded alike and then cut by the parity, so that every kernel's result has one and the same expression for its size:
    (side + side % 2 - 2) // 2 + 1. Exporters cannot prove other forms equal.
    """
    height, width = x.shape[2:]
    if kernel == 1:
        return x[:, :, : height + height % 2 - 1, : width + width % 2 - 1]
    half = kernel // 2
    padded = F.pad(x, (half, half, half, half), value=value)
    return padded[:, :, 1 - height % 2 :, 1 - width % 2 :]


class _SamePool2d(nn.Module):
    def __init__(self, kernel_size: int, stride: int = 1):
        super().__init__()
        if kernel_size < stride:
            raise InputError(f"a pooling of {kernel_size} pixels with stride {stride} skips pixels: at least {stride}")
        self.kernel_size, self.stride = kernel_size, stride

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}"

    def _pads(self, x: Tensor) -> tuple[int, int, int, int]:
        """(left, right, above, below), in the order of F.pad."""
        sides = (same_pads(side, self.kernel_size, self.stride) for side in (x.shape[3], x.shape[2]))
        (left, right), (above, below) = sides
        return left, right, above, below

    def _windows(self, x: Tensor, value: float) -> Tensor:
        if sizes_vary() and self.stride == 2 and self.kernel_size % 2:
            return same_windows(x, self.kernel_size, value)
        return F.pad(x, self._pads(x), value=value)


class SameMaxPool2d(_SamePool2d):
    """[N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)]; what is outside the map never wins."""

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1 and sizes_vary():
            return F.max_pool2d(self._windows(x, -torch.inf), self.kernel_size, self.stride)
        left, _, above, _ = self._pads(x)
        return F.max_pool2d(x, self.kernel_size, self.stride, (above, left), ceil_mode=self.stride > 1)


class SameAvgPool2d(_SamePool2d):
    """[N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)]; the mean is over the pixels inside the map.

    count_padding: zeros outside count too (what timm's AvgPool2dSame does).
    """

    def __init__(self, kernel_size: int, stride: int = 1, count_padding: bool = False):
        super().__init__(kernel_size, stride)
        self.count_padding = count_padding

    def forward(self, x: Tensor) -> Tensor:
        if self.count_padding:
            return F.avg_pool2d(self._windows(x, 0.0), self.kernel_size, self.stride)
        if self.stride > 1 and sizes_vary():
            inside = self._windows(torch.ones_like(x[:1, :1]), 0.0)
            mean = F.avg_pool2d(self._windows(x, 0.0), self.kernel_size, self.stride)
            return mean / F.avg_pool2d(inside, self.kernel_size, self.stride)
        left, _, above, _ = self._pads(x)
        padding = (above, left)
        return F.avg_pool2d(x, self.kernel_size, self.stride, padding, ceil_mode=self.stride > 1, count_include_pad=False)
