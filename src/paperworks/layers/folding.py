"""Batch norm in evaluation is a scale and a shift per channel, which the convolution beside it can take over exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def scale_and_shift(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) in float64, or None for a norm that uses the statistics of each batch."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    return scale, shift


@torch.no_grad()
def fold_after(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> bool:
    """Change `layer` in place so that layer(x) is what norm(layer(x)) was; False where that is impossible."""
    found = scale_and_shift(norm)
    if found is None:
        return False
    scale, shift = found
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else shift + layer.bias.double() * scale
    _set(layer, weight, bias)
    return True


@torch.no_grad()
def fold_before(norm: nn.BatchNorm2d, layer: nn.Conv2d) -> bool:
    """Change `layer` in place so that layer(x) is what layer(norm(x)) was; False where that is impossible: padding
    surrounds the normalised map with zeros, which no weight can imitate."""
    found = scale_and_shift(norm)
    if found is None or type(layer) is not nn.Conv2d or layer.padding not in (0, (0, 0), "valid"):
        return False
    weight, bias = fold_scale_and_shift(layer.weight, layer.bias, *found, groups=layer.groups)
    _set(layer, weight, bias)
    return True


def fold_scale_and_shift(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Weight [O, I / groups, ...] and bias that take x where the given ones took x * scale + shift (float64)."""
    outputs, inputs = weight.shape[:2]
    # input channels of each output channel: those of its group
    per_output = [
        v.view(groups, 1, inputs).expand(groups, outputs // groups, inputs).reshape(outputs, inputs) for v in (scale, shift)
    ]
    spatial = [1] * (weight.ndim - 2)
    folded_scale, folded_shift = (v.view(outputs, inputs, *spatial) for v in per_output)
    double = weight.double()
    added = (double * folded_shift).flatten(1).sum(1)
    return double * folded_scale, added if bias is None else added + bias.double()


def _set(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
