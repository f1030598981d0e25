"""DetailFlow's generator (2505.21473, section 3.4): the first tokens one by one, then a whole group in every pass.

The sequence is the class, the first tokens, group - 1 learned placeholders, the other tokens; position i predicts token i. With
groups seeing all of themselves and of earlier groups, keys and values never change, so a cache is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, pick
from paperworks.layers.adaln_transformer import Attend, cached
from paperworks.layers.block_causal import group_causal_mask
from paperworks.layers.kv_cache import KVCache
from paperworks.layers.positions import rotary_2d
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import Block, masked_attention, small_normal


class GroupParallelTransformer(nn.Module, Pretrained):
    """`tokens` tokens in groups of `group`; label `num_classes` is no class. causal: tokens made one by one (0: one group)."""

    mask: Tensor
    rotary: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        tokens: int = 128,
        vocab_size: int = 8192,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        *,
        group: int = 8,
        causal: int = 0,
        multiple_of: int = 256,
        dropout: float = 0.1,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.first = causal or group
        if tokens % group or self.first % group or self.first > tokens:
            raise InputError(f"{tokens} tokens, {self.first} of them one by one, do not divide into groups of {group}")
        self.num_classes, self.tokens, self.vocab_size, self.group = num_classes, tokens, vocab_size, group
        self.dim, self.depth, self.heads = dim, depth, heads
        hidden = -(-int(8 * dim / 3) // multiple_of) * multiple_of
        self.class_embedding = nn.Embedding(num_classes + 1, dim)
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.special_embeddings = nn.Embedding(group - 1, dim)
        self.dropout = nn.Dropout(dropout)
        options: dict[str, Any] = {"norm": "rms", "activation": "swiglu", "dropout": dropout, "drop_path": drop_path}
        options |= {"qkv_bias": False, "out_bias": False, "mlp_bias": False}
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, **options) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        small_normal(self.modules())
        nn.init.zeros_(self.head.weight)
        number = torch.arange(tokens)
        table = rotary_2d(number // group, number % group, dim // heads)
        # the class's row is zero: its query and key vanish, so it is reached through its value alone
        self.register_buffer("rotary", F.pad(table, (0, 0, 0, 0, 1, 0)), persistent=False)
        self.register_buffer("mask", group_causal_mask(tokens, group, self.first), persistent=False)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """`DetailFlow-*-GPT-*` with its argument names. Grouped keys and values are repeated, which computes the same."""
        heads = official["n_head"]
        model = cls(
            official.get("num_classes", 1000),
            official["block_size"],
            official["vocab_size"],
            official["dim"],
            official["n_layer"],
            heads,
            group=official["group_size"],
            causal=official.get("causal_num") or 0,
            multiple_of=official.get("multiple_of", 256),
        )
        shared = official.get("n_kv_head") or heads
        weights = {
            key: _repeated(value, heads, shared) if key.endswith("attention.wqkv.weight") else value
            for key, value in state_dict.items()
            if key not in ("freqs_cis", "group_causal_mask")
        }
        if model.group == 1:
            weights.setdefault("spe_tok_embeddings.special_embeddings.weight", torch.zeros(0, model.dim))
        return load_official(model, weights, rename=_NAMES)

    @property
    def passes(self) -> int:
        """Of sampling an image."""
        return self.first + (self.tokens - self.first) // self.group

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher forcing: tokens int64 [B, n], at most tokens - group of them are read -> logits [B, positions, V]; position
        i predicts token i."""
        self.check_tokens(tokens)
        tokens = tokens[:, : self.tokens - self.group]
        x = self.dropout(self.embed(labels, tokens))
        length = x.shape[1]
        attend = masked_attention(self.mask[:length, :length])
        for block in self.blocks:
            x = block(x, attend, self.rotary[:length])
        return self.head(self.norm(x))

    def check_tokens(self, tokens: Tensor) -> None:
        """InputError unless these are tokens of a tokenizer with as many codes and positions."""
        if tokens.shape[1] > self.tokens:
            raise InputError(f"{tokens.shape[1]} tokens an image, the network knows {self.tokens}: give it this tokenizer's")
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < self.vocab_size):
            raise InputError(
                f"token numbers must lie in 0..{self.vocab_size - 1}, these go from {tokens.min()} to {tokens.max()}: they are "
                "another tokenizer's"
            )

    def embed(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """The sequence [B, n, dim] of a class and the tokens so far."""
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= self.num_classes):
            raise InputError(f"labels must lie in 0..{self.num_classes - 1}, or be {self.num_classes} for no class")
        parts = [self.class_embedding(labels)[:, None], self.token_embedding(tokens[:, : self.first])]
        if tokens.shape[1] >= self.first:
            parts.append(self.special_embeddings.weight.expand(len(labels), -1, -1))
            parts.append(self.token_embedding(tokens[:, self.first :]))
        return torch.cat(parts, 1)


@torch.no_grad()
def sample_tokens(
    model: GroupParallelTransformer,
    labels: Tensor,
    draws: Draws,
    *,
    guidance: float = 1.45,
    falling: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    known: Tensor | None = None,
    cache: bool = True,
) -> Tensor:
    """Tokens int64 [B, L] of labels [B]. guidance: total weight on the class, 1 for none; falling: from group to group.
    known: tokens [B, n] to go on from, whole groups of them.
    cache=False runs the whole sequence again for every group, as the released sampler does."""
    if temperature <= 0:
        raise InputError(f"temperature={temperature} must be positive")
    rows, guided = len(labels), guidance != 1
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guided else labels
    uniform = draws.uniform("uniform", (rows, model.tokens)).to(labels.device)
    chosen = torch.zeros(rows, model.tokens, dtype=torch.int64, device=labels.device)
    groups = model.tokens // model.group
    with torch.autocast(labels.device.type, enabled=False):
        run = _Cached(model, both) if cache else _Whole(model, both)
        position = 0
        if known is not None:
            position = known.shape[1]
            if position > model.first and position % model.group:
                raise InputError(f"{position} known tokens end inside a group of {model.group}")
            model.check_tokens(known)
            chosen[:, :position] = known
        while position < model.tokens:
            size = 1 if position < model.first else model.group
            known = chosen[:, :position].repeat(2, 1) if guided else chosen[:, :position]
            logits = run.logits(known)[:, -size:].float()
            if guided:
                weight = guidance
                if falling and position >= model.first:
                    weight = guidance * (groups - position // model.group + 1) / (groups + 1)
                logits = torch.lerp(logits[rows:], logits[:rows], weight)
            kept = filter_logits(logits / temperature, min(top_k, model.vocab_size), top_p)
            chosen[:, position : position + size] = pick(kept, uniform[:, position : position + size])
            position += size
    return chosen


class _Whole:
    def __init__(self, model: GroupParallelTransformer, labels: Tensor):
        self.model, self.labels = model, labels

    def logits(self, tokens: Tensor) -> Tensor:
        return self.model(self.labels, tokens)


class _Cached:
    """Feeds only what the sequence has grown by since the last call."""

    def __init__(self, model: GroupParallelTransformer, labels: Tensor):
        self.model, self.labels = model, labels
        weight = model.head.weight
        self.cache = KVCache(
            model.depth,
            len(labels),
            model.heads,
            model.tokens,
            model.dim // model.heads,
            device=weight.device,
            dtype=weight.dtype,
        )

    def logits(self, tokens: Tensor) -> Tensor:
        model, start = self.model, self.cache.used
        x = model.embed(self.labels, tokens)[:, start:]
        span = slice(start, start + x.shape[1])
        mask = model.mask[span, : span.stop]
        free = bool(mask.all())  # a whole group, or one of the first tokens
        for layer, block in enumerate(model.blocks):
            attend = cached(self.cache, layer) if free else self._masked(layer, mask)
            x = block(x, attend, model.rotary[span])
        self.cache.commit(x.shape[1])
        return model.head(model.norm(x))

    def _masked(self, layer: int, mask: Tensor) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            keys, values = self.cache.append(layer, key, value)
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)

        return attend


def _repeated(weight: Tensor, heads: int, shared: int) -> Tensor:
    """A projection whose `shared` key and value heads serve `heads` queries, with each written out for every query."""
    if heads == shared:
        return weight
    dim = weight.shape[1]
    query, rest = weight[:dim], weight[dim:]
    key, value = (part.unflatten(0, (shared, -1)).repeat_interleave(heads // shared, 0).flatten(0, 1) for part in rest.chunk(2))
    return torch.cat((query, key, value))


_NAMES = {
    r"^cls_embedding\.embedding_table\.": "class_embedding.",
    r"^tok_embeddings\.": "token_embedding.",
    r"^spe_tok_embeddings\.special_embeddings\.": "special_embeddings.",
    r"^layers\.(\d+)\.attention\.wqkv\.": r"blocks.\1.attn.qkv.",
    r"^layers\.(\d+)\.attention\.wo\.": r"blocks.\1.attn.proj.",
    r"^layers\.(\d+)\.attention_norm\.": r"blocks.\1.norm1.",
    r"^layers\.(\d+)\.ffn_norm\.": r"blocks.\1.norm2.",
    r"^layers\.(\d+)\.feed_forward\.w1\.": r"blocks.\1.mlp.gate.",
    r"^layers\.(\d+)\.feed_forward\.w3\.": r"blocks.\1.mlp.fc1.",
    r"^layers\.(\d+)\.feed_forward\.w2\.": r"blocks.\1.mlp.fc2.",
    r"^output\.": "head.",
}
"""released name -> name here"""
