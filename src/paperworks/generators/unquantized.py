"""PUT's un-quantised transformer (2205.05076, section 3.2): continuous features of the masked image in, a distribution over
the codes of complete patches out, at every position. 2404.00513 adds an embedding that stands in for the hole."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.drop_path import linear_rates
from paperworks.layers.positions import sincos_2d
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import ActivationKind, Block, full_attention, fuse_qkv, small_normal


class UnquantizedTransformer(nn.Module, Pretrained):
    """Features [B, L, code_dim] (flattened rows of a grid) -> logits [B, L, vocab_size].

    tokens: L, the positions it has. vocab_size: codes of complete patches. mask_embedding: patches are mixed with a learned
    vector by their unknown share (the 2024 form). attend_known: attention looks at known positions only. drop_path: of the
    last block, growing linearly from 0. codec: `spec.id` of the codec it was trained with ("" fits all of the same shape).
    positions: what the table of positions starts from; "zeros" as released, or "sines" of row and column where `tokens` is a
    square: hidden patches look all alike until the table has learned to tell them apart, which sines spare a short training.
    """

    def __init__(
        self,
        code_dim: int,
        tokens: int,
        vocab_size: int,
        dim: int = 512,
        layers: int = 30,
        heads: int = 8,
        *,
        mlp_ratio: int = 4,
        activation: ActivationKind = "gelu_sigmoid",
        mask_embedding: bool = False,
        attend_known: bool = False,
        drop_path: float = 0.0,
        codec: str = "",
        positions: Literal["zeros", "sines"] = "zeros",
    ):
        super().__init__()
        self.code_dim, self.tokens, self.vocab_size, self.codec = code_dim, tokens, vocab_size, codec
        self.attend_known = attend_known
        self.emb_proj = nn.Linear(code_dim, dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, dim))
        self.mask_emb = nn.Parameter(torch.zeros(1, 1, dim)) if mask_embedding else None
        (rates,) = linear_rates(drop_path, [layers])
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio * dim, activation=activation, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, vocab_size)
        small_normal(self.modules())
        if positions == "sines":
            side = math.isqrt(tokens)
            if side * side != tokens:
                raise InputError(f"positions='sines' need a square of patches, not {tokens}: take 'zeros'")
            with torch.no_grad():
                self.pos_emb.copy_(0.2 * sincos_2d(side, side, dim)[None])  # about the size of embedded features

    def no_weight_decay(self) -> set[str]:
        return {"pos_emb", "mask_emb"}

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], *, heads: int, **ours: Any) -> Self:
        """Weights of liuqk3/PUT, 2022's transformer (blocks.N.ln1, attn.query, ...) or 2024's (norm1, attn.qkv, mask_emb);
        the codec's in the same checkpoint go to `PatchVQVAE.from_official`. Sizes are read off the weights."""
        weights = {key: value for key, value in state_dict.items() if not key.startswith("content_codec.")}
        if "emb_proj.weight" not in weights or "to_logits.weight" not in weights:
            raise InputError("these weights hold no transformer of PUT: emb_proj.weight or to_logits.weight is missing")
        later = "blocks.0.attn.qkv.weight" in weights
        weights = _with_biases(weights) if later else fuse_qkv(weights)
        hidden = weights["blocks.0.mlp.fc1.weight" if later else "blocks.0.mlp.0.weight"].shape[0]
        dim, code_dim = weights["emb_proj.weight"].shape
        if "mask_emb" in weights:
            weights["mask_emb"] = weights["mask_emb"].reshape(1, 1, dim)
        layers = len({match[1] for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))})
        tokens, vocab_size = weights["pos_emb"].shape[1], weights["to_logits.weight"].shape[0]
        ours = {"mlp_ratio": hidden // dim, "mask_embedding": "mask_emb" in weights} | ours
        model = cls(code_dim, tokens, vocab_size, dim, layers, heads, **ours)
        return load_official(model, weights, rename=_NAMES)

    def embed(self, features: Tensor, known_share: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """[B, L, dim] of features [B, L, code_dim]. known_share [B, L]: of every patch's pixels, for the mask embedding (a
        drawn code counts as known: None). positions int64 [B, L]: of each feature, where they are not all in order."""
        x = self.emb_proj(features)
        if self.mask_emb is not None and known_share is not None:
            x = x * known_share[..., None] + self.mask_emb * (1 - known_share[..., None])
        if positions is None:
            if features.shape[1] != self.tokens:
                raise InputError(
                    f"{features.shape[1]} patches, but this transformer knows {self.tokens} positions: "
                    "give images of the size it was trained on, or fill larger ones window by window"
                )
            return x + self.pos_emb
        return x + F.embedding(positions, self.pos_emb[0])

    def forward(self, embedded: Tensor, known: Tensor | None = None) -> Tensor:
        """Logits of embedded features [B, L, dim]. known bool [B, L]: read if `attend_known`."""
        attend: Any = full_attention
        if self.attend_known and known is not None:
            mask = known[:, None, None, :]

            def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
                return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

        for block in self.blocks:
            embedded = block(embedded, attend)
        return self.to_logits(self.norm(embedded))


_NAMES = {
    r"^(blocks\.\d+)\.ln([12])\.": r"\1.norm\2.",
    r"^(blocks\.\d+\.mlp)\.0\.": r"\1.fc1.",
    r"^(blocks\.\d+\.mlp)\.2\.": r"\1.fc2.",
    r"^layer_norm\.": "norm.",
}


def _with_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """2024's blocks keep biases of queries and values apart and have none for keys, which changes nothing after softmax."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.endswith("attn.q_bias"):
            stem = key.removesuffix("q_bias")
            found[f"{stem}qkv.bias"] = torch.cat((value, torch.zeros_like(value), weights[f"{stem}v_bias"]))
        elif not key.endswith("attn.v_bias"):
            found[key] = value
    return found
