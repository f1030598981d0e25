"""Convolutional classifiers that judge overlapping patches as real or made."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """PatchGAN (1611.07004, section 3.2.2). Images [B, C, H, W] in [-1, 1] -> one logit per patch [B, 1, h, w].

    `layers` stride-2 convolutions of 4x4, widths doubling up to 8x. Group norm instead of the original's batch norm, so that
    real and made images need not share a batch and every process sees the same function.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, groups: int = 8):
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        current = width
        for number in range(1, layers + 1):
            following = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            steps += [
                nn.Conv2d(current, following, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(groups, following),
                nn.LeakyReLU(0.2),
            ]
            current = following
        steps.append(nn.Conv2d(current, 1, 4, padding=1))
        self.steps = nn.Sequential(*steps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.steps(images)


class BlurDiscriminator(nn.Module):
    """TiTok's (2406.07550): `stages` of a 3x3 convolution and a halving by blurring, the largest answers on a grid of 16 x 16.
    Images [B, C, H, W] -> logits [B, 1, 16, 16]. Module names are those of its code."""

    def __init__(self, in_channels: int = 3, width: int = 128, stages: int = 3, groups: int = 32):
        super().__init__()
        widths = [width, *[width * 2**number for number in range(stages)]]
        self.block_in = nn.Sequential(nn.Conv2d(in_channels, width, 5, padding=2), nn.LeakyReLU(0.1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), Blur(), nn.GroupNorm(groups, after), nn.LeakyReLU(0.1))
            for before, after in pairwise(widths)
        )
        self.pool = nn.AdaptiveMaxPool2d(16)
        last = widths[-1]
        self.to_logits = nn.Sequential(nn.Conv2d(last, last, 1), nn.LeakyReLU(0.1), nn.Conv2d(last, 1, 5, padding=2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.block_in(images)
        for block in self.blocks:
            x = block(x)
        return self.to_logits(self.pool(x))


class Blur(nn.Module):
    """Halves each side, rounding up, with the kernel (1, 3, 3, 1) in both directions."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", (line[:, None] * line)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        missing = [max((math.ceil(side / 2) - 1) * 2 + 4 - side, 0) for side in x.shape[-2:]]
        (top, left), (bottom, right) = ([part // 2 for part in missing], [part - part // 2 for part in missing])
        channels = x.shape[1]
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.kernel.to(x.dtype).expand(channels, 1, 4, 4), stride=2, groups=channels)
