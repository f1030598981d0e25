"""Flow matching on the straight path x_t = (1 - t) x + t noise, whose velocity is noise - x (2210.02747; xAR 2502.20388)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.next_entity import NextEntityTransformer
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.training.objective import Batch, Context, Losses


def noised(clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t, velocity) for times that broadcast against clean."""
    return (1 - times) * clean + times * noise, noise - clean


class EntityFlow(TokenPrediction):
    """Velocity of every entity at its own time. Batches hold `latents` float [B, channels, side, side] and `label` int64 [B].

    context "noisy" (the paper): all entities are noised, so earlier ones are as imperfect as in sampling; "clean": teacher
    forcing, the baseline, where every entity is noised and learned too but after clean ones, which takes a copy of the batch
    per entity. Times are sigmoid(N(0, 1)), independent per entity.
    """

    needs = {"latents": "float [B, C, H, W]", "label": "int64 [B]"}

    def __init__(self, model: NextEntityTransformer, label_dropout: float = 0.1, context: Literal["noisy", "clean"] = "noisy"):
        super().__init__(model, label_dropout)
        if context not in ("noisy", "clean"):
            raise InputError(f"context={context!r}: there are 'noisy' and 'clean'")
        self.context = context

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        labels, model = self.labels(batch, ctx), self.model
        assert isinstance(model, NextEntityTransformer)
        clean = model.entities.split(batch["latents"])
        rows, count = len(clean), len(model.entities.sizes)
        times = torch.randn(rows, count, generator=ctx.rng("times"), device=clean.device).sigmoid()
        noise = torch.randn(clean.shape, generator=ctx.rng("noise"), device=clean.device)
        learned = torch.ones_like(times, dtype=torch.bool)
        if self.context == "clean":
            # copy k noises entity k alone; what follows it is not seen, and what comes before is as it should be
            learned = torch.eye(count, dtype=torch.bool, device=clean.device).repeat_interleave(rows, 0)
            times = times.repeat(count, 1) * learned
            clean, noise, labels = clean.repeat(count, 1, 1), noise.repeat(count, 1, 1), labels.repeat(count)
        given, wanted = noised(clean, noise, times[:, model.entity_of, None])
        made = model(labels, given, times).float()
        where = learned[:, model.entity_of]
        loss = F.mse_loss(made[where], wanted[where])
        return Losses.mean(loss, rows)
