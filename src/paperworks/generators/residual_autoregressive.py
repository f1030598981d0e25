"""RQ-Transformer (2203.01941): residual tokens one after the other, a large transformer over positions, a small one over depth.

The usual way to generate the tokens that ResGen predicts in a few passes: positions x depth sequential steps. The large network
reads, per position, the sum of its levels' embeddings; the small one starts from its output and reads the levels chosen so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, guide, pick
from paperworks.layers.adaln_transformer import cached
from paperworks.layers.kv_cache import KVCache
from paperworks.layers.pretrained import Pretrained
from paperworks.layers.transformer import Block, causal_attention, small_normal


class RQTransformer(nn.Module, Pretrained):
    """`positions` x `levels` tokens of a class; label `num_classes` is no class.

    depth: blocks over positions. level_blocks: blocks over the levels of one position.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        positions: int = 64,
        levels: int = 8,
        vocab_size: int = 1024,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        *,
        level_blocks: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        if positions < 1 or levels < 1:
            raise InputError(f"{positions} positions x {levels} levels: at least 1 of each")
        self.num_classes, self.positions, self.levels, self.vocab_size = num_classes, positions, levels, vocab_size
        self.dim, self.depth, self.heads, self.level_blocks = dim, depth, heads, level_blocks
        self.token_embedding = nn.Embedding(levels * vocab_size, dim)
        self.class_embedding = nn.Embedding(num_classes + 1, dim)
        self.position_embedding = nn.Parameter(torch.zeros(1, positions, dim))
        self.level_embedding = nn.Parameter(torch.zeros(1, levels, dim))
        options: dict[str, Any] = {"dropout": dropout}
        self.blocks = nn.ModuleList(Block(dim, heads, 4 * dim, **options) for _ in range(depth))
        self.within = nn.ModuleList(Block(dim, heads, 4 * dim, **options) for _ in range(level_blocks))
        self.norm = nn.LayerNorm(dim)
        self.level_heads = nn.ModuleList(nn.Linear(dim, vocab_size) for _ in range(levels))  # each level has its own codes
        small_normal(self.modules())
        for embedding in (self.position_embedding, self.level_embedding):
            nn.init.normal_(embedding, std=0.02)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher forcing: labels int64 [B], tokens [B, levels x positions], level after level -> logits [B, L, V] in that
        order. A token sees all earlier positions and the coarser levels of its own."""
        self.check(labels, tokens)
        embedded = self.embed(tokens.unflatten(1, (self.levels, self.positions)).transpose(1, 2))  # [B, P, D, C]
        before = torch.cat((self.class_embedding(labels)[:, None], embedded[:, :-1].sum(2)), 1)
        x = before + self.position_embedding
        for block in self.blocks:
            x = block(x, causal_attention)
        within = torch.cat((x[:, :, None], embedded[:, :, :-1]), 2).cumsum(2) + self.level_embedding
        y = within.flatten(0, 1)
        for block in self.within:
            y = block(y, causal_attention)
        y = self.norm(y).unflatten(0, (len(tokens), self.positions))
        return torch.cat([head(y[:, :, level]) for level, head in enumerate(self.level_heads)], 1)

    def embed(self, tokens: Tensor) -> Tensor:
        """[..., D, C] of tokens int64 [..., D], each level with its own table."""
        return self.token_embedding(tokens + self.vocab_size * torch.arange(self.levels, device=tokens.device))

    def check(self, labels: Tensor, tokens: Tensor) -> None:
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= self.num_classes):
            raise InputError(f"labels must lie in 0..{self.num_classes - 1}, or be {self.num_classes} for no class")
        if tokens.shape[1] != self.levels * self.positions:
            raise InputError(
                f"{tokens.shape[1]} tokens an image, the network was built for {self.positions} positions x "
                f"{self.levels} levels"
            )


@torch.no_grad()
def sample_tokens(
    model: RQTransformer,
    labels: Tensor,
    draws: Draws,
    *,
    guidance: float = 0.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Tensor:
    """Tokens int64 [B, levels x positions], level after level, of labels [B]: a pass of the large network per position and one
    of the small network per token, both over cached keys and values."""
    if temperature <= 0:
        raise InputError(f"temperature={temperature} must be positive")
    rows = len(labels)
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guidance else labels
    uniform = draws.uniform("uniform", (rows, model.positions * model.levels)).to(labels.device)
    chosen = torch.empty(rows, model.levels, model.positions, dtype=torch.int64, device=labels.device)
    with torch.autocast(labels.device.type, enabled=False):  # the caches have the weights' own precision
        large = _cache(model, len(both), model.depth, model.positions)
        small = _cache(model, len(both), model.level_blocks, model.levels)
        entering = model.class_embedding(both)
        for position in range(model.positions):
            x = (entering + model.position_embedding[:, position])[:, None]
            total = _through(model.blocks, x, large)[:, 0]  # what the small network reads: output and levels so far, summed
            entering = torch.zeros_like(total)
            small.rollback(0)
            for level, head in enumerate(model.level_heads):
                y = (total + model.level_embedding[:, level])[:, None]
                raw = head(model.norm(_through(model.within, y, small)[:, 0])).float()
                raw = guide(raw[:rows], raw[rows:], guidance) if guidance else raw
                kept = filter_logits(raw / temperature, top_k, top_p)
                found = pick(kept, uniform[:, position * model.levels + level])
                chosen[:, level, position] = found
                added = model.token_embedding(found + level * model.vocab_size)
                added = added.repeat(2, 1) if guidance else added
                total, entering = total + added, entering + added
    return chosen.flatten(1)


def _cache(model: RQTransformer, rows: int, layers: int, length: int) -> KVCache:
    weight = model.token_embedding.weight
    return KVCache(layers, rows, model.heads, length, model.dim // model.heads, device=weight.device, dtype=weight.dtype)


def _through(blocks: nn.ModuleList, x: Tensor, cache: KVCache) -> Tensor:
    for layer, block in enumerate(blocks):
        x = block(x, cached(cache, layer))
    cache.commit(x.shape[1])
    return x
