"""A residual network that judges whole images as real or made (in the manner of 1912.04958, figure 7)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError

SLOPE = 0.2
"""of the leaky ReLUs"""


class HalvingBlock(nn.Module):
    """Two 3x3 convolutions, then half the size; beside it a halved 1x1 convolution. The sum is divided by sqrt(2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), SLOPE)), SLOPE)
        return (F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


class ResidualDiscriminator(nn.Module):
    """Images [N, channels, size, size] in [-1, 1] -> logits [N, 1].

    Widths double from `width` up to `widest` while the map halves down to 4 pixels. The last map is joined by the spread of
    the batch (1710.10196, section 3), which tells a maker of one image from one of many.
    """

    def __init__(self, size: int, channels: int = 3, width: int = 64, widest: int = 512):
        super().__init__()
        if size < 8 or size & (size - 1):
            raise InputError(f"size={size}: images that are halved down to 4 pixels have 8, 16, 32, 64 ... pixels")
        widths = [min(width << step, widest) for step in range(int(math.log2(size)) - 1)]
        self.enter = nn.Conv2d(channels, widths[0], 1)
        self.blocks = nn.Sequential(*(HalvingBlock(before, after) for before, after in pairwise(widths)))
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.hidden = nn.Linear(widths[-1] * 16, widths[-1])
        self.to_logit = nn.Linear(widths[-1], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.leaky_relu(self.enter(images), SLOPE))
        spread = (x.var(0, correction=0) + 1e-8).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        x = F.leaky_relu(self.last(torch.cat((x, spread), 1)), SLOPE)
        return self.to_logit(F.leaky_relu(self.hidden(x.flatten(1)), SLOPE))
