"""Masked-token transformers over any tokenizer's tokens (MaskGIT 2202.04200), in the two forms that TiTok (2406.07550) uses:
BERT (post-norm) and U-ViT (2209.12152, pre-norm with long skips)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import Attention, Block, FeedForward, fuse_qkv


class PostNormBlock(nn.Module):
    """BERT's block: norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0, attention_dropout: float = 0.0):
        super().__init__()
        self.attn = Attention(dim, heads, dropout=dropout, attention_dropout=attention_dropout)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.mlp = FeedForward(dim, hidden, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class SkipBlock(Block):
    """A pre-norm block that first mixes in what a block of the first half put out."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0, attention_dropout: float = 0.0):
        super().__init__(dim, heads, hidden, qkv_bias=False, dropout=dropout, attention_dropout=attention_dropout)
        self.skip_linear = nn.Linear(2 * dim, dim)

    def mix(self, x: Tensor, earlier: Tensor) -> Tensor:
        return self(self.skip_linear(torch.cat((x, earlier), -1)))


class BERT(nn.Module):
    """A class token and image tokens -> features of the image tokens; ids count tokens, mask, classes, no class."""

    def __init__(
        self, ids: int, tokens: int, dim: int, depth: int, heads: int, hidden: int, dropout: float, attention_dropout: float
    ):
        super().__init__()
        self.embedding = nn.Embedding(ids, dim)
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, dim) * 0.02)
        self.types = nn.Parameter(torch.randn(2, dim) * 0.02)  # of a second sentence, which an image never has
        self.embedding_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, hidden, dropout, attention_dropout) for _ in range(depth))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions[:, : ids.shape[1]] + self.types[0]
        x = self.dropout(self.embedding_norm(x))
        for block in self.blocks:
            x = block(x)
        return x


class UViT(nn.Module):
    """The same with depth // 2 blocks, one, and depth // 2 that read what the first half put out, last first."""

    def __init__(
        self, ids: int, tokens: int, dim: int, depth: int, heads: int, hidden: int, dropout: float, attention_dropout: float
    ):
        super().__init__()
        self.embedding = nn.Embedding(ids, dim)
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, dim) * 0.02)
        options: dict[str, Any] = {"qkv_bias": False, "dropout": dropout, "attention_dropout": attention_dropout}
        self.first = nn.ModuleList(Block(dim, heads, hidden, **options) for _ in range(depth // 2))
        self.middle = Block(dim, heads, hidden, **options)
        self.last = nn.ModuleList(SkipBlock(dim, heads, hidden, dropout, attention_dropout) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions[:, : ids.shape[1]]
        earlier = []
        for block in self.first:
            x = block(x)
            earlier.append(x)
        x = self.middle(x)
        for block in self.last:
            assert isinstance(block, SkipBlock)
            x = block.mix(x, earlier.pop())
        return self.norm(x)


class MaskedTransformer(nn.Module, Pretrained):
    """Logits of all tokens given the known ones; label `num_classes` is no class, token `vocab_size` is the mask.

    attention_dropout: of attention probabilities; by default BERT's is `dropout` and U-ViT has none, as released.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        tokens: int = 32,
        vocab_size: int = 4096,
        dim: int = 768,
        depth: int = 24,
        heads: int = 16,
        *,
        form: Literal["bert", "uvit"] = "bert",
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
    ):
        super().__init__()
        if form not in ("bert", "uvit"):
            raise InputError(f"form={form!r}: there are 'bert' and 'uvit'")
        self.num_classes, self.tokens, self.vocab_size, self.dim = num_classes, tokens, vocab_size, dim
        kind = BERT if form == "bert" else UViT
        if attention_dropout is None:
            attention_dropout = dropout if form == "bert" else 0.0
        ids, hidden = vocab_size + num_classes + 2, round(dim * mlp_ratio)
        self.trunk = kind(ids, tokens, dim, depth, heads, hidden, dropout, attention_dropout)
        self.head = nn.Linear(dim, vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """`generator_titok_*`: ImageBert ("ViT") or UViTBert ("UViT"), with the configuration's `vq_model` and `generator`
        (or `model` with both)."""
        given = official.get("model", official)
        part = given["generator"]
        uvit = part.get("model_type", "ViT") == "UViT"
        model = cls(
            part["condition_num_classes"],
            part["image_seq_len"],
            given["vq_model"]["codebook_size"],
            part["hidden_size"],
            part["num_hidden_layers"],
            part["num_attention_heads"],
            form="uvit" if uvit else "bert",
            mlp_ratio=part["intermediate_size"] / part["hidden_size"],
            dropout=part.get("dropout", 0.1),
            # the released U-ViT never drops attention: its fused attention does not read the setting
            attention_dropout=0.0 if uvit else part.get("attn_drop", 0.1),
        )
        if uvit:
            return load_official(model, state_dict, rename=_UVIT)
        weights = fuse_qkv(state_dict)
        position = "model.embeddings.position_embeddings.weight"
        return load_official(
            model, {**weights, position: weights[position][None]}, rename=_BERT, ignore=("model.embeddings.position_ids",)
        )

    @property
    def mask_token(self) -> int:
        return self.vocab_size

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Labels int64 [B] and tokens [B, L], some of them masked -> logits [B, L, vocab_size]."""
        if tokens.shape[1] != self.tokens:
            raise InputError(f"{tokens.shape[1]} tokens an image, this network knows {self.tokens} positions")
        for values, last, what in ((labels, self.num_classes, "labels"), (tokens, self.vocab_size, "tokens")):
            if values.numel() and not (int(values.min()) >= 0 and int(values.max()) <= last):
                raise InputError(f"{what} must lie in 0..{last}, these go from {values.min()} to {values.max()}")
        ids = torch.cat((labels[:, None] + self.vocab_size + 1, tokens), 1)
        return self.head(self.trunk(ids)[:, 1:])


def masked_prediction_loss(
    logits: Tensor, targets: Tensor, masked: Tensor, label_smoothing: float = 0.1, kept_weight: float = 0.1
) -> Tensor:
    """Cross-entropy with weight 1 on masked and `kept_weight` on known tokens, divided by the sum of the weights."""
    each = F.cross_entropy(logits.float().transpose(1, 2), targets, label_smoothing=label_smoothing, reduction="none")
    weights = masked.float() + kept_weight * (~masked).float()
    return (each * weights).sum() / (weights.sum() + 1e-8)


_BERT = {
    r"^model\.embeddings\.LayerNorm\.": "trunk.embedding_norm.",
    r"^model\.embeddings\.position_embeddings\.weight$": "trunk.positions",
    r"^model\.embeddings\.token_type_embeddings\.weight$": "trunk.types",
    r"^model\.embeddings\.word_embeddings\.": "trunk.embedding.",
    r"^model\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.": r"trunk.blocks.\1.norm1.",
    r"^model\.encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"trunk.blocks.\1.attn.proj.",
    r"^model\.encoder\.layer\.(\d+)\.attention\.self\.": r"trunk.blocks.\1.attn.",
    r"^model\.encoder\.layer\.(\d+)\.intermediate\.dense\.": r"trunk.blocks.\1.mlp.fc1.",
    r"^model\.encoder\.layer\.(\d+)\.output\.dense\.": r"trunk.blocks.\1.mlp.fc2.",
    r"^model\.encoder\.layer\.(\d+)\.output\.LayerNorm\.": r"trunk.blocks.\1.norm2.",
    r"^model\.lm_head\.": "head.",
}

_UVIT = {
    r"^embeddings\.": "trunk.embedding.",
    r"^pos_embed$": "trunk.positions",
    r"^in_blocks\.": "trunk.first.",
    r"^mid_block\.": "trunk.middle.",
    r"^out_blocks\.": "trunk.last.",
    r"^norm\.": "trunk.norm.",
    r"^lm_head\.": "head.",
}
"""released name -> name here"""
