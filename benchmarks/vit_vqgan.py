"""VIM: sampling with a cache allocated once, against the common re-implementation, which lengthens the keys and values of all
layers by torch.cat for every token.

Paper: vit-vqgan.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, compare
from paperworks.generators.draws import Draws, filter_logits, pick
from paperworks.generators.gpt import GPT, sample_tokens

TOP_P = 0.95


@torch.no_grad()
def transcribed(model: GPT, labels: Tensor) -> Tensor:
    """One tensor [layers, 2, B, heads, n, d] of the past, made anew for every token."""
    uniform = Draws.seeded(0, len(labels)).uniform("uniform", (len(labels), model.tokens))
    chosen: list[Tensor] = []
    past: Tensor | None = None
    x = model.embed_classes(labels)
    for position in range(model.tokens):
        x, presents = x + model.positions[:, position : position + 1], []
        for layer, block in enumerate(model.blocks):
            x = block(x, partial(_lengthened, presents, None if past is None else past[layer]))
        past = torch.stack(presents)
        logits = model.head(model.norm(x[:, -1]))[:, : model.vocab_size].float()
        chosen.append(pick(filter_logits(logits, 0, TOP_P), uniform[:, position]))
        x = model.token_embedding(chosen[-1])[:, None]
    return torch.stack(chosen, 1)


def _lengthened(presents: list[Tensor], past: Tensor | None, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    if past is not None:
        key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
    presents.append(torch.stack((key, value)))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def cached(model: GPT, labels: Tensor) -> Tensor:
    return sample_tokens(model, labels, Draws.seeded(0, len(labels)), top_p=TOP_P)


def run() -> list[Row]:
    torch.manual_seed(0)
    labels, rows = torch.arange(2), []
    for tokens in (256, 1024):
        model = GPT(10, tokens, 8192, 512, 4, 8).eval()
        ours = partial(cached, model, labels)
        theirs = partial(transcribed, model, labels)
        agree = float((ours() == theirs()).float().mean())
        ratio = compare(ours, theirs, rounds=3, warmup=0)
        what = f"{len(labels)} images of {tokens} tokens, GPT 4 x 512"
        rows.append(
            Row(what, "cache allocated once", "past concatenated", ratio, target=1.0, note=f"tokens equal: {agree:.1%}")
        )
    return rows
