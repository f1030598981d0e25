"""Large depthwise kernels: small parallel branches that merge into them, and the form that a CPU computes fastest.

A k x k kernel of dilation r is a sparse kernel of r (k - 1) + 1 columns, so parallel branches with batch norms add up to one
large kernel with a bias (2311.15599, section 3.1 and appendix; 2203.06717, section 3.3 with undilated branches).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.convolution import DepthwiseConv2d, same_padding
from paperworks.layers.folding import scale_and_shift

Branch = tuple[int, int]
"""kernel size and dilation"""

DILATED_BRANCHES: Mapping[int, Sequence[Branch]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
"""of a dilated re-parameterised kernel, by its size (2311.15599, appendix)"""

SLOW_IN_CHANNELS_LAST = (11, 13)
"""sizes for which PyTorch's depthwise convolution on a CPU is slower channels-last than with the next larger kernel, 15"""


class _ConvNorm(nn.Module):
    """Depthwise convolution without bias, batch norm."""

    def __init__(self, channels: int, kernel_size: int, dilation: int = 1):
        super().__init__()
        padding = same_padding("ReparamDepthwise", kernel_size, dilation)
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel [C, 1, k, k] without gaps and bias [C], in float64."""
        found = scale_and_shift(self.bn)
        assert found is not None  # always has running statistics
        scale, shift = found
        kernel = self.conv.weight.double() * scale.view(-1, 1, 1, 1)
        return spread(kernel, self.conv.dilation[0]), shift


class ReparamDepthwise(nn.Module):
    """bn(K x K) + sum over branches of bn(k x k, dilated), all depthwise, on [N, C, H, W].

    `merged()` is the one convolution with the same outputs in evaluation.
    """

    def __init__(self, channels: int, kernel_size: int, branches: Sequence[Branch]):
        super().__init__()
        self.channels, self.kernel_size = channels, kernel_size
        for size, dilation in branches:
            if dilation * (size - 1) + 1 > kernel_size:
                raise InputError(
                    f"a branch of {size}x{size} with dilation {dilation} is larger than {kernel_size}x{kernel_size}"
                )
        self.origin = _ConvNorm(channels, kernel_size)
        self.branches = nn.ModuleDict()
        for size, rate in branches:
            name = f"k{size}_{rate}"
            if name in self.branches:  # equal branches are told apart by a number
                name += f"_{len(self.branches)}"
            self.branches[name] = _ConvNorm(channels, size, rate)

    def forward(self, x: Tensor) -> Tensor:
        out = self.origin(x)
        for branch in self.branches.values():
            out = out + branch(x)
        return out

    @torch.no_grad()
    def merged(self) -> DepthwiseConv2d:
        kernel, bias = self.origin.folded()
        for branch in self.branches.values():
            assert isinstance(branch, _ConvNorm)
            smaller, shift = branch.folded()
            gap = (self.kernel_size - smaller.shape[-1]) // 2
            kernel, bias = kernel + F.pad(smaller, [gap] * 4), bias + shift
        conv = DepthwiseConv2d(self.channels, self.kernel_size).to(self.origin.conv.weight)
        assert conv.bias is not None
        conv.weight.copy_(kernel)
        conv.bias.copy_(bias)
        return conv.train(self.training)


def dilated_reparam(channels: int, kernel_size: int) -> ReparamDepthwise:
    """UniRepLKNet's large kernel with the branches that belong to its size."""
    if kernel_size not in DILATED_BRANCHES:
        raise InputError(f"no dilated branches for a kernel of {kernel_size}; there are {sorted(DILATED_BRANCHES)}")
    return ReparamDepthwise(channels, kernel_size, DILATED_BRANCHES[kernel_size])


def spread(kernel: Tensor, dilation: int) -> Tensor:
    """[..., k, k] of a dilated convolution as the plain kernel [..., r (k - 1) + 1, r (k - 1) + 1] with zeros between."""
    if dilation == 1:
        return kernel
    size = dilation * (kernel.shape[-1] - 1) + 1
    plain = kernel.new_zeros(*kernel.shape[:-2], size, size)
    plain[..., ::dilation, ::dilation] = kernel
    return plain


def fast_on_cpu(conv: nn.Conv2d) -> nn.Conv2d:
    """The same depthwise convolution in the size that runs fastest on channels-last maps: kernels of 11 and 13 get a border of
    zeros. (Channels-first, kernels of 15 and more leave the fast path: 40 times slower at 31x31.)"""
    size = conv.kernel_size[0]
    square = conv.kernel_size == (size, size) and conv.dilation == (1, 1) and conv.stride == (1, 1)
    if not square or size not in SLOW_IN_CHANNELS_LAST or conv.groups != conv.in_channels or conv.bias is None:
        return conv
    larger = DepthwiseConv2d(conv.in_channels, 15).to(conv.weight)
    border = (15 - size) // 2
    with torch.no_grad():
        larger.weight.copy_(F.pad(conv.weight, [border] * 4))
        assert larger.bias is not None
        larger.bias.copy_(conv.bias)
    return larger.requires_grad_(conv.weight.requires_grad)
