"""The baseline of VAR's comparison: the same blocks predicting one token after the other in raster order (VQGAN's stage two,
2012.09841, with VAR's adaLN conditioning), sampled with a key/value cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, guide, pick
from paperworks.layers.adaln_transformer import AdaLNBlock, AdaLNHeadNorm, cached, init_adaln_transformer
from paperworks.layers.kv_cache import KVCache
from paperworks.layers.pretrained import Pretrained


class NextTokenTransformer(nn.Module, Pretrained):
    """Class-conditional GPT over `length` tokens of one grid. Label `num_classes` is no class."""

    def __init__(
        self,
        num_classes: int = 1000,
        depth: int = 16,
        embed_dim: int = 1024,
        num_heads: int = 16,
        length: int = 256,
        vocab_size: int = 4096,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"embed_dim={embed_dim} does not divide into num_heads={num_heads}")
        self.num_classes, self.vocab_size, self.length = num_classes, vocab_size, length
        self.depth, self.dim, self.heads = depth, embed_dim, num_heads
        self.word_embed = nn.Embedding(vocab_size, embed_dim)
        self.class_emb = nn.Embedding(num_classes + 1, embed_dim)
        self.positions = nn.Parameter(torch.empty(1, length, embed_dim))
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(AdaLNBlock(embed_dim, num_heads, mlp_ratio, drop_path=rate) for rate in rates)
        self.head_nm = AdaLNHeadNorm(embed_dim)
        self.head = nn.Linear(embed_dim, vocab_size)
        std = (1 / embed_dim / 3) ** 0.5
        nn.init.trunc_normal_(self.positions, std=std)
        init_adaln_transformer(self, self.blocks, self.head, self.head_nm, std=std)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher forcing: labels [B], tokens int64 [B, L] -> logits [B, L, V]; position i sees tokens before i."""
        condition = self.class_emb(labels)
        x = torch.cat((condition[:, None], self.word_embed(tokens[:, :-1])), dim=1) + self.positions
        for block in self.blocks:
            assert isinstance(block, AdaLNBlock)
            x = block(x, block.modulation(condition), _causal)
        return self.head(self.head_nm(x, condition))


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


@torch.no_grad()
def sample_tokens(
    model: NextTokenTransformer, labels: Tensor, draws: Draws, *, guidance: float = 1.5, top_k: int = 0, top_p: float = 0.0
) -> Tensor:
    """Tokens [B, L] of `labels` [B], one pass per token; guidance grows with the position, as VAR's does with scale."""
    with torch.autocast(labels.device.type, enabled=False):  # the cache has the weights' own precision
        return _sample_tokens(model, labels, draws, guidance, top_k, top_p)


def _sample_tokens(
    model: NextTokenTransformer, labels: Tensor, draws: Draws, guidance: float, top_k: int, top_p: float
) -> Tensor:
    rows = len(labels)
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guidance else labels
    condition = model.class_emb(both)
    blocks = [block for block in model.blocks if isinstance(block, AdaLNBlock)]
    modulations = [block.modulation(condition) for block in blocks]
    weight = model.head.weight
    cache = KVCache(
        model.depth, len(both), model.heads, model.length, model.dim // model.heads, device=weight.device, dtype=weight.dtype
    )
    uniform = draws.uniform("uniform", (rows, model.length)).to(weight.device)
    tokens = torch.empty(rows, model.length, dtype=torch.int64, device=weight.device)
    x = condition[:, None]
    for position in range(model.length):
        x = x + model.positions[:, position : position + 1]
        for layer, (block, modulation) in enumerate(zip(blocks, modulations)):
            x = block(x, modulation, cached(cache, layer))
        cache.commit(1)
        raw = model.head(model.head_nm(x, condition))[:, 0].float()
        logits = guide(raw[:rows], raw[rows:], guidance * position / max(1, model.length - 1)) if guidance else raw
        tokens[:, position] = pick(filter_logits(logits, top_k, top_p), uniform[:, position])
        x = model.word_embed(tokens[:, position : position + 1])
        if guidance:
            x = x.repeat(2, 1, 1)
    return tokens
