"""Transformer blocks that T2T-ViT's study of CNN designs compares (2101.11986, section 3.2): plain, SE, ghost and dense.

All on token sequences [N, L, C]; parameter names are those of the released code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import Plan
from paperworks.backbones.fused_tokens import FusedBlock
from paperworks.errors import InputError
from paperworks.layers.adaln_transformer import Attend
from paperworks.layers.channel_attention import LinearSqueezeExcite
from paperworks.layers.drop_path import DropPath
from paperworks.layers.transformer import Attention, FeedForward, full_attention

BlockKind = Literal["plain", "se", "ghost"]


class T2TBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); what the two parts are is the kind."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        *,
        kind: BlockKind = "plain",
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if dim % heads:
            raise InputError(f"a width of {dim} does not divide into {heads} heads")
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn: nn.Module
        self.mlp: nn.Module
        match kind:
            case "plain":
                self.attn = Attention(dim, heads, qkv_bias=qkv_bias, dropout=drop)
                self.mlp = FeedForward(dim, int(dim * mlp_ratio), dropout=drop)
            case "se":
                self.attn = SqueezedAttention(dim, heads, qkv_bias, drop)
                self.mlp = FeedForward(dim, int(dim * mlp_ratio), dropout=drop)
            case "ghost":
                if int(dim * mlp_ratio) != 3 * dim:
                    raise InputError(f"mlp_ratio={mlp_ratio}: a ghost block's hidden layer is three times as wide, take 3")
                self.attn = GhostAttention(dim, heads, qkv_bias, drop)
                self.mlp = GhostFeedForward(dim, drop)
            case _:
                raise InputError(f"block={kind!r}: there are 'plain', 'se' and 'ghost'")
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.scale = qk_scale or (dim // heads) ** -0.5
        self.attn_drop = attn_drop

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), self._attend))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        dropout = self.attn_drop if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)

    def for_inference(self, plan: Plan) -> nn.Module:
        if type(self) is T2TBlock and type(self.attn) is Attention and isinstance(self.mlp, FeedForward):
            return FusedBlock(self.norm1, self.attn, self.norm2, self.mlp, plan, self.scale)
        return self


class SqueezedAttention(Attention):
    """Attention whose output channels are gated by their mean over all tokens, the class token included."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, dropout: float):
        super().__init__(dim, heads, qkv_bias=qkv_bias)
        self.se_layer = LinearSqueezeExcite(dim, max(1, dim // 16))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, attend: Attend = full_attention, rotary: Tensor | None = None) -> Tensor:
        mixed = super().forward(x, attend, rotary)
        return self.drop(self.se_layer(mixed.transpose(1, 2)[..., None])[..., 0].transpose(1, 2))


class ChannelScale(nn.Module):
    """[..., C] times a factor per channel: the "cheap operation" that makes ghost features out of others."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 1).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.flatten()


class GhostAttention(nn.Module):
    """Half of the queries, keys and values are products, the other half are scaled copies of them (GhostNet, 1911.11907)."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, dropout: float):
        super().__init__()
        if dim % 2:
            raise InputError(f"ghost attention halves its width: {dim} is odd")
        self.heads = heads
        for name in "qkv":
            self.add_module(name, nn.Linear(dim, dim // 2, bias=qkv_bias))
            self.add_module(f"cheap_operation_{name}", ChannelScale(dim // 2))
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, attend: Attend = full_attention) -> Tensor:
        q, k, v = (self._expand(name, x) for name in "qkv")
        mixed = attend(q, k, v, q.shape[-1] ** -0.5)
        return self.drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def _expand(self, name: str, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, heads, L, C / heads]."""
        half = self.get_submodule(name)(x)
        whole = torch.cat((half, self.get_submodule(f"cheap_operation_{name}")(half)), -1)
        return whole.unflatten(2, (self.heads, -1)).transpose(1, 2)


class GhostFeedForward(nn.Module):
    """The hidden layer's first third is a product, the others are scaled copies of it."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.cheap_operation2 = ChannelScale(dim)
        self.cheap_operation3 = ChannelScale(dim)
        self.fc2 = nn.Linear(3 * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        first = F.gelu(self.fc1(x))
        ghosts = (F.gelu(self.cheap_operation2(first)), F.gelu(self.cheap_operation3(first)))
        return self.drop(self.fc2(self.drop(torch.cat((first, *ghosts), -1))))


class DenseBlock(T2TBlock):
    """[N, L, dim] -> [N, L, dim + growth]: the block's result, projected to `growth` channels, is put behind its input."""

    def __init__(
        self,
        growth: int,
        dim: int,
        heads: int,
        mlp_ratio: float,
        *,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__(
            dim,
            heads,
            mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop=drop,
            attn_drop=attn_drop,
            drop_path=drop_path,
        )
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.dense_linear(super().forward(x))), -1)


class Transition(nn.Module):
    """Linear layer and GELU between stages of the dense network."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x))
