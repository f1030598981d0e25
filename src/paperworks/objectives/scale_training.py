"""HMAR's two training stages (2506.04421): next-scale prediction with weighted scales, then masked prediction within scales.

Batches hold `tokens` int64 [B, L], all scales of a multi-scale tokenizer in order, and `label` int64 [B].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.generators.masked_scale import MaskedScaleTransformer, scale_weights, weighted_cross_entropy
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.tokenizers.multi_scale_quantizer import MultiScaleVQ
from paperworks.training.objective import Batch, Context, Losses


class ScaleTraining(TokenPrediction):
    """Next-scale prediction; the tokenizer's quantiser (frozen) makes the inputs. weights: see `scale_weights`."""

    def __init__(
        self,
        model: MaskedScaleTransformer,
        quantizer: MultiScaleVQ,
        label_dropout: float = 0.1,
        weights: Literal["lognorm", "equal", "uniform"] = "lognorm",
    ):
        super().__init__(model, label_dropout)
        self.quantizer = quantizer.requires_grad_(False)
        self.token_weights = scale_weights(model.patch_nums, weights)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        tokens, maps = batch["tokens"], self.maps(batch["tokens"])
        logits = self.model(self.labels(batch, ctx), self.quantizer.next_inputs(maps))
        loss = weighted_cross_entropy(logits, tokens, self.token_weights)
        accuracy = (logits.detach().argmax(-1) == tokens).float().mean()
        return Losses.mean(loss, len(tokens), accuracy=accuracy)

    def maps(self, tokens: Tensor) -> list[Tensor]:
        return list(tokens.split([side * side for side in self.quantizer.patch_nums], 1))


class MaskedScaleTraining(ScaleTraining):
    """Masked prediction with everything but the mask branch frozen. A share p ~ U(0, 1) of each scale but the first is hidden,
    the same positions for the whole batch and new ones every step; cross-entropy of the hidden tokens, plain mean."""

    def __init__(self, model: MaskedScaleTransformer, quantizer: MultiScaleVQ, label_dropout: float = 0.1):
        super().__init__(model, quantizer, label_dropout)
        model.requires_grad_(False)
        for parameter in model.mask_parameters():
            parameter.requires_grad_(True)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        tokens = batch["tokens"]
        sizes = [side * side for side in self.quantizer.patch_nums]
        masked = hidden_positions(sizes, ctx.rng("mask")).to(tokens.device)
        loss, accuracy, count = self.masked_loss(self.labels(batch, ctx), tokens, masked)
        return Losses.mean(loss, count, accuracy=accuracy)

    def masked_loss(self, labels: Tensor, tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, int]:
        """Cross-entropy and accuracy of the tokens hidden by masked, bool [L - first], and how many these are."""
        maps = self.maps(tokens)
        own = torch.cat([self.quantizer.own_inputs(scale, found) for scale, found in enumerate(maps) if scale], 1)
        logits = self.model(labels, self.quantizer.next_inputs(maps), own, masked)
        where = masked.nonzero()[:, 0] + maps[0].shape[1]
        chosen, wanted = logits[:, where], tokens[:, where]
        loss = F.cross_entropy(chosen.flatten(0, 1).float(), wanted.flatten())
        accuracy = (chosen.detach().argmax(-1) == wanted).float().mean()
        return loss, accuracy, wanted.numel()


def hidden_positions(sizes: list[int], generator: torch.Generator) -> Tensor:
    """bool [L - first]: ceil(p n) random positions of every scale but the first."""
    share = 1 - float(torch.rand((), generator=generator, device=generator.device))  # in (0, 1]: something is always hidden
    parts = []
    for size in sizes[1:]:
        order = torch.randperm(size, generator=generator, device=generator.device)
        parts.append(order < math.ceil(share * size))
    return torch.cat(parts)
