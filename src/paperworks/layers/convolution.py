"""Convolution with batch norm, and depthwise token mixers that keep the map's size: all channels, a part of them, or the
Inception split into four branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.same_padding import same_pads, same_windows, sizes_vary


class ConvNorm(nn.Module):
    """Convolution without bias and with padding size // 2, batch norm, and ReLU where `activation`."""

    norm_pairs = (("conv", "bn"),)

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, activation: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x, inplace=not torch.is_grad_enabled()) if self.activation else x


class DepthwiseConv2d(nn.Conv2d):
    """One kernel_size x kernel_size kernel per channel, with bias."""

    def __init__(self, channels: int, kernel_size: int = 7, dilation: int = 1):
        padding = same_padding("DepthwiseConv2d", kernel_size, dilation)
        super().__init__(channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels)


class SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME": output size ceil(input / stride), the odd pixel of padding on the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        side = self.kernel_size[0]
        if sizes_vary() and (self.kernel_size, self.stride, self.dilation) == ((side, side), (2, 2), (1, 1)) and side % 2:
            return super().forward(same_windows(x, side))
        (above, below), (left, right) = (same_pads(*side) for side in zip(x.shape[2:], *self._sides()))
        if not sizes_vary() and (above, left) == (below, right):
            return F.conv2d(x, self.weight, self.bias, self.stride, (above, left), self.dilation, self.groups)
        return super().forward(F.pad(x, (left, right, above, below)))

    def _sides(self) -> tuple[tuple[int, ...], ...]:
        return self.kernel_size, self.stride, self.dilation


class PartialConv2d(nn.Module):
    """Depthwise convolution of the LAST int(channels * ratio) channels; the first ones pass through (2303.16900, table 1)."""

    def __init__(self, channels: int, kernel_size: int = 3, ratio: float = 0.25, dilation: int = 1):
        super().__init__()
        part = int(channels * ratio)
        if not 1 <= part <= channels:
            raise InputError(
                f"PartialConv2d: ratio {ratio} of {channels} channels convolves {part}; it must be 1 to {channels}"
            )
        self.conv = DepthwiseConv2d(part, kernel_size, dilation)
        self.split = [channels - part, part]

    def forward(self, x: Tensor) -> Tensor:
        kept, mixed = torch.split(x, self.split, dim=1)
        return torch.cat((kept, self.conv(mixed)), dim=1)


class InceptionDWConv2d(nn.Module):
    """Inception depthwise convolution (2303.16900, equations 4 to 6).

    Of C channels g = int(C * branch_ratio) each go through a square, a 1 x band and a band x 1 depthwise kernel, all with
    bias; the C - 3g others pass through. Channel order in and out: [identity | square | 1 x band | band x 1].
    """

    def __init__(
        self,
        channels: int,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
        dilation: int = 1,
    ):
        super().__init__()
        group = int(channels * branch_ratio)
        if group < 1 or 3 * group > channels:
            raise InputError(
                f"InceptionDWConv2d: branch ratio {branch_ratio} gives three branches of {group} among {channels} channels; "
                f"each needs at least 1 and together at most {channels}"
            )
        square = same_padding("InceptionDWConv2d", square_kernel_size, dilation)
        band = same_padding("InceptionDWConv2d", band_kernel_size, dilation)
        self.dwconv_hw = nn.Conv2d(group, group, square_kernel_size, padding=square, dilation=dilation, groups=group)
        self.dwconv_w = nn.Conv2d(group, group, (1, band_kernel_size), padding=(0, band), dilation=(1, dilation), groups=group)
        self.dwconv_h = nn.Conv2d(group, group, (band_kernel_size, 1), padding=(band, 0), dilation=(dilation, 1), groups=group)
        self.split = [channels - 3 * group, group, group, group]

    def forward(self, x: Tensor) -> Tensor:
        kept, square, wide, high = torch.split(x, self.split, dim=1)
        return torch.cat((kept, self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(high)), dim=1)


def same_padding(who: str, kernel_size: int, dilation: int = 1) -> int:
    """Padding on each side that keeps the size of the map; only odd kernels have one."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"{who}: kernel size {kernel_size} changes the size of the map; take an odd one")
    return dilation * (kernel_size // 2)
