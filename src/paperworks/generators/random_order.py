"""RAR (2411.00776): next-token prediction in an order that is random at first and raster at last, so that every token learns
to look both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, pick
from paperworks.layers.adaln_transformer import Attend, cached
from paperworks.layers.kv_cache import KVCache
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import Attention, FeedForward, causal_attention

PREFIX = 2
"""a learned token and the class stand before the image's tokens"""


class ModulatedBlock(nn.Module):
    """adaLN-zero with weighted norms; the condition differs from token to token."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, qk_norm="layer", dropout=dropout, attention_dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, hidden, dropout=dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor, attend: Attend) -> Tensor:
        shift1, scale1, gain1, shift2, scale2, gain2 = self.adaLN_modulation(condition).chunk(6, -1)
        x = x + gain1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, attend)
        return x + gain2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class ModulatedNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(condition).chunk(2, -1)
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class RandomOrderTransformer(nn.Module, Pretrained):
    """`tokens` image tokens in any order; label `num_classes` is no class.

    Every position is told, besides its own place, the place of the token it has to predict (target-aware positions).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        tokens: int = 256,
        vocab_size: int = 1024,
        dim: int = 768,
        depth: int = 24,
        heads: int = 16,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        spare_positions: int = 0,
    ):
        super().__init__()
        self.num_classes, self.tokens, self.vocab_size = num_classes, tokens, vocab_size
        self.dim, self.depth, self.heads = dim, depth, heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.embeddings = nn.Embedding(vocab_size + 1 + num_classes + 1, dim)
        rows = tokens + PREFIX + spare_positions
        self.pos_embed, self.target_aware_pos_embed = _table(rows, dim), _table(rows, dim)
        self.timesteps_embeddings = _table(tokens + 100 if spare_positions else tokens + PREFIX, dim)
        self.blocks = nn.ModuleList(ModulatedBlock(dim, heads, round(dim * mlp_ratio), dropout) for _ in range(depth))
        self.adaln_before_head = ModulatedNorm(dim)
        self.lm_head = nn.Linear(dim, vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
        for part in (*self.blocks, self.adaln_before_head):
            assert isinstance(part, ModulatedBlock | ModulatedNorm)
            last = part.adaLN_modulation[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """`rar_*.bin` with the configuration's `vq_model` and `generator` (or `model` with both); their position tables have
        1024 rows more than are read."""
        given = official.get("model", official)
        part = given["generator"]
        model = cls(
            part["condition_num_classes"],
            part["image_seq_len"],
            given["vq_model"]["codebook_size"],
            part["hidden_size"],
            part["num_hidden_layers"],
            part["num_attention_heads"],
            mlp_ratio=part["intermediate_size"] / part["hidden_size"],
            dropout=part.get("dropout", 0.1),
            spare_positions=1024 - PREFIX,
        )
        return load_official(model, state_dict, ignore=("attn_mask",))

    # --- training ---

    def forward(self, labels: Tensor, tokens: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher forcing: tokens [B, L] as they lie in the image, orders int64 [B, L] (raster by default) -> logits
        [B, L, V], number i of the token at orders[i]."""
        return self.all_logits(labels, tokens, orders)[:, : self.tokens]

    def all_logits(self, labels: Tensor, tokens: Tensor, orders: Tensor | None = None) -> Tensor:
        """The same and, where all tokens are given, what follows the last one: [B, min(L, given) + 1, V]."""
        count = tokens.shape[1]
        if orders is not None:
            tokens = tokens.gather(1, orders)
        classes = self.embed_classes(labels)
        x = torch.cat((self.cls_token.expand(len(tokens), -1, -1), classes, self.embeddings(tokens)), 1)
        x = x + self.places(orders)[:, : count + PREFIX]
        condition = classes + self.timesteps_embeddings[:, : count + PREFIX]
        for block in self.blocks:
            x = block(x, condition, causal_attention)
        return self.lm_head(self.adaln_before_head(x[:, PREFIX - 1 :], condition[:, PREFIX - 1 :]))

    def embed_classes(self, labels: Tensor) -> Tensor:
        """[B, 1, dim]."""
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= self.num_classes):
            raise InputError(f"labels must lie in 0..{self.num_classes - 1}, or be {self.num_classes} for no class")
        return self.embeddings(labels[:, None] + self.vocab_size + 1)

    def places(self, orders: Tensor | None) -> Tensor:
        """What is added to all positions [1 or B, PREFIX + L, dim]: the place of each and of the one it predicts."""
        span = slice(PREFIX, PREFIX + self.tokens)
        own, wanted = self.pos_embed[:, span], self.target_aware_pos_embed[:, span]
        if orders is not None:
            own, wanted = own[0][orders], wanted[0][orders]
        own = torch.cat((self.pos_embed[:, :PREFIX].expand(len(own), -1, -1), own), 1)
        return own + F.pad(wanted, (0, 0, PREFIX - 1, 1))


def _table(rows: int, dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows, dim), std=0.02))


@torch.no_grad()
def sample_tokens(
    model: RandomOrderTransformer,
    labels: Tensor,
    draws: Draws,
    *,
    guidance: float = 4.0,
    power: float = 2.75,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Tensor:
    """Tokens int64 [B, L] of labels [B] in raster order, a pass per token over cached keys and values. guidance: total weight
    on the class at the end, rising from 1 by a power-cosine; 0 (or 1) for none."""
    if temperature <= 0:
        raise InputError(f"temperature={temperature} must be positive")
    rows, guided = len(labels), guidance not in (0, 1)
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guided else labels
    uniform = draws.uniform("uniform", (rows, model.tokens)).to(labels.device)
    weight = model.lm_head.weight
    cache = KVCache(
        model.depth,
        len(both),
        model.heads,
        model.tokens + PREFIX,
        model.dim // model.heads,
        device=weight.device,
        dtype=weight.dtype,
    )
    chosen = torch.empty(rows, model.tokens, dtype=torch.int64, device=labels.device)
    with torch.autocast(labels.device.type, enabled=False):
        classes, places = model.embed_classes(both), model.places(None)
        x = torch.cat((model.cls_token.expand(len(both), -1, -1), classes), 1)
        for position in range(model.tokens):
            logits = _step(model, x, classes, places, cache).float()
            if guided:
                rising = (1 - torch.cos(torch.pi * (torch.tensor(position / model.tokens) ** power))) / 2
                logits = torch.lerp(logits[rows:], logits[:rows], 1 + (guidance - 1) * float(rising))
            chosen[:, position] = pick(filter_logits(logits / temperature, top_k, top_p), uniform[:, position])
            found = model.embeddings(chosen[:, position : position + 1])
            x = found.repeat(2, 1, 1) if guided else found
    return chosen


def _step(model: RandomOrderTransformer, x: Tensor, classes: Tensor, places: Tensor, cache: KVCache) -> Tensor:
    """Logits [B, V] after the last of the new positions [B, n, dim]."""
    span = slice(cache.used, cache.used + x.shape[1])
    x = x + places[:, span]
    condition = classes + model.timesteps_embeddings[:, span]
    for layer, block in enumerate(model.blocks):
        # the prefix of two is causal within itself, every later position comes alone
        x = block(x, condition, _causal_prefix(cache, layer) if x.shape[1] > 1 else cached(cache, layer))
    cache.commit(x.shape[1])
    return model.lm_head(model.adaln_before_head(x[:, -1:], condition[:, -1:]))[:, 0]


def _causal_prefix(cache: KVCache, layer: int) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        cache.append(layer, key, value)
        return causal_attention(query, key, value, scale)

    return attend
