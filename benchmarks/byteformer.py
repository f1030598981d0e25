"""ByteFormer-Ti on one file against its literal form, with the same weights: embedding and convolution, sequences filled up,
rolled, cut into windows and masked in every block, tokens merged by a copy.

The paper's settings: TIFF of 224 pixels (kernel 32), JPEG of quality 100 (kernel 8) and of quality 60 (kernel 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, compare
from paperworks.analysis.counting import count_macs
from paperworks.backbones.byteformer import ByteFormer
from paperworks.layers.transformer import Block

SETTINGS = (
    ("TIFF, 150,668 bytes, kernel 32", 32, 150_668),
    ("JPEG, 48,564 bytes, kernel 8", 8, 48_564),
    ("JPEG, 8,400 bytes, kernel 4", 4, 8_400),
)


class Literal(nn.Module):
    """The same function from the same weights, step by step as the paper describes it. Files without padding."""

    def __init__(self, ours: ByteFormer):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        ours = self.ours
        embedded = F.embedding(x.long(), ours.stem.embedding.weight)
        tokens = F.conv1d(embedded.transpose(1, 2), ours.stem.conv.weight, stride=ours.stem.stride).transpose(1, 2)
        x = tokens + ours.positions[: tokens.shape[1]]
        for index, (block, window, shift) in enumerate(zip(ours.blocks, ours.windows, ours.shifts)):
            assert isinstance(block, Block)
            x = in_windows(block, x, window, shift)
            if str(index) in ours.merging:
                x = ours.merging[str(index)](F.pad(x, (0, 0, 0, x.shape[1] % 2)))
        return ours.head(ours.norm(x).mean(1))


def in_windows(block: Block, x: Tensor, window: int, shift: int) -> Tensor:
    batch, length, width = x.shape
    filled = -(-length // window) * window
    rolled = F.pad(x, (0, 0, 0, filled - length)).roll(-shift, 1).reshape(-1, window, width)
    mask = torch.zeros(filled // window, window, window)
    if shift:
        mask[-1, : window - shift, window - shift :] = -torch.inf
        mask[-1, window - shift :, : window - shift] = -torch.inf
    real = (torch.arange(filled) < length).roll(-shift).view(-1, 1, window)
    mask = mask.masked_fill(~real, -torch.inf)
    mask[mask.amax(2) == -torch.inf] = 0  # a row that sees nothing would be NaN

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        scores = (q * scale) @ k.transpose(-1, -2) + mask.repeat(batch, 1, 1)[:, None].to(q.dtype)
        return scores.softmax(-1).to(v.dtype) @ v

    return block(rolled, attend).reshape(batch, filled, width).roll(shift, 1)[:, :length]


def run() -> list[Row]:
    return [row for setting in SETTINGS for row in inference(*setting)] + training()


def inference(what: str, kernel: int, length: int) -> list[Row]:
    ours, files = network(kernel, length), torch.randint(0, 256, (1, length), dtype=torch.int32)
    literal = Literal(ours)
    expected = _work(literal, files)()
    difference = float((_work(ours, files)() - expected).abs().max() / expected.abs().max())
    if difference > 1e-4:
        raise AssertionError(f"outputs differ by {difference:.3g} of the largest one; a timing would mean nothing")
    macs, macs_ours = (count_macs(model, files) / 1e9 for model in (literal, ours))
    note = f"outputs agree within {difference:.1g}; {macs:.1f} GMACs, ours {macs_ours:.1f} and the lookups"
    rows = []
    for bf16, name in ((False, "float32"), (True, "bfloat16 autocast")):
        ratio = compare(_work(ours, files, bf16), _work(literal, files, bf16), rounds=9, warmup=1)
        target = 2.5 if kernel == 32 and not bf16 else None
        rows.append(
            Row(f"Ti, {what}, one file", f"ours, {name}", "literal form, the same", ratio, target, "" if bf16 else note)
        )
    return rows


def training() -> list[Row]:
    """The laptop's network on TIFF files of digits: forward, backward and step."""
    files = torch.randint(0, 256, (64, 1146), dtype=torch.int32)
    steps = []
    for form in (lambda model: model, Literal):
        torch.manual_seed(0)
        model = ByteFormer(10, 64, 6, 2, kernel=64, max_tokens=34, window=64).train()
        steps.append(_step(form(model), files))
    ratio = compare(*steps, rounds=7, warmup=1)
    return [Row("small, 1,146 bytes, batch 64, training step", "ours, float32", "literal form, the same", ratio)]


def network(kernel: int, length: int) -> ByteFormer:
    torch.manual_seed(0)
    return ByteFormer(kernel=kernel, max_tokens=1 + (length - kernel) // (kernel // 2)).eval()


def _work(model: nn.Module, files: Tensor, bf16: bool = False) -> Callable[[], Tensor]:
    def work() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(files).float()

    return work


def _step(model: nn.Module, files: Tensor) -> Callable[[], Any]:
    labels = torch.arange(len(files)) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(files), labels).backward()
        optimizer.step()

    return step
