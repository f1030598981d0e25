"""Cross-entropy over image tokens, with label dropout for classifier-free guidance."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.training.objective import Batch, Context, Losses, Objective


class TeacherForced(Protocol):
    """A class-conditional token transformer: (labels [B], inputs) -> logits [B, L, V]."""

    num_classes: int

    def __call__(self, labels: Tensor, inputs: Tensor) -> Tensor: ...


class TokenPrediction(Objective):
    """Mean cross-entropy per token; every token counts the same, so large scales dominate (VAR, appendix).

    Batches hold `tokens` int64 [B, L], `label` int64 [B] and what the transformer is fed: `inputs` [B, ...] (next-scale
    prediction), or the tokens themselves when `inputs` is absent (next-token prediction).
    """

    needs = {"tokens": "int64 [B, L]", "label": "int64 [B]"}

    def __init__(self, model: nn.Module, label_dropout: float = 0.1, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.label_dropout, self.label_smoothing = label_dropout, label_smoothing

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        labels, tokens = self.labels(batch, ctx), batch["tokens"]
        logits = self.model(labels, batch.get("inputs", tokens))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.detach().argmax(-1) == tokens).float().mean()
        return Losses.mean(loss, tokens.numel(), accuracy=accuracy)

    def labels(self, batch: Batch, ctx: Context) -> Tensor:
        """Labels of which some became `num_classes`, no class, while training."""
        labels = batch["label"]
        if not self.training or not self.label_dropout:
            return labels
        dropped = torch.rand(labels.shape, generator=ctx.rng("label_dropout"), device=labels.device) < self.label_dropout
        return labels.masked_fill(dropped, self.model.num_classes)


@torch.inference_mode()
def negative_log_likelihood(model: nn.Module, batches: list[Batch]) -> float:
    """Nats per token of held-out batches under their own labels."""
    total, count = 0.0, 0
    for batch in batches:
        logits = model(batch["label"], batch.get("inputs", batch["tokens"])).float()
        total += float(F.cross_entropy(logits.flatten(0, 1), batch["tokens"].flatten(), reduction="sum"))
        count += batch["tokens"].numel()
    return total / count
