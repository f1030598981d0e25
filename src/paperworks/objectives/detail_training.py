"""Training of DetailFlow (2505.21473): prefixes against images at their resolution, planted errors, groups in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.group_parallel import GroupParallelTransformer
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import Compared, TokenizerTraining
from paperworks.tokenizers.detailflow import NEAREST, DetailFlow
from paperworks.tokenizers.quantizers import Quantized
from paperworks.tokenizers.resolution_map import resize
from paperworks.training.objective import Batch, Context, Losses, Phase


class DetailTraining(TokenizerTraining):
    """Each step decodes either all tokens, or with probability `prefix_share` a random prefix against the image at that
    prefix's resolution (shrunk to it, then brought to the size that is decoded).

    correction: share of the steps that also plant an error (a near code in the place of one token, or of a group) and train
    the later tokens to make up for it; both sequences are decoded, and their code losses count by how many tokens they have.
    quantize_from: first step that quantises; before it the decoder reads unit-length features as they are, all of them, and
    only pixels are compared. The published encoder starts from a pretrained network; from nothing, latents that are
    quantised at once take several times as many steps to say anything about the image.
    teacher: a frozen network with `features` (images in [0, 1] -> [B, D]); the first token is turned towards its answer with
    weight `global_weight` through a small network that is not kept.
    """

    tokenizer: DetailFlow

    def __init__(
        self,
        tokenizer: DetailFlow,
        *,
        prefix_share: float = 0.2,
        correction: float = 1.0,
        quantize_from: int = 0,
        teacher: Any = None,
        teacher_width: int = 0,
        global_weight: float = 1.0,
        **options: Any,
    ):
        super().__init__(tokenizer, **options)
        for name, share in (("prefix_share", prefix_share), ("correction", correction)):
            if not 0 <= share <= 1:
                raise InputError(f"{name}={share} is a share of the steps, between 0 and 1")
        if correction and tokenizer.refine_conv is None:
            raise InputError("this tokenizer was built without correction: build it with correction=True or train with 0")
        self.quantize_from = self.seed_step = quantize_from
        self.prefix_share, self.correction, self.global_weight = prefix_share, correction, global_weight
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        channels = tokenizer.quantize.channels
        self.global_projection = (
            nn.Sequential(
                nn.Linear(channels, 1024), nn.SiLU(), nn.Linear(1024, 1024), nn.SiLU(), nn.Linear(1024, teacher_width)
            )
            if teacher is not None
            else None
        )
        self._prefix, self._look = tokenizer.latents, True  # of this step: tokens that are decoded, perceptual loss or not

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def phases(self) -> Sequence[Phase]:
        first, *rest = super().phases()
        if self.global_projection is None:
            return (first, *rest)
        return (replace(first, modules=("tokenizer", "global_projection")), *rest)

    def _quantized(self, images: Tensor, ctx: Context) -> Quantized:
        model, plan = self.tokenizer, ctx.rng("prefix")
        chance = torch.rand(2, generator=plan, device=ctx.device)
        self._prefix = model.latents
        free = self.training and ctx.step < self.quantize_from
        if self.training and not free and float(chance[0]) < self.prefix_share:
            longest = model.latents - model.map.group
            length = int(torch.randint(1, longest + 1, (), generator=plan, device=ctx.device))
            self._prefix = model.map.round_up(length)
        z = self._seeded(model.features(images), ctx)
        self._look = not free
        if free:
            unit = F.normalize(z.float(), dim=-1)
            return Quantized(unit, unit.new_zeros(()), [model.quantize.encode(z)], [unit.detach().flatten(0, 1)])
        clean = model.quantize(z)
        start = model.map.corrupted(self._prefix, plan)
        if not self.training or start is None or float(chance[1]) >= self.correction:
            return clean
        ranks = torch.randint(min(NEAREST, model.vocab_size), z.shape[:2], generator=plan, device=ctx.device)
        found = model.corrupt(images, z, clean, start, ranks)
        later = model.latents - found.end
        total = model.latents + later
        loss = clean.loss * (model.latents / total)
        if later:
            loss = loss + found.repaired.loss * (later / total)
        return Quantized(torch.cat((clean.features, found.features)), loss, clean.indices, clean.vectors)

    def _compare(self, features: Tensor, images: Tensor) -> Compared:
        model, count = self.tokenizer, self._prefix
        target, side = images, model.image_size
        if count < model.latents:
            side = model.map.decoded(count)
            target = resize(resize(images, model.map.resolution(count)), side).clamp(0, 1)
        copies = len(features) // len(images)
        made = model.decode_signed(features[:, :count], side).float()
        found = self._against(made, target.repeat(copies, 1, 1, 1) if copies > 1 else target, look=self._look)
        if side < model.image_size:  # the discriminator sees all sizes at one
            found = found._replace(made=resize(found.made, model.image_size), real=resize(found.real, model.image_size))
        if self.teacher is None or self.global_projection is None:
            return found
        with torch.no_grad():
            wanted = self.teacher.features(images)
        turned = self.global_projection(features[: len(images), 0])
        loss = -F.cosine_similarity(turned, wanted, dim=-1).mean()
        return Compared(found.made, found.real, found.loss + self.global_weight * loss, found.logs | {"global": loss})


@torch.inference_mode()
def training_sequences(
    tokenizer: DetailFlow, images: Tensor, generator: torch.Generator, *, correction: bool = True, batch_size: int = 200
) -> dict[str, Tensor]:
    """What `GroupPrediction` is trained on: the `tokens` [N, L] of images, and with correction, each batch at a random place,
    `erring` sequences and what they should be followed by, `repaired`."""
    found: dict[str, list[Tensor]] = {"tokens": []}
    for batch in images.split(batch_size):
        z = tokenizer.features(batch)
        clean = tokenizer.quantize(z)
        found["tokens"].append(clean.indices[0])
        start = tokenizer.map.corrupted(tokenizer.latents, generator) if correction else None
        if start is None:
            continue
        ranks = torch.randint(min(NEAREST, tokenizer.vocab_size), z.shape[:2], generator=generator)
        mended = tokenizer.corrupt(batch, z, clean, start, ranks)
        found.setdefault("erring", []).append(mended.inputs)
        found.setdefault("repaired", []).append(mended.label)
    return {name: torch.cat(parts) for name, parts in found.items()}


class GroupPrediction(TokenPrediction):
    """All tokens from those before their group. Batches hold `tokens` int64 [B, L], and for self-correction `erring` (the same
    with a planted error and what repairs it) and `repaired` (what should be predicted from that); these take the place of the
    clean ones with probability `correction`."""

    def __init__(self, model: GroupParallelTransformer, label_dropout: float = 0.1, correction: float = 0.3):
        super().__init__(model, label_dropout)
        if not 0 <= correction <= 1:
            raise InputError(f"correction={correction} is a share of the images, between 0 and 1")
        self.correction = correction

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        given = wanted = batch["tokens"]
        if self.training and self.correction and "erring" in batch:
            chosen = torch.rand(len(given), 1, generator=ctx.rng("correction"), device=given.device) < self.correction
            given, wanted = torch.where(chosen, batch["erring"], given), torch.where(chosen, batch["repaired"], wanted)
        logits = self.model(self.labels(batch, ctx), given)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
        with torch.no_grad():
            accuracy = (logits.detach().argmax(-1) == wanted).float().mean()
        return Losses.mean(loss, wanted.numel(), accuracy=accuracy)
