"""Cross-entropy over image tokens, with label dropout for classifier-free guidance."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.training.objective import Batch, Context, Losses, Objective


class TeacherForced(Protocol):
    """A class-conditional token transformer: (labels [B], inputs) -> logits [B, L, V]."""

    num_classes: int

    def __call__(self, labels: Tensor, inputs: Tensor) -> Tensor: ...


class TokenPrediction(Objective):
    """Mean cross-entropy per token; every token counts the same, so large scales dominate (VAR, appendix).

    Batches hold `tokens` int64 [B, L], `label` int64 [B] and what the transformer is fed: `inputs` [B, ...] (next-scale
    prediction), or the tokens themselves when `inputs` is absent (next-token prediction).
    keep: chance that such a token is read as it is while training; else a random one takes its place (the pkeep of VQGAN's
    transformer, 2012.09841), so that the network learns to go on from mistakes. What it should say stays.
    """

    needs = {"tokens": "int64 [B, L]", "label": "int64 [B]"}

    def __init__(self, model: nn.Module, label_dropout: float = 0.1, label_smoothing: float = 0.0, *, keep: float = 1.0):
        super().__init__()
        if not 0 <= keep <= 1:
            raise InputError(f"keep={keep} is the chance of a token to stay, between 0 and 1")
        self.model = model
        self.label_dropout, self.label_smoothing, self.keep = label_dropout, label_smoothing, keep

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        labels, tokens = self.labels(batch, ctx), batch["tokens"]
        logits = self.model(labels, batch["inputs"] if "inputs" in batch else self._read(tokens, ctx))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.detach().argmax(-1) == tokens).float().mean()
        return Losses.mean(loss, tokens.numel(), accuracy=accuracy)

    def _read(self, tokens: Tensor, ctx: Context) -> Tensor:
        if not self.training or self.keep == 1:
            return tokens
        generator, vocabulary = ctx.rng("keep"), cast(int, self.model.vocab_size)
        kept = torch.rand(tokens.shape, generator=generator, device=tokens.device) < self.keep
        others = torch.randint(vocabulary, tokens.shape, generator=generator, device=tokens.device)
        return torch.where(kept, tokens, others)

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
