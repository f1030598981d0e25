"""The plain transformer block of ViTs and GPTs, with what papers vary as switches. Sequences are [B, L, C].

Where released checkpoints name things otherwise, `from_official` of the network renames; the mask lives in `attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.adaln_transformer import Attend
from paperworks.layers.drop_path import DropPath
from paperworks.layers.positions import rotate

NormKind = Literal["layer", "layer_plain", "rms", "rms_plain"]
ActivationKind = Literal["gelu", "gelu_tanh", "gelu_sigmoid", "tanh", "relu", "relu2", "silu"]
GatedKind = Literal["swiglu", "geglu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


def make_sequence_norm(kind: NormKind, dim: int, eps: float = 1e-5) -> nn.Module:
    """LayerNorm or root-mean-square norm over the last dimension; "_plain" has no weights."""
    match kind:
        case "layer" | "layer_plain":
            return nn.LayerNorm(dim, eps=eps, elementwise_affine=kind == "layer")
        case "rms" | "rms_plain":
            return nn.RMSNorm(dim, eps=eps, elementwise_affine=kind == "rms")
    raise InputError(f"norm {kind!r}: there are layer, layer_plain, rms and rms_plain")


def full_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Every position sees every other. dropout: share of the attention probabilities set to 0."""
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Every position sees itself and those before."""
    causal = query.shape[2] > 1
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal, scale=scale)


def masked_attention(mask: Tensor) -> Attend:
    """mask bool [L, L] (or broadcastable), True where the row may look at the column."""

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)

    return attend


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection. qk_norm: of every head's queries and keys.

    dropout: of what is put out. attention_dropout: of the attention probabilities; while training, `attend` is then called
    with it as `dropout`, as the functions above take it.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        *,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: NormKind | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        project_out: bool = True,
    ):
        super().__init__()
        if head_dim is None and dim % heads:
            raise InputError(f"a width of {dim} does not divide into {heads} heads")
        if not 0 <= attention_dropout < 1:
            raise InputError(f"attention_dropout={attention_dropout} is a share below 1")
        self.heads, self.head_dim = heads, head_dim or dim // heads
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.q_norm = make_sequence_norm(qk_norm, self.head_dim, 1e-6) if qk_norm else nn.Identity()
        self.k_norm = make_sequence_norm(qk_norm, self.head_dim, 1e-6) if qk_norm else nn.Identity()
        self.proj: nn.Module = nn.Linear(inner, dim, bias=out_bias) if project_out else nn.Identity()
        self.dropout, self.attention_dropout = dropout, attention_dropout

    def forward(self, x: Tensor, attend: Attend = full_attention, rotary: Tensor | None = None) -> Tensor:
        """rotary: table [L, head_dim / 2, 2] of cosines and sines for the positions of x."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if self.attention_dropout and self.training:
            attend = partial(cast(Any, attend), dropout=self.attention_dropout)
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v, self.head_dim**-0.5)
        return F.dropout(self.proj(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, dim: int, hidden: int, activation: ActivationKind = "gelu", *, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"activation {activation!r}: there are {', '.join(ACTIVATIONS)}")
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.activation, self.dropout = activation, dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc2(ACTIVATIONS[self.activation](self.fc1(x))), self.dropout, self.training)


class GatedFeedForward(nn.Module):
    """fc2(activation(gate(x)) * fc1(x)): SwiGLU or GEGLU (2002.05202)."""

    def __init__(self, dim: int, hidden: int, kind: GatedKind = "swiglu", *, bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.activation = F.silu if kind == "swiglu" else F.gelu
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc2(self.activation(self.gate(x)) * self.fc1(x)), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        head_dim: int | None = None,
        norm: NormKind = "layer",
        eps: float = 1e-5,
        activation: ActivationKind | GatedKind = "gelu",
        qkv_bias: bool = True,
        out_bias: bool = True,
        mlp_bias: bool = True,
        qk_norm: NormKind | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        project_out: bool = True,
    ):
        super().__init__()
        self.norm1 = make_sequence_norm(norm, dim, eps)
        self.attn = Attention(
            dim,
            heads,
            head_dim,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
            dropout=dropout,
            attention_dropout=attention_dropout,
            project_out=project_out,
        )
        self.norm2 = make_sequence_norm(norm, dim, eps)
        if activation == "swiglu" or activation == "geglu":
            self.mlp: nn.Module = GatedFeedForward(dim, hidden, activation, bias=mlp_bias, dropout=dropout)
        else:
            self.mlp = FeedForward(dim, hidden, activation, bias=mlp_bias, dropout=dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, attend: Attend = full_attention, rotary: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), attend, rotary))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def xavier(modules: Iterable[nn.Module]) -> None:
    """Xavier-uniform weights and no biases in every linear layer."""
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_normal(modules: Iterable[nn.Module], std: float = 0.02) -> None:
    """GPT's start: weights of linear layers and embeddings from N(0, std), no biases."""
    for module in modules:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def fuse_qkv(state_dict: Mapping[str, Tensor], names: tuple[str, str, str] = ("query", "key", "value")) -> dict[str, Tensor]:
    """Separate projections `...query.weight`, `...key.weight`, `...value.weight` (and biases) as one `...qkv.weight`."""
    fused: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        stem, _, kind = key.rpartition(".")
        parent, _, name = stem.rpartition(".")
        if name not in names:
            fused[key] = value
        elif name == names[0]:
            fused[f"{parent}.qkv.{kind}"] = torch.cat([state_dict[f"{parent}.{each}.{kind}"] for each in names])
    return fused
