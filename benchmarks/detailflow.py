"""DetailFlow: a group in every pass against cached keys and values, and the released way: all tokens so far again.

Paper: detailflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Row, compare
from paperworks.generators.draws import Draws
from paperworks.generators.group_parallel import GroupParallelTransformer, sample_tokens


def run() -> list[Row]:
    torch.manual_seed(0)
    model = GroupParallelTransformer(10, 512, 8192, 512, 8, 8).eval()
    torch.nn.init.normal_(model.head.weight, std=0.02)
    labels = torch.arange(2)

    def made(cache: bool) -> Tensor:
        return sample_tokens(model, labels, Draws.seeded(0, 2), cache=cache)

    agree = float((made(True) == made(False)).float().mean())
    ratio = compare(lambda: made(True), lambda: made(False), rounds=3, warmup=0)
    what = "512 tokens in groups of 8, 8 x 512, 2 guided images"
    return [Row(what, "cached", "all tokens again", ratio, target=10.0, note=f"tokens equal: {agree:.1%}")]
