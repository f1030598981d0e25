"""The scan of Mamba-2 in chunks against the loop over tokens (upstream's kernels need a GPU) and attention of equal width.

Heads and sizes are those of Adventurer-Tiny: 8 heads of 64 channels, 64 numbers of state. Attention has as many heads of 64.

Paper: patch-scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, agree, compare
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create
from paperworks.layers.ssd_scan import ssd_scan

HEADS, DIM, STATE = 8, 64, 64


def run() -> list[Row]:
    torch.manual_seed(0)
    return [*scans(), *training(), *networks()]


def by_tokens(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_t = C_t H_t with H_t = exp(dt_t A) H_(t-1) + dt_t B_t x_t^T, one token at a time."""
    step = F.softplus(dt)
    state, outputs = x.new_zeros(x.shape[0], HEADS, STATE, DIM), []
    for t in range(x.shape[1]):
        added = (step[:, t, :, None] * B[:, t])[..., None] * x[:, t, :, None]
        state = torch.exp(step[:, t] * A)[..., None, None] * state + added
        outputs.append((C[:, t, :, None] @ state).squeeze(2))
    return torch.stack(outputs, 1)


def in_chunks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return ssd_scan(x, dt, A, B, C, dt_softplus=True)


def given(length: int) -> tuple[Tensor, ...]:
    x, dt = torch.randn(1, length, HEADS, DIM), torch.randn(1, length, HEADS) - 3
    return x, dt, -torch.rand(HEADS) * 15 - 1, torch.randn(1, length, 1, STATE), torch.randn(1, length, 1, STATE)


def scans() -> list[Row]:
    rows = []
    for length, target in ((198, None), (1026, 4.0), (4098, 4.0)):
        inputs = given(length)
        ours = _quietly(partial(in_chunks, *inputs))
        loop = _quietly(partial(by_tokens, *inputs))
        attention = _quietly(partial(F.scaled_dot_product_attention, *torch.randn(3, 1, HEADS, length, DIM)))
        agree(ours(), loop())
        what = f"scan of {length} tokens"
        rows.append(Row(what, "chunks of 32", "loop over tokens", compare(ours, loop, rounds=7, warmup=1), target=target))
        rows.append(Row(what, "chunks of 32", "attention of equal width", compare(ours, attention, rounds=7, warmup=1)))
    return rows


def training() -> list[Row]:
    """Forward and backward."""
    inputs = [value.requires_grad_() for value in given(1026)]

    def ours() -> None:
        in_chunks(*inputs).sum().backward()

    def loop() -> None:
        by_tokens(*inputs).sum().backward()

    ratio = compare(ours, loop, rounds=5, warmup=1)
    return [Row("scan of 1026 tokens, forward and backward", "chunks of 32", "loop over tokens", ratio, target=4.0)]


def networks() -> list[Row]:
    model = create("adventurer_tiny_patch16_224", img_size=64, patch_size=1).eval()
    image = torch.rand(1, 3, 64, 64)
    fast = prepare_for_inference(model, precision="32", example=image)
    plain = _quietly(lambda: model(image))
    ratio = compare(lambda: fast(image), plain, rounds=5, warmup=1)
    return [Row("Adventurer-Tiny, 4096 pixels as tokens", "prepared float32", "as it comes", ratio, note=str(fast.report))]


def _quietly(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run_it() -> Tensor:
        with torch.inference_mode():
            return work()

    return run_it
