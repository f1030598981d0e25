"""Parts of transformers for inference, on tokens [N, L, C]: norms folded into the products behind them, packed products,
activation and residuals in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import PackedLinear, Plan
from paperworks.layers.folding import fold_scale_and_shift
from paperworks.layers.transformer import Attention, FeedForward


def packed(layer: nn.Linear, plan: Plan) -> PackedLinear:
    bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
    return PackedLinear(layer.weight.detach().to(plan.dtype), bias.detach().to(plan.dtype))


def packed_after_norm(norm: nn.LayerNorm, layer: nn.Linear, plan: Plan, order: Tensor | None = None) -> PackedLinear:
    """The layer with the norm's gain and shift in it; what remains of the norm is `layer_norm` without them.

    order: for every input of the result the input of `layer` that it is, where they come in another order.
    """
    weight, bias = fold_scale_and_shift(layer.weight.detach(), layer.bias, norm.weight.double(), norm.bias.double())
    if order is not None:
        weight = weight[:, order]
    return PackedLinear(weight.to(plan.dtype), bias.detach().to(plan.dtype))


class FusedMlp(nn.Module):
    """Rows x [M, C] -> x + fc2(gelu(fc1(norm(x))))."""

    def __init__(self, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, plan: Plan):
        super().__init__()
        self.eps = norm.eps
        self.fc1 = packed_after_norm(norm, fc1, plan)
        self.fc2 = packed(fc2, plan)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.fc1(F.layer_norm(rows, rows.shape[1:], eps=self.eps))
        return self.fc2(torch.ops.aten.gelu_(hidden)).add_(rows)


class FusedBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). scale: of the attention's products; head width^-0.5 by default."""

    def __init__(
        self,
        norm1: nn.LayerNorm,
        attn: Attention,
        norm2: nn.LayerNorm,
        mlp: FeedForward,
        plan: Plan,
        scale: float | None = None,
    ):
        super().__init__()
        assert isinstance(attn.proj, nn.Linear)
        self.heads, self.eps, self.scale = attn.heads, norm1.eps, scale
        self.qkv = packed_after_norm(norm1, attn.qkv, plan)
        self.proj = packed(attn.proj, plan)
        self.mlp = FusedMlp(norm2, mlp.fc1, mlp.fc2, plan)
        plan.note("transformer block as four packed products, norms folded, activation and residuals in place")

    def forward(self, x: Tensor) -> Tensor:
        count, length, dim = x.shape
        rows = x.reshape(-1, dim)
        qkv = self.qkv(F.layer_norm(rows, (dim,), eps=self.eps))
        q, k, v = qkv.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).reshape(-1, dim)
        return self.mlp(self.proj(mixed).add_(rows)).view(count, length, dim)
