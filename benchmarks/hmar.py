"""HMAR's block-diagonal attention, forward and backward on one core, against one call with a dense mask; and one guided image
of d16's width against VAR's cached sampler, both with random weights.

Paper: hmar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, compare
from paperworks.generators.draws import Draws
from paperworks.generators.masked_scale import MaskedScaleTransformer
from paperworks.generators.masked_scale_sampling import sample
from paperworks.generators.next_scale import SCALES_256, SCALES_512, NextScaleTransformer
from paperworks.generators.next_scale_sampling import sample as sample_var
from paperworks.layers.block_causal import block_diagonal_attention, block_diagonal_mask
from paperworks.tokenizers.multi_scale_quantizer import MultiScaleVQ
from paperworks.training import bf16_is_fast


def attention(sides: tuple[int, ...], heads: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Ours and the peer's work; both give the same numbers."""
    sizes = [side * side for side in sides]
    given = [torch.randn(1, heads, sum(sizes), 64, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(sum(sizes), sum(sizes)).masked_fill(~block_diagonal_mask(sizes), -torch.inf)

    def ours() -> Tensor:
        return block_diagonal_attention(given[0], given[1], given[2], sizes, 0.125)

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(given[0], given[1], given[2], attn_mask=mask, scale=0.125)

    torch.testing.assert_close(ours(), dense(), rtol=1e-4, atol=1e-5)
    return (lambda: ours().sum().backward()), (lambda: dense().sum().backward())


def run() -> list[Row]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    rows = []
    torch.set_num_threads(1)
    try:
        for sides, heads, target in ((SCALES_256, 8, 2.5), (SCALES_512, 2, 3.0)):
            ours, dense = attention(sides, heads)
            length = sum(side * side for side in sides)
            ratio = compare(ours, dense, rounds=7)
            rows.append(Row(f"attention, {length} tokens, one core", "slices", "dense mask", ratio, target=target))
    finally:
        torch.set_num_threads(threads)
    return [*rows, sampling()]


def sampling() -> Row:
    dtype, labels = (torch.bfloat16 if bf16_is_fast() else torch.float32), torch.tensor([207])
    quantizer: Any = MultiScaleVQ(4096, 32, SCALES_256).eval()
    hmar = MaskedScaleTransformer(1000, 16, 1024, 16).to(dtype).eval()
    var = NextScaleTransformer(1000, 16, 1024, 16).to(dtype).eval()
    settings: dict[str, Any] = {"guidance": 1.5, "top_k": 900, "top_p": 0.96}
    ratio = compare(
        lambda: sample(hmar, quantizer, labels, Draws.seeded(0, 1), **settings),
        lambda: sample_var(var, quantizer, labels, Draws.seeded(0, 1), **settings),
        rounds=3,
        warmup=1,
    )
    return Row(f"one guided 256-pixel token map, d16, {dtype}", "HMAR, default schedule", "VAR, cached", ratio)
