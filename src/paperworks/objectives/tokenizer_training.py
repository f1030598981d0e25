"""Training of an image tokenizer: reconstruction, perceptual and adversarial loss (VQGAN 2012.09841, section 3.1, equations
4 to 7), which VAR's authors used (2404.02905, appendix) and did not release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.autoencoder import to_signed
from paperworks.training.objective import Batch, Context, Losses, Objective, Phase


class TrainableTokenizer(Protocol):
    """What training needs of a tokenizer (a module with these)."""

    quantize: Any
    """called with features; has embedding, seed_codes, note_hits and revive"""
    decoder: Any
    """has last_layer"""

    def features(self, images: Tensor) -> Tensor: ...
    def decode_signed(self, features: Tensor) -> Tensor: ...


class TokenizerTraining(Objective):
    """Two phases: "generator" trains the tokenizer, "discriminator" the judge, from step `adversarial_start` on.

    perceptual: module (made, real) -> scalar on [0, 1] images, or None. discriminator: None for no adversarial term.
    The adversarial weight is adaptive: it equalises both losses' gradients at the decoder's last layer (equation 7).
    Code book: started from the first batch's features, and codes that fall out of use are put back onto residuals of the
    current batch every `revive_every` steps during the first half, so that small data still use it all.
    """

    tokenizer: Any  # a TrainableTokenizer that is also a module
    perceptual: nn.Module | None
    discriminator: nn.Module | None

    def __init__(
        self,
        tokenizer: nn.Module,
        *,
        perceptual: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        l1_weight: float = 0.0,
        perceptual_weight: float = 1.0,
        adversarial_weight: float = 0.5,
        adversarial_start: int = 0,
        codebook_weight: float = 1.0,
        revive_every: int = 20,
        revive_below: float = 0.1,
    ):
        super().__init__()
        for name in ("features", "decode_signed", "quantize", "decoder"):
            if not hasattr(tokenizer, name):
                raise InputError(f"{type(tokenizer).__name__} cannot be trained as a tokenizer: it has no {name}")
        self.tokenizer, self.perceptual, self.discriminator = tokenizer, perceptual, discriminator
        self.l1_weight, self.perceptual_weight, self.codebook_weight = l1_weight, perceptual_weight, codebook_weight
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.revive_every, self.revive_below = revive_every, revive_below
        self._made: dict[int, Tensor] = {}  # reconstructions of this step's micro-batches, for the discriminator's turn

    def phases(self) -> Sequence[Phase]:
        generator = Phase("generator", modules=("tokenizer",), optimizer="main")
        if self.discriminator is None:
            return (generator,)
        judge = Phase("discriminator", modules=("discriminator",), optimizer="discriminator", start=self.adversarial_start)
        return (generator, judge)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        return self._discriminator_loss(batch, ctx) if phase == "discriminator" else self._generator_loss(batch, ctx)

    def _generator_loss(self, batch: Batch, ctx: Context) -> Losses:
        images = batch["image"]
        real = to_signed(images)
        features = self.tokenizer.features(images)
        if self.training and ctx.step == 0 and ctx.micro == 0:
            self.tokenizer.quantize.seed_codes(features.detach(), ctx.rng("codes"))
            _share_from_first(self.tokenizer.quantize.embedding.weight, ctx)
        quantized = self.tokenizer.quantize(features)
        if self.training:
            self.tokenizer.quantize.note_hits(quantized.indices)
        made = self.tokenizer.decode_signed(quantized.features).float()
        squared = F.mse_loss(made, real)
        loss = squared
        logs = {"mse": squared, "codes": quantized.loss}
        if self.l1_weight:
            loss = loss + self.l1_weight * F.l1_loss(made, real)
        if self.perceptual is not None and self.perceptual_weight:
            perceptual = self.perceptual((made + 1) / 2, images)
            loss = loss + self.perceptual_weight * perceptual
            logs["perceptual"] = perceptual
        if self.discriminator is not None and ctx.step >= self.adversarial_start and self.training:
            self._made[ctx.micro] = made.detach()
            fooled = -self.discriminator(made).float().mean()
            weight = self.adversarial_weight * adaptive_weight(loss, fooled, self.tokenizer.decoder.last_layer)
            loss = loss + weight * fooled
            logs |= {"fooled": fooled, "adversarial_weight": weight}
        loss = loss + self.codebook_weight * quantized.loss
        return Losses.mean(loss, len(images), **logs)

    def _discriminator_loss(self, batch: Batch, ctx: Context) -> Losses:
        assert self.discriminator is not None
        real, made = to_signed(batch["image"]), self._made.pop(ctx.micro)
        on_real, on_made = self.discriminator(real).float(), self.discriminator(made).float()
        loss = (F.relu(1 - on_real).mean() + F.relu(1 + on_made).mean()) / 2  # hinge loss
        return Losses.mean(loss, len(real), on_real=on_real.mean(), on_made=on_made.mean())

    def after_step(self, ctx: Context) -> None:
        if self.revive_every and (ctx.step + 1) % self.revive_every == 0 and ctx.step < ctx.max_steps / 2:
            self.tokenizer.quantize.revive(ctx.rng("revive"), self.revive_below)
            _share_from_first(self.tokenizer.quantize.embedding.weight, ctx)
            _share_from_first(self.tokenizer.quantize.ema_vocab_hit_SV, ctx)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Gradient norm of the reconstruction loss over that of the adversarial one at the last layer, at most 1e4 (equation 7)."""
    if not reconstruction.requires_grad or not last_layer.requires_grad:
        return torch.ones(())
    ours = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    theirs = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()


def _share_from_first(values: Tensor, ctx: Context) -> None:
    """Every process continues with the first one's values."""
    if ctx.world > 1:
        torch.distributed.broadcast(values.data, src=0)
