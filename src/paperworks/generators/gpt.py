"""A decoder-only transformer over image tokens after a prefix of class tokens: VIM (2110.04627, section 3.3) and GPT-LC
(2406.11837), sampled with a pre-allocated cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, guide, pick
from paperworks.layers.adaln_transformer import Attend, cached
from paperworks.layers.kv_cache import KVCache
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import (
    ActivationKind,
    Block,
    causal_attention,
    full_attention,
    fuse_qkv,
    masked_attention,
    small_normal,
)


class ShiftedBlock(Block):
    """A block whose attention sees, per channel, a mix of each token and the one before it (RWKV's token shift):
    x m + previous(x) (1 - m). Not in the paper; the common re-implementation has it."""

    def __init__(self, dim: int, heads: int, hidden: int, **options: Any):
        super().__init__(dim, heads, hidden, **options)
        self.time_mix = nn.Parameter(torch.arange(dim).float().div(max(1, dim - 1)).view(1, 1, dim))

    def forward(self, x: Tensor, attend: Attend = full_attention, rotary: Tensor | None = None) -> Tensor:
        normed = self.norm1(x)
        return self._rest(x, normed, F.pad(normed[:, :-1], (0, 0, 1, 0)), attend)

    def step(self, x: Tensor, before: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """One or more new tokens [B, n, C] after `before` [B, 1, C]; returns the output and what the next step needs."""
        normed = self.norm1(x)
        previous = torch.cat((before, normed[:, :-1]), 1)
        return self._rest(x, normed, previous, attend), normed[:, -1:]

    def _rest(self, x: Tensor, normed: Tensor, previous: Tensor, attend: Attend) -> Tensor:
        mixed = normed * self.time_mix + previous * (1 - self.time_mix)
        x = x + self.drop_path(self.attn(mixed, attend))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class GPT(nn.Module, Pretrained):
    """`tokens` image tokens one after the other, given `class_tokens` numbers of a class vocabulary (which see each other).

    num_classes: of the class vocabulary; 0 for unconditional (the prefix is then one learned vector). null_class: one more
    class, number `num_classes`, for guidance. joint_vocabulary: codes and classes share one table and the output has logits of
    both, as GPT-LC was released. activation "gelu" (papers) or "relu2"; token_shift as in `ShiftedBlock`.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        tokens: int = 1024,
        vocab_size: int = 8192,
        dim: int = 1536,
        depth: int = 24,
        heads: int = 16,
        *,
        class_tokens: int = 1,
        null_class: bool = False,
        joint_vocabulary: bool = False,
        activation: ActivationKind = "gelu",
        token_shift: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if tokens < 1 or class_tokens < 1:
            raise InputError(f"a sequence of {class_tokens} class and {tokens} image tokens is empty: at least 1 of each")
        if joint_vocabulary and null_class:
            raise InputError("a joint vocabulary has no null class: leave one of the two out")
        self.num_classes, self.tokens, self.vocab_size = num_classes, tokens, vocab_size
        self.dim, self.depth, self.heads, self.class_tokens = dim, depth, heads, class_tokens
        self.joint_vocabulary, self.null_class = joint_vocabulary, null_class
        conditions = max(1, num_classes + null_class)
        self.token_embedding = nn.Embedding(vocab_size + (num_classes if joint_vocabulary else 0), dim)
        self.class_embedding = None if joint_vocabulary else nn.Embedding(conditions, dim)
        self.positions = nn.Parameter(torch.zeros(1, class_tokens + tokens, dim))
        self.dropout = nn.Dropout(dropout)
        kind = ShiftedBlock if token_shift else Block
        options: dict[str, Any] = {"activation": activation, "dropout": dropout, "drop_path": drop_path}
        self.blocks = nn.ModuleList(kind(dim, heads, 4 * dim, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size + (num_classes if joint_vocabulary else 0), bias=False)
        small_normal(self.modules())

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """Weights of enhancing-transformers' second stage (vocab_cond_size ...) or of VQGAN-LC's GPT (n_vision_words ...),
        with the argument names of that code."""
        return load_official(cls(**_arguments(state_dict, official)), _weights(state_dict), rename=_ours)

    # --- training ---

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher forcing: labels int64 [B] or [B, class_tokens], tokens [B, L] -> logits [B, L, V]; i sees tokens before i."""
        x = self._run(torch.cat((self.embed_classes(labels), self.token_embedding(tokens[:, :-1])), 1))
        return self.head(self.norm(x[:, self.class_tokens - 1 :]))

    def hidden(self, labels: Tensor, tokens: Tensor, block: int) -> Tensor:
        """Mean over the image tokens of what block number `block` (from 1) puts out, [B, dim]: for linear probes."""
        if not 1 <= block <= self.depth:
            raise InputError(f"block {block}: there are 1 to {self.depth}")
        x = torch.cat((self.embed_classes(labels), self.token_embedding(tokens)), 1)
        return self._run(x, block)[:, self.class_tokens :].mean(1)

    def _run(self, x: Tensor, blocks: int | None = None) -> Tensor:
        length = x.shape[1]
        x = self.dropout(x + self.positions[:, :length])
        # a single class token makes the mask plainly causal, for which there is a faster kernel
        attend = causal_attention if self.class_tokens == 1 else masked_attention(self._mask(length, x.device))
        for block in self.blocks[:blocks]:
            x = block(x, attend)
        return x

    def _mask(self, length: int, device: torch.device) -> Tensor:
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        mask[: self.class_tokens, : self.class_tokens] = True
        return mask

    def embed_classes(self, labels: Tensor) -> Tensor:
        """[B, class_tokens, dim]."""
        labels = labels.view(len(labels), -1)
        if self.class_embedding is None:
            self._check_labels(labels, self.num_classes)
            return self.token_embedding(labels + self.vocab_size)
        if self.num_classes == 0:
            labels = torch.zeros_like(labels)
        self._check_labels(labels, self.class_embedding.num_embeddings)
        return self.class_embedding(labels)

    def _check_labels(self, labels: Tensor, count: int) -> None:
        if labels.shape[1] != self.class_tokens:
            raise InputError(f"{labels.shape[1]} class tokens per image, the network takes {self.class_tokens}")
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < count):
            raise InputError(f"class numbers must lie in 0..{count - 1}, these go from {labels.min()} to {labels.max()}")


@torch.no_grad()
def sample_tokens(
    model: GPT,
    labels: Tensor,
    draws: Draws,
    *,
    guidance: float = 0.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Tensor:
    """Tokens int64 [B, L] of labels [B], a pass per token over cached keys and values. guidance needs a null class."""
    if guidance and not model.null_class:
        raise InputError("guidance needs a network with null_class=True, trained with label dropout")
    if temperature <= 0:
        raise InputError(f"temperature={temperature} must be positive")
    rows = len(labels)
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guidance else labels
    uniform = draws.uniform("uniform", (rows, model.tokens)).to(labels.device)
    chosen = torch.empty(rows, model.tokens, dtype=torch.int64, device=labels.device)
    with torch.autocast(labels.device.type, enabled=False):  # the cache has the weights' own precision
        decoder = GPTDecoder(model, len(both))
        logits = decoder.step(model.embed_classes(both))
        for position in range(model.tokens):
            raw = logits[:, : model.vocab_size].float()
            raw = guide(raw[:rows], raw[rows:], guidance) if guidance else raw
            kept = filter_logits(raw / temperature, top_k, top_p)
            chosen[:, position] = pick(kept, uniform[:, position])
            if position + 1 < model.tokens:
                found = model.token_embedding(chosen[:, position : position + 1])
                logits = decoder.step(found.repeat(2, 1, 1) if guidance else found)
    return chosen


class GPTDecoder:
    """Runs new tokens against cached keys and values; with a token shift it carries each block's last token along."""

    def __init__(self, model: GPT, rows: int):
        self.model = model
        weight = model.head.weight
        length = model.class_tokens + model.tokens
        self.cache = KVCache(
            model.depth, rows, model.heads, length, model.dim // model.heads, device=weight.device, dtype=weight.dtype
        )
        self.before = [weight.new_zeros(rows, 1, model.dim) for _ in model.blocks]

    def step(self, embedded: Tensor) -> Tensor:
        """Logits [B, V] after the last of the new tokens [B, n, dim]. The prefix must come as a whole."""
        start, count = self.cache.used, embedded.shape[1]
        x = embedded + self.model.positions[:, start : start + count]
        for layer, block in enumerate(self.model.blocks):
            attend = cached(self.cache, layer)
            if isinstance(block, ShiftedBlock):
                x, self.before[layer] = block.step(x, self.before[layer], attend)
            else:
                x = block(x, attend)
        self.cache.commit(count)
        return self.model.head(self.model.norm(x[:, -1]))


# --- released checkpoints ---------------------------------------------------------------------------------------------


def _arguments(state_dict: Mapping[str, Tensor], official: Mapping[str, Any]) -> dict[str, Any]:
    if "n_vision_words" in official:
        return {
            "num_classes": official["n_class"],
            "tokens": official["seq_len"],
            "vocab_size": official["n_vision_words"],
            "dim": official["n_embd"],
            "depth": official["n_layer"],
            "heads": official["n_head"],
            "joint_vocabulary": True,
        }
    activation: Literal["relu2"] = "relu2"
    return {
        "num_classes": official["vocab_cond_size"],
        "tokens": official["img_num_tokens"],
        "vocab_size": official["vocab_img_size"],
        "dim": official["embed_dim"],
        "depth": official["n_layers"],
        "heads": official["n_heads"],
        "class_tokens": official.get("cond_num_tokens", 1),
        "activation": activation,
        "token_shift": any(key.endswith("time_mix") for key in state_dict),
    }


def _weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = fuse_qkv(state_dict)
    if "pos_emb_cond" in weights:
        weights["positions"] = torch.cat((weights.pop("pos_emb_cond"), weights.pop("pos_emb_code")), 1)
    return weights


def _ours(key: str) -> str:
    for theirs, ours in (
        (r"^pos_emb$", "positions"),
        (r"^(layer_norm|ln_f)\.", "norm."),
        (r"^tok_emb_cond\.", "class_embedding."),
        (r"^(tok_emb_code|tok_emb)\.", "token_embedding."),
        (r"^blocks\.(\d+)\.attn\.time_mix$", r"blocks.\1.time_mix"),
        (r"^blocks\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
        (r"^blocks\.(\d+)\.mlp\.(?:p0|0)\.", r"blocks.\1.mlp.fc1."),
        (r"^blocks\.(\d+)\.mlp\.(?:p1|2)\.", r"blocks.\1.mlp.fc2."),
    ):
        key = re.sub(theirs, ours, key)
    return key
