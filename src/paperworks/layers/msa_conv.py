"""Self-attention inside a convolution (MSA-Conv, 2310.04134): every position attends to the positions under its kernel.

Two operators, each with its exact gradient, as loops over the K = kh * kw offsets of a padded map: nothing of the size
[N, C, K, H, W], which an unfolded form holds, is ever made. Neighbours outside the map are zeros that stay in the softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError

Pair = tuple[int, int]


def window_scores(query: Tensor, key: Tensor, kernel_size: Pair, dilation: int = 1) -> Tensor:
    """q . k of the K neighbours, row by row: [N, C, H, W] twice -> [N, K, H, W]."""
    _check(query, key, kernel_size)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return _Scores.apply(query, key, kernel_size, dilation)
    return _scores(query, key, kernel_size, dilation)


def window_mix(weights: Tensor, value: Tensor, kernel_size: Pair, dilation: int = 1) -> Tensor:
    """Sum over the neighbours of weight times value: [N, K, H, W] and [N, C, H, W] -> [N, C, H, W]."""
    if weights.shape[1] != kernel_size[0] * kernel_size[1]:
        raise InputError(f"{weights.shape[1]} weights per position for a kernel of {kernel_size[0]}x{kernel_size[1]}")
    if torch.is_grad_enabled() and (weights.requires_grad or value.requires_grad):
        return _Mix.apply(weights, value, kernel_size, dilation)
    return _mix(weights, value, kernel_size, dilation)


def _margins(kernel_size: Pair, dilation: int) -> Pair:
    return dilation * (kernel_size[0] - 1) // 2, dilation * (kernel_size[1] - 1) // 2


def _pad(x: Tensor, kernel_size: Pair, dilation: int) -> Tensor:
    rows, columns = _margins(kernel_size, dilation)
    return F.pad(x, (columns, columns, rows, rows))


def _crop(x: Tensor, kernel_size: Pair, dilation: int) -> Tensor:
    rows, columns = _margins(kernel_size, dilation)
    return x[:, :, rows : x.shape[2] - rows, columns : x.shape[3] - columns]


def _views(padded: Tensor, size: torch.Size, kernel_size: Pair, dilation: int) -> Iterator[Tensor]:
    """The padded map seen from each offset of the kernel."""
    height, width = size[2:]
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            top, left = row * dilation, column * dilation
            yield padded[:, :, top : top + height, left : left + width]


def _scores(query: Tensor, key: Tensor, kernel_size: Pair, dilation: int) -> Tensor:
    views = _views(_pad(key, kernel_size, dilation), query.shape, kernel_size, dilation)
    return torch.stack([(query * view).sum(1) for view in views], 1)


def _mix(weights: Tensor, value: Tensor, kernel_size: Pair, dilation: int) -> Tensor:
    out = torch.zeros_like(value)
    for index, view in enumerate(_views(_pad(value, kernel_size, dilation), value.shape, kernel_size, dilation)):
        out = torch.addcmul(out, weights[:, index : index + 1], view)
    return out


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(query: Tensor, key: Tensor, kernel_size: Pair, dilation: int) -> Tensor:
        return _scores(query, key, kernel_size, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query, key, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(query, key)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key = ctx.saved_tensors
        given = ctx.kernel_size, ctx.dilation
        padded = _pad(key, *given)
        grad_query, grad_padded = torch.zeros_like(query), torch.zeros_like(padded)
        pairs = zip(_views(padded, query.shape, *given), _views(grad_padded, query.shape, *given))
        for index, (view, grad_view) in enumerate(pairs):
            own = grad[:, index : index + 1]
            grad_query.addcmul_(own, view)
            grad_view.addcmul_(own, query)
        return grad_query, _crop(grad_padded, *given), None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(weights: Tensor, value: Tensor, kernel_size: Pair, dilation: int) -> Tensor:
        return _mix(weights, value, kernel_size, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, value, ctx.kernel_size, ctx.dilation = inputs
        ctx.save_for_backward(weights, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights, value = ctx.saved_tensors
        given = ctx.kernel_size, ctx.dilation
        padded = _pad(value, *given)
        grad_weights, grad_padded = torch.empty_like(weights), torch.zeros_like(padded)
        pairs = zip(_views(padded, value.shape, *given), _views(grad_padded, value.shape, *given))
        for index, (view, grad_view) in enumerate(pairs):
            grad_weights[:, index] = (grad * view).sum(1)
            grad_view.addcmul_(weights[:, index : index + 1], grad)
        return grad_weights, _crop(grad_padded, *given), None, None


def _check(query: Tensor, key: Tensor, kernel_size: Pair) -> None:
    if query.shape != key.shape:
        raise InputError(f"queries {list(query.shape)} and keys {list(key.shape)} differ in shape")
    if query.dtype == torch.float16 and query.device.type == "cpu":
        raise InputError("MSA-Conv in float16 needs a GPU; on a CPU take float32 or bfloat16")


def as_pair(kernel_size: int | Pair) -> Pair:
    pair = (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[1])
    if any(size < 1 or size % 2 == 0 for size in pair):
        raise InputError(f"kernel {pair[0]}x{pair[1]}: an even side shifts the map; take odd ones")
    return pair


DIRECTIONS: tuple[Pair, ...] = ((-1, 0), (1, 0), (0, -1), (0, 1))


def shifted(x: Tensor, step: int) -> Tensor:
    """Four groups of channels rolled by `step` up, down, left and right around the map's edges (our reading of the
    multi-directional cyclic shift)."""
    parts = torch.tensor_split(x, len(DIRECTIONS), 1)
    return torch.cat([part.roll((step * dy, step * dx), (2, 3)) for part, (dy, dx) in zip(parts, DIRECTIONS)], 1)


class MSAConv2d(nn.Module):
    """Multi-head attention under a sliding kernel: [N, C, H, W] -> [N, C, H, W], any H and W.

    kind: "standard", or "depthwise" with a head per channel. heads: of the standard kind. shift: cells by which four groups of
    keys and values are rolled in four directions before a window is taken; the window then sees four places at that distance.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Pair = 3,
        dilation: int = 1,
        heads: int = 1,
        kind: Literal["standard", "depthwise"] = "standard",
        shift: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if kind not in ("standard", "depthwise"):
            raise InputError(f"MSA-Conv of kind {kind!r}: there are 'standard' and 'depthwise'")
        self.heads = channels if kind == "depthwise" else heads
        if channels % self.heads:
            raise InputError(f"{channels} channels do not divide into {self.heads} heads")
        if dilation < 1 or shift < 0:
            raise InputError(f"dilation {dilation} and shift {shift}: dilation counts cells from 1, shift from 0")
        self.kernel_size, self.dilation, self.shift = as_pair(kernel_size), dilation, shift
        self.qkv_conv = nn.Conv2d(channels, 3 * channels, 1)
        self.dropout = dropout
        self.scale = (channels // self.heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv_conv(x).chunk(3, 1)
        if self.shift:
            key, value = shifted(key, self.shift), shifted(value, self.shift)
        batch, channels, height, width = x.shape
        split = batch * self.heads, channels // self.heads, height, width
        query, key, value = (part.reshape(split) for part in (query * self.scale, key, value))
        weights = window_scores(query, key, self.kernel_size, self.dilation).softmax(1)
        weights = F.dropout(weights, self.dropout, self.training)
        return window_mix(weights, value, self.kernel_size, self.dilation).reshape(x.shape)


class MSAConvLayer(nn.Module):
    """The released layer: relu(conv(x + attention(x))) with a convolution of the attention's kernel size."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        kernel_size: int | Pair = 3,
        dilation: int = 1,
        stride: int = 1,
        padding: int = 1,
        bias: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.attention = MSAConv2d(channels, kernel_size, dilation, dropout=dropout)
        self.mlp = nn.Conv2d(channels, outputs, as_pair(kernel_size), stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.mlp(x + self.attention(x)))
