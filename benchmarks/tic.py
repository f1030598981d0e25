"""MSA-Conv as a loop over shifted views, against the same attention through im2col; outputs agree.

Paper: tic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Row, compare
from paperworks.papers.tic import shifted_views, unfolded


def run() -> list[Row]:
    rows = []
    for batch, channels, side, kernel in ((1, 64, 56, 3), (1, 64, 56, 7), (8, 64, 32, 5)):
        torch.manual_seed(0)
        given = [torch.randn(batch, channels, side, side) for _ in range(3)]
        settings: dict[str, Any] = {"kernel": (kernel, kernel), "dilation": 1}
        ours, theirs = partial(_silently, shifted_views, given, settings), partial(_silently, unfolded, given, settings)
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
        what = f"{batch} x {channels} channels, {side}x{side}, kernel {kernel}"
        rows.append(Row(what, "shifted views", "im2col", compare(ours, theirs, 7), target=4.0))
        learn = [partial(_learn, work, given, settings) for work in (shifted_views, unfolded)]
        rows.append(Row(f"{what}, forward and backward", "shifted views", "im2col", compare(*learn, rounds=5, warmup=1), 1.0))
    return rows


@torch.no_grad()
def _silently(work: Callable[..., torch.Tensor], given: list[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    return work(*given, **settings)


def _learn(work: Callable[..., torch.Tensor], given: list[torch.Tensor], settings: dict[str, Any]) -> None:
    leaves = [each.detach().requires_grad_() for each in given]
    work(*leaves, **settings).sum().backward()
