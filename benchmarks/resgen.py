"""ResGen's fixed number of passes, against an RQ-Transformer of the same width, both layers' keys and values cached: a pass for
every position and a small one for every token.

Paper: resgen.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import Row, compare
from paperworks.generators.draws import Draws
from paperworks.generators.residual_autoregressive import RQTransformer
from paperworks.generators.residual_autoregressive import sample_tokens as one_by_one
from paperworks.generators.residual_masked import ResidualMaskedTransformer
from paperworks.generators.residual_masked_sampling import sample
from paperworks.tokenizers.quantizers import ResidualQuantizer

POSITIONS, CODES, CHANNELS, DIM, LAYERS, HEADS = 64, 256, 16, 384, 8, 6


def run() -> list[Row]:
    """Random weights, 16 passes, guided; only the length of the work counts."""
    rows, labels = [], torch.arange(4)
    for depth in (4, 8):
        torch.manual_seed(0)
        quantizer = ResidualQuantizer(depth, CODES, CHANNELS).eval()
        masked = ResidualMaskedTransformer(10, POSITIONS, depth, CHANNELS, DIM, LAYERS, HEADS, 256).eval()
        single = RQTransformer(10, POSITIONS, depth, CODES, DIM, LAYERS, HEADS, level_blocks=2).eval()
        ours = partial(sample, masked, quantizer, labels, Draws.seeded(0, 4), steps=16, guidance=1.0)
        theirs = partial(one_by_one, single, labels, Draws.seeded(0, 4), guidance=1.0)
        what = f"4 guided images of {POSITIONS} positions, depth {depth}"
        rows.append(Row(what, "16 passes", "RQ-Transformer, cached", compare(ours, theirs, 5, warmup=1), target=5.0))
    return rows
