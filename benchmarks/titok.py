"""TiTok: guided parallel decoding as a library does it, against a straightforward transcription: two passes a step, always.

Paper: titok.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.harness import Row, compare
from paperworks.generators.draws import Draws
from paperworks.generators.masked import MaskedTransformer
from paperworks.generators.masked_sampling import MaskedSampling, sample


@torch.no_grad()
def transcribed(model: MaskedTransformer, labels: Tensor, draws: Draws, settings: MaskedSampling) -> Tensor:
    """A conditional and a null pass at every step, one after the other."""
    rows, length = len(labels), model.tokens
    tokens = torch.full((rows, length), model.mask_token)
    for step in range(settings.steps):
        ratio = (step + 1) / settings.steps
        hidden = tokens == model.mask_token
        conditional = model(labels, tokens)
        null = model(torch.full_like(labels, model.num_classes), tokens)
        logits = conditional + settings.extra_weight(step) * (conditional - null)
        logits = logits / (0.5 + 0.8 * (1 - ratio))
        noise = settings.noise * (1 - ratio)
        if noise:
            uniform = draws.uniform(f"tokens_{step}", tuple(logits.shape))
            drawn = (logits + noise * -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()).argmax(-1)
        else:
            drawn = logits.argmax(-1)
        certainty = logits.gather(-1, drawn[..., None])[..., 0].masked_fill(~hidden, torch.inf)
        tokens = torch.where(hidden, drawn, tokens)
        if step == settings.steps - 1:
            break
        uniform = draws.uniform(f"conf_{step}", tuple(certainty.shape))
        certainty = certainty + noise * -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        again = max(1, min(int(hidden[0].sum()) - 1, math.floor(length * math.acos(ratio) / (math.pi / 2))))
        tokens = torch.where(certainty <= certainty.sort(1).values[:, again - 1 : again], model.mask_token, tokens)
    return tokens


def run() -> list[Row]:
    torch.manual_seed(0)
    model = MaskedTransformer(1000, 32, 4096, 768, 24, 16).eval()
    return [_row(model, images) for images in (1, 4)]


def _row(model: MaskedTransformer, images: int) -> Row:
    labels, settings = torch.arange(images), MaskedSampling()

    def ours() -> Tensor:
        return sample(model, labels, Draws.seeded(0, images), settings)

    def theirs() -> Tensor:
        return transcribed(model, labels, Draws.seeded(0, images), settings)

    agree = float((ours() == theirs()).float().mean())
    what = f"TiTok-L-32's generator, 8 steps, images: {images}"
    note = f"tokens equal: {agree:.1%}"
    return Row(what, "one pass of both", "two passes", compare(ours, theirs, rounds=7), target=1.3, note=note)
