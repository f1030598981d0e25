"""Tokens-to-token (2101.11986, section 3.1): overlapping windows, attention and again windows turn an image into tokens.

Each step cuts overlapping windows out of a map ("soft split"; equation 3 counts them), lets the windows attend to each other in
a narrow width and lays the results out as a map again (equations 1 and 2). The module stands on its own, in place of a patch
embedding. Parameter names are those of the released files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import Plan
from paperworks.backbones.fused_tokens import FusedMlp, packed, packed_after_norm
from paperworks.errors import InputError
from paperworks.layers.transformer import FeedForward

Window = Sequence[int]
"""kernel, stride, padding"""
TokensType = Literal["performer", "transformer", "patch"]

SPLITS: tuple[Window, ...] = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""of the paper: 224 pixels become 56 x 56, 28 x 28 and 14 x 14 tokens"""


def soft_split(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """[N, C, H, W] -> overlapping windows [N, h, w, C * kernel * kernel], zeros around the map."""
    return _windows(F.pad(x, (padding,) * 4), kernel, stride).flatten(3)


def _windows(padded: Tensor, kernel: int, stride: int) -> Tensor:
    """A view [N, h, w, C, kernel, kernel] of a padded map."""
    return padded.unfold(2, kernel, stride).unfold(3, kernel, stride).permute(0, 2, 3, 1, 4, 5)


def check_splits(splits: Sequence[Window]) -> None:
    if len(splits) != 3 or any(len(window) != 3 for window in splits):
        raise InputError(f"splits={splits}: three times (kernel, stride, padding)")


def split_size(size: tuple[int, int], window: Window) -> tuple[int, int]:
    """How many windows lie below and beside each other."""
    kernel, stride, padding = window
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    return rows, columns


class TokenStep(nn.Module):
    """Soft split, attention of the windows, back to a map: [N, C, H, W] -> [N, width, h, w].

    The windows are wider (C * kernel^2) than the tokens, so the attention's values, not its input, are what is added to its
    result. A subclass has the layers and `attend`.
    """

    mlp: nn.Module

    def __init__(self, channels: int, width: int, window: Window, dropout: float = 0.0):
        super().__init__()
        kernel, stride, padding = window
        self.channels, self.kernel, self.stride, self.padding = channels, kernel, stride, padding
        self.norm1 = nn.LayerNorm(channels * kernel**2)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = dropout

    def products(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        """Windows -> three times the width with the values last, the attention's output, and the MLP's two."""
        raise NotImplementedError

    def attend(self, projected: Tensor) -> Tensor:
        """[N, L, 3 * width] -> mixed values [N, L, width]."""
        raise NotImplementedError

    def split(self, x: Tensor) -> Tensor:
        return soft_split(x, self.kernel, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        into, out, *_ = self.products()
        windows = self.split(x)
        height, width = windows.shape[1:3]
        projected = into(self.norm1(windows.flatten(1, 2)))
        values = projected.chunk(3, -1)[2]
        mixed = out(self.attend(projected).to(values.dtype))
        tokens = values + F.dropout(mixed, self.dropout, self.training)
        return as_map(tokens + self.mlp(self.norm2(tokens)), height, width)

    def for_inference(self, plan: Plan) -> nn.Module:
        return FusedTokenStep(self, plan)


class TokenTransformer(TokenStep):
    """Softmax attention with one head. It divides by the root of the window's width, not of the head's: the released weights
    were trained that way."""

    def __init__(self, channels: int, width: int, window: Window):
        super().__init__(channels, width, window)
        inputs = channels * window[0] ** 2
        self.scale = inputs**-0.5
        self.attn = nn.ModuleDict({"qkv": nn.Linear(inputs, 3 * width, bias=False), "proj": nn.Linear(width, width)})
        self.mlp: FeedForward = FeedForward(width, width)

    def products(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        qkv, proj = self.attn["qkv"], self.attn["proj"]
        assert isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
        return qkv, proj, self.mlp.fc1, self.mlp.fc2

    def attend(self, projected: Tensor) -> Tensor:
        q, k, v = projected[:, None].chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)[:, 0]


class TokenPerformer(TokenStep):
    """Attention whose cost is linear in the number of tokens (Performer, 2009.14794, positive random features).

    exp(q k) is the expectation of phi(q) phi(k) with phi(x) = exp(w x - |x|^2 / 2) / sqrt(m), so attention becomes two small
    products. The directions w (m rows, orthogonal, of length sqrt(m)) are drawn once and are part of the weights.
    """

    def __init__(self, channels: int, width: int, window: Window, *, features: int | None = None, dropout: float = 0.1):
        super().__init__(channels, width, window, dropout)
        features = features or max(1, width // 2)
        self.kqv = nn.Linear(channels * window[0] ** 2, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp: nn.Sequential = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout)
        )
        self.w = nn.Parameter(torch.empty(features, width), requires_grad=False)
        nn.init.orthogonal_(self.w, gain=math.sqrt(features))

    def products(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        fc1, fc2 = self.mlp[0], self.mlp[2]
        assert isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)
        return self.kqv, self.proj, fc1, fc2

    def attend(self, projected: Tensor) -> Tensor:
        return performer_attention(projected, self.w)


class FusedTokenStep(nn.Module):
    """A step in evaluation. Windows are gathered with their channels together, in runs of kernel * C numbers, and the first
    product's weights are reordered to match."""

    def __init__(self, step: TokenStep, plan: Plan):
        super().__init__()
        into, out, fc1, fc2 = step.products()
        order = torch.arange(into.in_features, device=into.weight.device).view(step.channels, -1).t().flatten()
        self.kernel, self.stride, self.padding, self.eps = step.kernel, step.stride, step.padding, step.norm1.eps
        self.into = packed_after_norm(step.norm1, into, plan, order)
        self.out = packed(out, plan)
        self.mlp = FusedMlp(step.norm2, fc1, fc2, plan)
        self.w = nn.Parameter(step.w, requires_grad=False) if isinstance(step, TokenPerformer) else None
        self.scale = step.scale if isinstance(step, TokenTransformer) else None
        plan.note("tokens-to-token step as four packed products, norms folded, activation and residuals in place")

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.padding,) * 4)
        windows = _windows(padded, self.kernel, self.stride).permute(0, 1, 2, 4, 5, 3)
        count, height, width = windows.shape[:3]
        rows = windows.reshape(count * height * width, -1)
        projected = self.into(F.layer_norm(rows, rows.shape[1:], eps=self.eps)).view(count, height * width, -1)
        if self.w is not None:
            mixed = performer_attention(projected, self.w)
        else:
            q, k, v = projected[:, None].chunk(3, -1)
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)[:, 0]
        values = projected.chunk(3, -1)[2].flatten(0, 1)
        tokens = self.mlp(self.out(mixed.to(values.dtype).flatten(0, 1)).add_(values))
        return as_map(tokens.view(count, height * width, -1), height, width)


def performer_attention(kqv: Tensor, w: Tensor) -> Tensor:
    """Keys, queries and values [N, L, 3 * width] and directions [m, width] -> mixed values float32 [N, L, width].

    Always in float32: the exponent reaches m / 2, its exponential is beyond float16, and bfloat16 would be off by percents.
    """
    with _full_precision(kqv.device.type):
        pair, v = kqv.float().split((2 * w.shape[1], w.shape[1]), -1)
        pair = pair.unflatten(-1, (2, -1))
        exponent = pair @ w.float().t() - (pair.square().sum(-1, keepdim=True) + math.log(len(w))) / 2
        k, q = exponent.exp().unbind(2)
        total = q @ k.sum(1)[..., None]
        return q @ (k.transpose(1, 2) @ v) / (total + 1e-8)


def _full_precision(device: str) -> AbstractContextManager[None]:
    """No autocast; the meta device, on which operations are only counted, knows none."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


class SoftProjection(nn.Linear):
    """The last soft split and its linear layer: a convolution with the same weights, [N, C, H, W] -> [N, embed, h, w]."""

    def __init__(self, channels: int, embed: int, window: Window):
        kernel, stride, padding = window
        super().__init__(channels * kernel**2, embed)
        self.channels, self.kernel, self.stride, self.padding = channels, kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.weight.unflatten(1, (self.channels, self.kernel, self.kernel))
        return F.conv2d(x, kernels, self.bias, self.stride, self.padding)

    def for_inference(self, plan: Plan) -> nn.Module:
        conv = nn.Conv2d(self.channels, self.out_features, self.kernel, self.stride, self.padding)
        conv.load_state_dict({"weight": self.weight.view_as(conv.weight), "bias": self.bias})
        return conv.to(self.weight.device)


class TokensToToken(nn.Module):
    """Image [N, in_chans, H, W] -> tokens [N, h * w, embed], rows first."""

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 384,
        token_dim: int = 64,
        tokens_type: TokensType = "performer",
        splits: Sequence[Window] = SPLITS,
    ):
        super().__init__()
        check_splits(splits)
        kinds = {"performer": TokenPerformer, "transformer": TokenTransformer}
        if tokens_type not in kinds:
            raise InputError(f"tokens_type={tokens_type!r}: there are 'performer', 'transformer' and 'patch'")
        self.splits = tuple(splits)
        self.attention1 = kinds[tokens_type](in_chans, token_dim, splits[0])
        self.attention2 = kinds[tokens_type](token_dim, token_dim, splits[1])
        self.project = SoftProjection(token_dim, embed_dim, splits[2])

    def steps(self) -> list[nn.Module]:
        """What makes the maps before the tokens."""
        return [self.attention1, self.attention2]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tokens below and beside each other for an image of `size` pixels."""
        for window in self.splits:
            size = split_size(size, window)
        return size

    def forward(self, x: Tensor) -> Tensor:
        return as_tokens(self.project(self.attention2(self.attention1(x))))


class HardSplit(nn.Module):
    """Square patches without overlap, as ViT cuts them: what the paper compares with."""

    def __init__(self, in_chans: int = 3, embed_dim: int = 384, patch: int = 16):
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(in_chans, embed_dim, patch, patch)

    def steps(self) -> list[nn.Module]:
        return []

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.patch, size[1] // self.patch

    def forward(self, x: Tensor) -> Tensor:
        return as_tokens(self.project(x))


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[N, height * width, C] -> [N, C, height, width], a view whose channels lie together."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def as_tokens(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H * W, C], rows first."""
    return x.flatten(2).transpose(1, 2)
