"""The convolutional autoencoder of VQGAN (2012.09841, table 7) and latent diffusion, which most image tokenizers use.

Module names are those of VAR's checkpoints (down.N.block.M, mid.block_1, up.N.upsample.conv, ...). Checkpoints of other
families load through `ldm_weights` or `maskgit_names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError

Style = Literal["ldm", "maskgit"]
""""maskgit" is the VQGAN of MaskGIT (2202.04200): blocks without biases and with the 1x1 shortcut AFTER the block, average
pooling to halve, a 1x1 convolution at the encoder's end, no block more in the decoder, no attention."""


class ResidualBlock(nn.Module):
    """Twice (GroupNorm, swish, 3x3 convolution) beside an identity, or a 1x1 convolution where the width changes."""

    def __init__(self, width_in: int, width: int, groups: int, dropout: float = 0.0, style: Style = "ldm"):
        super().__init__()
        self.maskgit = style == "maskgit"
        bias, source = not self.maskgit, width if self.maskgit else width_in
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.nin_shortcut = nn.Conv2d(source, width, 1, bias=bias) if width_in != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        if self.maskgit and not isinstance(self.nin_shortcut, nn.Identity):
            return h + self.nin_shortcut(h)  # not of x: what the released weights were trained with
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
    """block_1, attention, then the other blocks."""

    def __init__(self, width: int, groups: int, attention: bool, blocks: int = 2, style: Style = "ldm"):
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups, style=style)
        self.attn_1 = SpatialAttention(width, groups) if attention else nn.Identity()
        for number in range(2, blocks + 1):
            self.add_module(f"block_{number}", ResidualBlock(width, width, groups, style=style))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class Level(nn.Module):
    """The blocks of one resolution and the step to the next one (`downsample` or `upsample`, absent at the end)."""

    def __init__(self, widths: Sequence[int], groups: int, attention: bool, dropout: float, style: Style = "ldm"):
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(a, b, groups, dropout, style) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(SpatialAttention(width, groups) for width in widths[1:] if attention)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return x


class Encoder(nn.Module):
    """Images [B, in_channels, H, W] -> [B, z_channels, H / d, W / d], d = patch x 2^(levels - 1).

    attention: after every block of the lowest resolution; middle_attention: between the two middle blocks.
    double_z: twice the channels come out (mean and log-variance of a KL autoencoder).
    patch: squares of patch x patch pixels become channels first, which saves the costly full resolution in small networks.
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
        patch: int = 1,
        style: Style = "ldm",
    ):
        super().__init__()
        check_groups(ch, ch_mult, groups)
        maskgit = style == "maskgit"
        self.patch = patch
        self.conv_in = nn.Conv2d(in_channels * patch**2, ch, 3, padding=1, bias=not maskgit)
        self.down = nn.ModuleList()
        width = ch
        for level, multiplier in enumerate(ch_mult):
            last = level == len(ch_mult) - 1
            widths = [width, *[ch * multiplier] * num_res_blocks]
            part = Level(widths, groups, attention and last and not maskgit, dropout, style)
            width = ch * multiplier
            if not last:
                part.downsample = nn.AvgPool2d(2) if maskgit else Downsample(width)
            self.down.append(part)
        self.mid = _middle(width, groups, middle_attention, num_res_blocks, style)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        size = 1 if maskgit else 3
        self.conv_out = nn.Conv2d(width, 2 * z_channels if double_z else z_channels, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level in self.down:
            assert isinstance(level, Level)
            h = level(h)
            if level.downsample is not None:
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features [B, z_channels, h, w] -> images [B, in_channels, h x d, w x d], unbounded; arguments as the encoder's.

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
        patch: int = 1,
        style: Style = "ldm",
    ):
        super().__init__()
        check_groups(ch, ch_mult, groups)
        maskgit = style == "maskgit"
        self.patch = patch
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = _middle(width, groups, middle_attention, num_res_blocks, style)
        levels = []
        for level in reversed(range(len(ch_mult))):
            lowest = level == len(ch_mult) - 1
            widths = [width, *[ch * ch_mult[level]] * (num_res_blocks + (not maskgit))]
            part = Level(widths, groups, attention and lowest and not maskgit, dropout, style)
            width = ch * ch_mult[level]
            if level:
                part.upsample = Upsample(width)
            levels.append(part)
        self.up = nn.ModuleList(reversed(levels))  # numbered by resolution, like the encoder's
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, in_channels * patch**2, 3, padding=1)

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
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


def _middle(width: int, groups: int, attention: bool, num_res_blocks: int, style: Style) -> Middle:
    maskgit = style == "maskgit"
    return Middle(width, groups, attention and not maskgit, num_res_blocks if maskgit else 2, style)


def check_groups(ch: int, ch_mult: Sequence[int], groups: int) -> None:
    for multiplier in ch_mult:
        if ch * multiplier % groups:
            raise InputError(f"ch={ch} x {multiplier} channels do not divide into {groups} norm groups: change ch or groups")


# --- other families' checkpoints --------------------------------------------------------------------------------------


def ldm_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the layout of VQGAN, latent diffusion and what came from them (VQGAN-LC, KL-16), with the three attention
    projections put together."""
    fused: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        found = re.fullmatch(r"(.*attn(?:_1|\.\d+))\.([qkv])\.(weight|bias)", key)
        if not found:
            fused[key] = value
        elif found[2] == "q":
            fused[f"{found[1]}.qkv.{found[3]}"] = torch.cat([state_dict[f"{found[1]}.{part}.{found[3]}"] for part in "qkv"])
    return fused


def maskgit_names(key: str) -> str:
    """Name of a weight of 1d-tokenizer's MaskGIT-VQGAN here."""
    key = re.sub(r"(^|\.)mid\.(\d+)\.", lambda found: f"{found[1]}mid.block_{int(found[2]) + 1}.", key)
    return key.replace(".upsample_conv.", ".upsample.conv.")


# --- value ranges -----------------------------------------------------------------------------------------------------


def to_signed(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return images * 2 - 1


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return torch.clamp((images + 1) / 2, 0, 1)
