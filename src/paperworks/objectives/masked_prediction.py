"""Training of masked-token generators (MaskGIT 2202.04200, as TiTok trains it) and of RAR's random orders (2411.00776)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.masked import MaskedTransformer, masked_prediction_loss
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.training.objective import Batch, Context, Losses


class MaskedPrediction(TokenPrediction):
    """A share arccos(t) / (pi / 2), t uniform, of each image's tokens is hidden, at least one. Batches hold `tokens` int64
    [B, L] and `label` int64 [B]. kept_weight: of the loss on tokens that were not hidden."""

    def __init__(
        self, model: MaskedTransformer, label_dropout: float = 0.1, label_smoothing: float = 0.1, kept_weight: float = 0.1
    ):
        super().__init__(model, label_dropout, label_smoothing)
        if not 0 <= kept_weight <= 1:
            raise InputError(f"kept_weight={kept_weight} must lie in [0, 1]")
        self.kept_weight = kept_weight

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        tokens, model = batch["tokens"], self.model
        labels = self.labels(batch, ctx)
        share = torch.rand(len(tokens), 1, generator=ctx.rng("share"), device=tokens.device).acos() / (math.pi / 2)
        hidden = draw_hidden(share, tokens.shape[1], ctx.rng("hidden"))
        logits = model(labels, tokens.masked_fill(hidden, model.mask_token))
        loss = masked_prediction_loss(logits, tokens, hidden, self.label_smoothing, self.kept_weight)
        with torch.no_grad():
            right = (logits.argmax(-1) == tokens) & hidden
            accuracy = right.sum() / hidden.sum()
        return Losses.mean(loss, len(tokens), accuracy=accuracy)


def draw_hidden(share: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """bool [B, length]: a random round(share x length) of each row, at least one; share [B, 1]."""
    count = (share.clamp(1e-6, 1) * length).round().clamp(min=1)
    rank = torch.rand(len(share), length, generator=generator, device=share.device).argsort(1).argsort(1)
    return rank < count


class RandomOrderPrediction(TokenPrediction):
    """Each image in a random order with a probability that falls from 1 at `anneal[0]` of the training to 0 at `anneal[1]`,
    in raster order otherwise (RAR, section 3.2; 0.5 and 0.75 there)."""

    def __init__(
        self,
        model: nn.Module,
        label_dropout: float = 0.1,
        label_smoothing: float = 0.0,
        anneal: tuple[float, float] = (0.5, 0.75),
    ):
        super().__init__(model, label_dropout, label_smoothing)
        if not 0 <= anneal[0] <= anneal[1] <= 1:
            raise InputError(f"anneal={anneal} must be two shares of the training in rising order")
        self.anneal = anneal

    def random_share(self, progress: float) -> float:
        """Probability of a random order after `progress` (0 to 1) of the training."""
        start, end = self.anneal
        if progress < start:
            return 1.0
        return 0.0 if progress >= end else 1 - (progress - start) / (end - start)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        tokens = batch["tokens"]
        labels = self.labels(batch, ctx)
        rows, length = tokens.shape
        orders = torch.arange(length, device=tokens.device).expand(rows, -1)
        if self.training:
            mixed = torch.rand(rows, length, generator=ctx.rng("orders"), device=tokens.device).argsort(1)
            chosen = torch.rand(rows, 1, generator=ctx.rng("random"), device=tokens.device)
            orders = torch.where(chosen < self.random_share(ctx.step / max(1, ctx.max_steps)), mixed, orders)
        logits = self.model(labels, tokens, orders)
        wanted = tokens.gather(1, orders)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.detach().argmax(-1) == wanted).float().mean()
        return Losses.mean(loss, tokens.numel(), accuracy=accuracy)
