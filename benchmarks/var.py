"""VAR sampling at the width of d16 against what a user would otherwise run, with the same weights and the same draws:

- a plain sampler that encodes all earlier scales again in every pass and always runs both guidance branches;
- a next-token transformer of the same width and depth over the same 16 x 16 grid, with cached keys and values;
and the training step of the laptop recipe as a share of this processor's matrix-product peak.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Ratio, Row, compare
from paperworks.generators.draws import Draws, filter_logits, guide, pick
from paperworks.generators.next_scale import SCALES_256, NextScaleTransformer
from paperworks.generators.next_scale_sampling import sample
from paperworks.generators.next_token import NextTokenTransformer, sample_tokens
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQ
from paperworks.training import bf16_is_fast

DEPTH = 16
SETTINGS = {"guidance": 1.5, "top_k": 900, "top_p": 0.96}


@torch.inference_mode()
def reencoding_sample(model: NextScaleTransformer, quantizer: MultiScaleVQ, labels: Tensor, draws: Draws) -> list[Tensor]:
    """The textbook loop: a whole forward pass over everything so far for each scale, nothing kept in between."""
    both = torch.cat((labels, torch.full_like(labels, model.num_classes)))
    features, inputs = quantizer.begin(len(labels)), torch.empty(len(labels), 0, quantizer.channels)
    chosen = []
    for scale, side in enumerate(model.patch_nums):
        logits = model(both, inputs.repeat(2, 1, 1).to(model.head.weight.dtype)).float()[:, -side * side :]
        conditional, null = logits.chunk(2)
        logits = guide(conditional, null, SETTINGS["guidance"] * scale / (len(model.patch_nums) - 1))
        logits = filter_logits(logits, int(SETTINGS["top_k"]), SETTINGS["top_p"])
        indices = pick(logits, draws.uniform(f"uniform_{scale}", (len(labels), side * side)))
        chosen.append(indices)
        vectors = quantizer.lookup(indices).transpose(1, 2).unflatten(2, (side, side))
        features, following = quantizer.accumulate(scale, vectors, features)
        if following is not None:
            inputs = torch.cat((inputs, following), dim=1)
    return chosen


class _Codes(MultiScaleVQ):
    """The quantiser is all of the tokenizer that sampling needs; decoding is the same on both sides and left out."""

    def encode(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def decode_features(self, features: Tensor) -> Tensor:
        raise NotImplementedError


def run() -> list[Row]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    name = str(dtype).removeprefix("torch.")
    quantizer = _Codes(4096, 32, SCALES_256).eval()
    ours = NextScaleTransformer(1000, DEPTH, 64 * DEPTH, DEPTH).to(dtype).eval()
    labels = torch.tensor([207])

    def cached() -> list[Tensor]:
        return sample(ours, quantizer, labels, Draws.seeded(0, 1), guidance=1.5, top_k=900, top_p=0.96).indices

    def reencoded() -> list[Tensor]:
        return reencoding_sample(ours, quantizer, labels, Draws.seeded(0, 1))

    rows = [
        Row(
            f"one guided 256-pixel token map, d16, {name}",
            "cached next-scale",
            "re-encoding next-scale",
            compare(cached, reencoded, rounds=3, warmup=1),
            target=2.0,
            note=f"first scales drawn alike: {[bool(torch.equal(a, b)) for a, b in zip(cached()[:3], reencoded()[:3])]}",
        )
    ]
    theirs = NextTokenTransformer(1000, DEPTH, 64 * DEPTH, DEPTH, 256).to(dtype).eval()

    def tokens() -> Tensor:
        return sample_tokens(theirs, labels, Draws.seeded(0, 1), guidance=1.5, top_k=900, top_p=0.96)

    rows.append(
        Row(
            f"one guided 256-pixel token map, width of d16, {name}",
            "cached next-scale, 10 passes",
            "cached next-token, 256 passes",
            compare(cached, tokens, rounds=3, warmup=1),
            target=5.0,
        )
    )
    rows.append(_training_step())
    return rows


def _training_step(batch: int = 64) -> Row:
    """The laptop transformer's step; "peer" is the time its matrix products would take at peak."""
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    model = NextScaleTransformer(10, 6, 192, 3, (1, 2, 3, 4), 256, 16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    labels, inputs = torch.randint(0, 10, (batch,)), torch.randn(batch, model.length - 1, 16)
    tokens = torch.randint(0, 256, (batch, model.length))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(labels, inputs)
        F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    per_token = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and _acts_on_tokens(n))
    flops = 6 * per_token * batch * model.length
    side = 2048
    a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
    steps: list[float] = []
    peaks: list[float] = []
    for work in (step, lambda: a @ b):
        work()
    for _ in range(10):
        for work, times in ((step, steps), (lambda: a @ b, peaks)):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    peak = 2 * side**3 / median(peaks)
    shares = sorted(flops / peak / seconds for seconds in steps)
    ratio = Ratio(median(shares), shares[2], shares[-3], median(steps), flops / peak, len(steps))
    words = f"{flops / 1e9:.1f} GFLOP a step; peak {peak / 1e12:.2f} TFLOP/s in {dtype}"
    return Row("training step, laptop transformer, batch 64", "step", "its matrix products at peak", ratio, note=words)


def _acts_on_tokens(name: str) -> bool:
    return any(part in name for part in ("mat_qkv", "proj", "fc1", "fc2", "word_embed", "head.weight"))
