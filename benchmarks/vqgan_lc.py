"""VQGAN-LC: the nearest of 100,000 codes against the three-term distance matrix, and cached sampling against re-running the
prefix for every token.

Paper: vqgan-lc.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Row, compare
from paperworks.generators.draws import Draws, pick
from paperworks.generators.gpt import GPT, sample_tokens
from paperworks.layers.vector_quantization import nearest_code
from paperworks.tokenizers.projected_quantizer import ProjectedQuantizer

CODES, WIDTH, CHANNELS, VECTORS = 100_000, 768, 8, 1024


def distance_matrix(vectors: Tensor, codes: Tensor) -> Tensor:
    """|z|^2 + |c|^2 - 2 z c, all at once, as implementations of VQGAN write it."""
    distances = vectors.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * vectors @ codes.T
    return distances.argmin(1)


@torch.no_grad()
def uncached_sample(model: GPT, labels: Tensor, draws: Draws) -> Tensor:
    """The whole prefix again for every token."""
    tokens = torch.zeros(len(labels), model.tokens, dtype=torch.int64)
    uniform = draws.uniform("uniform", (len(labels), model.tokens))
    for position in range(model.tokens):
        logits = model(labels, tokens[:, : position + 1])[:, -1]
        tokens[:, position] = pick(logits[:, : model.vocab_size], uniform[:, position])
    return tokens


@torch.no_grad()
def run() -> list[Row]:
    torch.manual_seed(0)
    quantizer = ProjectedQuantizer(torch.randn(CODES, WIDTH), CHANNELS).eval()
    vectors = torch.randn(VECTORS, CHANNELS)
    codes = quantizer.codes().clone()
    assert torch.equal(nearest_code(vectors, codes), distance_matrix(vectors, codes))
    assert torch.equal(quantizer.encode(vectors), nearest_code(vectors, codes))

    def projected_every_time() -> Tensor:
        return distance_matrix(vectors, quantizer.codebook_projection(quantizer.tok_embeddings.weight))

    what = f"nearest of {CODES} codes for {VECTORS} vectors of {CHANNELS}"
    rows = [
        Row(
            what,
            "chunked product",
            "distance matrix",
            compare(lambda: nearest_code(vectors, codes), lambda: distance_matrix(vectors, codes), rounds=7),
            target=3.0,
        ),
        Row(
            f"{what}, inference",
            "kept projection and tree",
            "projection and distance matrix",
            compare(lambda: quantizer.encode(vectors), projected_every_time, rounds=7),
            target=6.0,
        ),
    ]
    model = GPT(10, 256, 1024, 256, 6, 4).eval()
    labels = torch.arange(16) % 10
    cached = sample_tokens(model, labels, Draws.seeded(0, 16))
    agree = float((cached == uncached_sample(model, labels, Draws.seeded(0, 16))).float().mean())
    ratio = compare(
        lambda: sample_tokens(model, labels, Draws.seeded(0, 16)),
        lambda: uncached_sample(model, labels, Draws.seeded(0, 16)),
        rounds=2,
        warmup=0,
    )
    row = Row(
        "256 tokens, GPT 6 x 256, 16 rows", "cached", "prefix re-run", ratio, target=20.0, note=f"tokens equal: {agree:.1%}"
    )
    return [*rows, row]
