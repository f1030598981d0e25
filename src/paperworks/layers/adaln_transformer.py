"""The transformer block of VAR and its raster-order baseline: self-attention and MLP, each modulated by the condition.

VAR (2404.02905), section 3.2 and appendix A. Module names are those of the released checkpoints, so that these load as
they are: mat_qkv (no bias, the key never has one), q_bias, v_bias, scale_mul_1H11 (log of a scale per head), ada_lin, ada_gss.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.layers.drop_path import DropPath
from paperworks.layers.kv_cache import KVCache

MAX_SCALE = math.log(100)

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(query, key, value, scale) -> mixed values, all [rows, heads, L, dim]: the mask lives in here"""


class CosineAttention(nn.Module):
    """Multi-head self-attention on l2-normalised queries and keys with a learned scale per head (at most 100)."""

    zero_k_bias: Tensor

    def __init__(self, dim: int, heads: int, l2_norm: bool = True):
        super().__init__()
        self.heads, self.head_dim, self.l2_norm = heads, dim // heads, l2_norm
        self.mat_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("zero_k_bias", torch.zeros(dim))
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(dim, dim)

    @property
    def scale(self) -> float:
        return 1.0 if self.l2_norm else 0.25 / math.sqrt(self.head_dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, C] to query, key, value [B, heads, L, dim]."""
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias.to(self.mat_qkv.weight.dtype))
        q, k, v = qkv.unflatten(2, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        if self.l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_SCALE).exp().to(q.dtype)
            k = F.normalize(k, dim=-1)
        return q.to(v.dtype), k.to(v.dtype), v

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        mixed = attend(*self.project(x), self.scale)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class AdaLNBlock(nn.Module):
    """x + g1 * attention(LN(x) (1 + s1) + h1), then the same with the MLP; LN has no weights of its own.

    `modulation(condition)` depends only on the condition: samplers compute it once per image instead of once per pass.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        drop_path: float = 0.0,
        l2_norm: bool = True,
        shared: bool = False,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.dim, self.eps, self.shared = dim, eps, shared
        self.attn = CosineAttention(dim, heads, l2_norm)
        self.ffn = MLP(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        if shared:  # one condition projection for all blocks, plus an offset per block (d36)
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, dim) / dim**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Six [B, 1, C] tensors: gain of attention and MLP, scale of both, shift of both.
        `condition` is [B, C], or the shared projection [B, 1, 6, C]."""
        if self.shared:
            return (self.ada_gss + condition).unbind(2)
        return self.ada_lin(condition).view(-1, 1, 6, self.dim).unbind(2)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...], attend: Attend) -> Tensor:
        gain_attn, gain_mlp, scale_attn, scale_mlp, shift_attn, shift_mlp = modulation
        x = x + self.drop_path(self.attn(self._norm(x, scale_attn, shift_attn), attend) * gain_attn)
        return x + self.drop_path(self.ffn(self._norm(x, scale_mlp, shift_mlp)) * gain_mlp)

    def _norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return modulated_norm(x, scale, shift, self.eps)


class AdaLNHeadNorm(nn.Module):
    """The modulated norm in front of the classifier."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).view(-1, 1, 2, self.dim).unbind(2)
        return modulated_norm(x, scale, shift, self.eps)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LN(x) (1 + scale) + shift in the dtype of x; addcmul does scale and shift in one pass over memory."""
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(shift.to(normed.dtype), normed, scale.to(normed.dtype) + 1)


def cached(cache: KVCache, layer: int) -> Attend:
    """Attention of new positions over everything in the cache and themselves, without a mask."""

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        keys, values = cache.append(layer, key, value)
        return F.scaled_dot_product_attention(query, keys, values, scale=scale)

    return attend


def init_adaln_transformer(
    model: nn.Module,
    blocks: nn.ModuleList,
    head: nn.Linear,
    head_norm: AdaLNHeadNorm,
    *,
    std: float,
    gain: float = 1e-5,
    adaln: float = 0.5,
    head_scale: float = 0.02,
) -> None:
    """The initialisation of the released training code: truncated normals of one `std` everywhere, residual branches
    divided by sqrt(2 depth), the adaLN's gain rows nearly zero (`gain`) so that blocks start as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        head.weight.mul_(head_scale)
        _last_weight(head_norm.ada_lin).mul_(adaln)
        for block in blocks:
            assert isinstance(block, AdaLNBlock)
            block.attn.proj.weight.div_(math.sqrt(2 * len(blocks)))
            block.ffn.fc2.weight.div_(math.sqrt(2 * len(blocks)))
            if block.shared:
                block.ada_gss[:, :, :2].mul_(gain)
                block.ada_gss[:, :, 2:].mul_(adaln)
            else:
                weight = _last_weight(block.ada_lin)
                weight[: 2 * block.dim].mul_(gain)
                weight[2 * block.dim :].mul_(adaln)


def _last_weight(layers: nn.Sequential) -> Tensor:
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    return last.weight
