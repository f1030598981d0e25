"""ResGen's training (2412.10208, section 3.2): tokens hidden from the deep end, the likelihood of their sum."""

from __future__ import annotations

import torch
from torch import Tensor

from paperworks.generators.residual_masked import (
    ResidualMaskedTransformer,
    cosine_total,
    draw_masked_counts,
    keep_mask,
)
from paperworks.generators.residual_masked_sampling import vectors_of
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.tokenizers.quantizers import ResidualQuantizer
from paperworks.training.objective import Batch, Context, Losses


class ResidualMasking(TokenPrediction):
    """Batches hold `tokens` int64 [B, D L] (level after level) and `label`. The share of hidden tokens follows a cosine of
    U(0, 1), counts per position the hypergeometric distribution; the loss is the mean over positions that hide something."""

    def __init__(self, model: ResidualMaskedTransformer, quantizer: ResidualQuantizer, label_dropout: float = 0.1):
        super().__init__(model, label_dropout)
        self.quantizer = quantizer.requires_grad_(False)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        labels, model = self.labels(batch, ctx), self.model
        assert isinstance(model, ResidualMaskedTransformer)
        indices = levels_last(batch["tokens"], model.depth)
        vectors = vectors_of(self.quantizer, indices)
        progress = torch.rand(len(indices), generator=ctx.rng("share"), device=labels.device)
        total = cosine_total(progress, model.positions * model.depth).clamp(min=1)
        masked = draw_masked_counts(len(indices), model.positions, model.depth, total, ctx.rng("counts"))
        keep = keep_mask(masked, model.depth)[..., None]
        target = (vectors * ~keep).sum(2) / model.scales[masked][..., None]
        mixture = model(labels, (vectors * keep).sum(2), model.depth - masked)
        hidden = masked > 0
        nats = mixture.negative_log_likelihood(target)[hidden]
        return Losses.mean(nats.mean() / model.code_channels, int(hidden.sum()), nats=nats.mean())


def levels_last(tokens: Tensor, depth: int) -> Tensor:
    """[B, D L], level after level -> [B, L, D]."""
    return tokens.unflatten(1, (depth, -1)).transpose(1, 2)
