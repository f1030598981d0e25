"""xAR: guided sampling of xAR-B as the library does it, against a straightforward transcription: conditional and null passes
one after the other, at every step of every entity, and a pass of its own that stores a finished entity's keys and values.

Paper: xar.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, compare
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import NextEntityTransformer
from paperworks.generators.next_entity_sampling import LAST_TIME, sample
from paperworks.layers.adaln_transformer import Attend
from paperworks.layers.kv_cache import KVCache


class _Branch:
    """One of the two branches with its own cache."""

    def __init__(self, model: NextEntityTransformer, labels: Tensor):
        self.model, self.labels = model, labels
        self.cache = KVCache(2 * model.depth, len(labels), model.heads, model.side**2, model.dim // model.heads)

    def velocity(self, x: Tensor, now: float, begin: int, store: bool = False) -> Tensor:
        times = torch.full((len(x), 1), now)
        where = slice(begin, begin + x.shape[1])
        made = self.model.velocity(self.labels, x.float(), times, where, self._attends)
        if store:
            self.cache.commit(x.shape[1])
        return made.double()

    def _attends(self, layer: int) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            keys, values = self.cache.append(layer, key, value)
            return F.scaled_dot_product_attention(query, keys, values, scale=scale)

        return attend


@torch.no_grad()
def transcribed(model: NextEntityTransformer, labels: Tensor, draws: Draws, steps: int, guidance: float) -> Tensor:
    branches = _Branch(model, labels), _Branch(model, torch.full_like(labels, model.num_classes))
    times = [*torch.linspace(1, LAST_TIME, steps, dtype=torch.float64).tolist(), 0.0]
    sizes, done, begin = model.entities.sizes, [], 0
    for number, size in enumerate(sizes):
        x = draws.normal(f"start_{number}", (len(labels), size, model.channels)).double()
        weight = 1 + (guidance - 1) * number / max(1, len(sizes) - 1)
        for step, (now, following) in enumerate(pairwise(times)):
            drifts = []
            for branch in branches:
                velocity = branch.velocity(x, now, begin)
                score = -(x + (1 - now) * velocity) / now
                drifts.append(velocity - now * score)
            x = x + (drifts[1] + weight * (drifts[0] - drifts[1])) * (following - now)
            if following > 0:
                noise = draws.normal(f"eps_{number}_{step}", tuple(x.shape)).double()
                x = x + (2 * now) ** 0.5 * abs(following - now) ** 0.5 * noise
        for branch in branches:
            branch.velocity(x, 0.0, begin, store=True)
        done.append(x.float())
        begin += size
    return model.entities.merge(torch.cat(done, 1), model.side, model.side)


def run() -> list[Row]:
    torch.manual_seed(0)
    model = NextEntityTransformer().eval()
    return [_row(model, images, steps) for images, steps in ((1, 10), (2, 5))]


def _row(model: NextEntityTransformer, images: int, steps: int) -> Row:
    labels = torch.arange(images)

    def ours() -> Tensor:
        return sample(model, labels, Draws.seeded(0, images), steps=steps, guidance=2.7).latents

    def theirs() -> Tensor:
        return transcribed(model, labels, Draws.seeded(0, images), steps, 2.7)

    works: tuple[Callable[[], Tensor], Callable[[], Tensor]] = (ours, theirs)
    difference = float((works[0]() - works[1]()).abs().max())
    assert difference < 1e-2, f"the two samplers differ by {difference}"
    what = f"xAR-B, 256 pixels, {steps} steps an entity, images: {images}"
    note = f"latents differ by at most {difference:.1e}"
    return Row(what, "one pass of both branches", "separate passes", compare(ours, theirs, 5, warmup=1), target=1.3, note=note)
