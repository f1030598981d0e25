"""Blocks for inference: everything around the two products of a block's MLP is folded into them or done in place.

Of a MetaNeXt or ConvNeXt block remains: mixer, [LayerNorm without its affine part,] product, GELU in place, product, residual
added in place. The products run on packed weights where oneDNN offers that (twice as fast as plain ones on narrow bf16 layers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.layers.folding import fold_scale_and_shift, scale_and_shift

ROWS_AT_ONCE = 1 << 24
"""bytes of the hidden layer computed at once: it stays in the cache and its memory is reused instead of asked for anew"""


@dataclass
class Plan:
    """What a module's `for_inference(plan)` may know, and where it notes what it did."""

    dtype: torch.dtype
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        """Count one application of an improvement; the report lists them."""
        self.notes[what] = self.notes.get(what, 0) + 1


class PackedLinear(nn.Module):
    """x @ weight.T + bias for [M, I] on weights that are reordered once per M; plain where oneDNN is missing."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self._packed: dict[tuple[int, torch.dtype], Tensor] = {}

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.backends.mkldnn.is_available() or torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        key = (len(x), x.dtype)
        packed = self._packed.get(key)
        if packed is None:
            if len(self._packed) >= 4:  # many input sizes: keep the latest, packing costs about one product
                self._packed.pop(next(iter(self._packed)))
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, len(x))
            self._packed[key] = packed
        return torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed.clear()  # other dtype or device: pack again
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}}


class FusedMlpBlock(nn.Module):
    """x + MLP(norm(mixer(x))) on [N, C, H, W] in channels-last layout; scales, shifts and layer scale are in the products."""

    def __init__(self, mixer: nn.Module, first: PackedLinear, second: PackedLinear, activation: nn.Module, eps: float | None):
        super().__init__()
        self.mixer = mixer
        self.first, self.second = first, second
        self.activation = activation
        self.eps = eps
        """of the LayerNorm between mixer and product; None for none"""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        mixed = self.mixer(x).permute(0, 2, 3, 1).reshape(-1, channels)
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        at_once = self._rows_at_once(rows)
        if at_once >= len(rows):
            out = self._mlp(mixed).add_(rows)
        else:
            out = torch.empty_like(rows)
            for start in range(0, len(rows), at_once):
                part = slice(start, start + at_once)
                torch.add(self._mlp(mixed[part]), rows[part], out=out[part])
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _mlp(self, rows: Tensor) -> Tensor:
        if self.eps is not None:
            rows = F.layer_norm(rows, rows.shape[1:], eps=self.eps)
        hidden = self.first(rows)
        if isinstance(self.activation, nn.GELU):
            torch.ops.aten.gelu_(hidden, approximate=self.activation.approximate)
        else:
            hidden = self.activation(hidden)
        return self.second(hidden)

    def _rows_at_once(self, rows: Tensor) -> int:
        """All rows, or an even share of them whose hidden layer takes at most ROWS_AT_ONCE bytes."""
        size = len(rows) * self.first.weight.shape[0] * rows.element_size()
        parts = max(1, -(-size // ROWS_AT_ONCE))
        return -(-len(rows) // (32 * parts)) * 32


def fuse_mlp_block(
    mixer: nn.Module,
    norm: nn.Module,
    first: nn.Conv2d | nn.Linear,
    activation: nn.Module,
    second: nn.Conv2d | nn.Linear,
    gamma: Tensor | None,
    plan: Plan,
) -> FusedMlpBlock | None:
    """x + gamma * second(activation(first(norm(mixer(x))))) with norm and gamma taken into the products; None where the
    norm is of another kind."""
    scale: Tensor | None
    shift: Tensor | None
    eps = None
    if isinstance(norm, nn.BatchNorm2d):
        found = scale_and_shift(norm)
        if found is None:
            return None
        scale, shift = found
    elif isinstance(norm, nn.LayerNorm):
        scale, shift, eps = norm.weight.double(), norm.bias.double(), norm.eps
    elif isinstance(norm, nn.Identity):
        scale = shift = None
    else:
        return None
    weight, bias = first.weight.flatten(1), _bias(first)
    if scale is not None and shift is not None:
        weight, bias = fold_scale_and_shift(weight, bias, scale, shift)
        plan.note("norm folded into the product after it")
    last_weight, last_bias = second.weight.flatten(1).double(), _bias(second).double()
    if gamma is not None:
        last_weight, last_bias = last_weight * gamma.double().view(-1, 1), last_bias * gamma.double()
        plan.note("layer scale folded into the product before it")
    plan.note("block as two packed products, activation and residual in place")
    into = PackedLinear(weight.to(plan.dtype), bias.to(plan.dtype))
    out = PackedLinear(last_weight.to(plan.dtype), last_bias.to(plan.dtype))
    return FusedMlpBlock(mixer, into, out, activation, eps)


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
