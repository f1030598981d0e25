"""The convolutional autoencoder of latent diffusion and VQGAN (2012.09841, table 7), as VAR's tokenizer uses it.

Module names are those of the released checkpoints (down.N.block.M, mid.block_1, up.N.upsample.conv, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError


class ResidualBlock(nn.Module):
    """Twice (GroupNorm, swish, 3x3 convolution) beside an identity, or a 1x1 convolution where the width changes."""

    def __init__(self, width_in: int, width: int, groups: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single-head attention over all positions, projections as 1x1 convolutions."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # [B, 3C, H, W] -> three of [B, HW, C]
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Downsample(nn.Module):
    """Halves the side by a strided convolution, padded on the right and at the bottom only."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    def __init__(self, width: int, groups: int, attention: bool):
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups)
        self.attn_1 = SpatialAttention(width, groups) if attention else nn.Identity()
        self.block_2 = ResidualBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution and the step to the next one (`downsample` or `upsample`, absent at the end)."""

    def __init__(self, widths: Sequence[int], groups: int, attention: bool, dropout: float):
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(a, b, groups, dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(SpatialAttention(width, groups) for width in widths[1:] if attention)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return x


class Encoder(nn.Module):
    """Images [B, in_channels, H, W] -> [B, z_channels, H / 2^(levels-1), W / 2^(levels-1)].

    attention: after every block of the lowest resolution; middle_attention: between the two middle blocks.
    double_z: twice the channels come out (mean and log-variance of a KL autoencoder).
    """

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 32,
        in_channels: int = 3,
        double_z: bool = False,
        attention: bool = True,
        middle_attention: bool = True,
        dropout: float = 0.0,
        groups: int = 32,
    ):
        super().__init__()
        check_groups(ch, ch_mult, groups)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for level, multiplier in enumerate(ch_mult):
            last = level == len(ch_mult) - 1
            part = Level([width, *[ch * multiplier] * num_res_blocks], groups, attention and last, dropout)
            width = ch * multiplier
            if not last:
                part.downsample = Downsample(width)
            self.down.append(part)
        self.mid = Middle(width, groups, middle_attention)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            assert isinstance(level, Level)
            h = level(h)
            if level.downsample is not None:
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features [B, z_channels, h, w] -> images [B, in_channels, h * 2^(levels-1), w * 2^(levels-1)], unbounded.

    Each resolution has one block more than the encoder's. `last_layer` is the weight that adaptive losses look at.
    """

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 32,
        in_channels: int = 3,
        attention: bool = True,
        middle_attention: bool = True,
        dropout: float = 0.0,
        groups: int = 32,
    ):
        super().__init__()
        check_groups(ch, ch_mult, groups)
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = Middle(width, groups, middle_attention)
        levels = []
        for level in reversed(range(len(ch_mult))):
            lowest = level == len(ch_mult) - 1
            part = Level([width, *[ch * ch_mult[level]] * (num_res_blocks + 1)], groups, attention and lowest, dropout)
            width = ch * ch_mult[level]
            if level:
                part.upsample = Upsample(width)
            levels.append(part)
        self.up = nn.ModuleList(reversed(levels))  # numbered by resolution, like the encoder's
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, in_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            assert isinstance(level, Level)
            h = level(h)
            if level.upsample is not None:
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def check_groups(ch: int, ch_mult: Sequence[int], groups: int) -> None:
    for multiplier in ch_mult:
        if ch * multiplier % groups:
            raise InputError(f"ch={ch} x {multiplier} channels do not divide into {groups} norm groups: change ch or groups")


def to_signed(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return images * 2 - 1


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return torch.clamp((images + 1) / 2, 0, 1)
