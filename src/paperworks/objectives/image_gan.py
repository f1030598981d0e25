"""Training of a generator against a discriminator (1406.2661) with the losses and regularisers of `adversarial`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.layers.autoencoder import to_signed
from paperworks.objectives.adversarial import Adversarial, augmented, judge_loss, maker_loss, r1_penalty
from paperworks.training.objective import Batch, Context, Losses, Objective, Phase


class ImageGAN(Objective):
    """Phases "generator" and "discriminator"; both see the same made images in a step.

    generator: latents [N, generator.latent] -> images in [-1, 1]. discriminator: images -> logits. The averaged weights
    (`TrainConfig.ema`) are those to keep.
    """

    generator: Any  # a module with a number `latent`

    def __init__(self, generator: nn.Module, discriminator: nn.Module, game: Adversarial | None = None):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.game = game or Adversarial("non_saturating")
        self.game.check()
        self._made: dict[int, Tensor] = {}  # of the current step alone, by micro-batch

    def phases(self) -> Sequence[Phase]:
        return (
            Phase("generator", modules=("generator",), optimizer="main"),
            Phase("discriminator", modules=("discriminator",), optimizer="discriminator"),
        )

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        images = batch["image"]
        return self._judge(to_signed(images), ctx) if phase == "discriminator" else self._make(len(images), ctx)

    def after_step(self, ctx: Context) -> None:
        self._made = {}

    def _make(self, count: int, ctx: Context) -> Losses:
        latents = torch.randn(count, self.generator.latent, generator=ctx.rng("latents"), device=ctx.device)
        made = self.generator(latents)
        self._made[ctx.micro] = made.detach()
        return Losses.mean(maker_loss(self._logits(made, ctx, "maker"), self.game.loss), count)

    def _judge(self, real: Tensor, ctx: Context) -> Losses:
        on_real = self._logits(real, ctx, "real")
        on_made = self._logits(self._made.pop(ctx.micro), ctx, "made")
        loss = judge_loss(on_real, on_made, self.game.loss)
        logs = {"on_real": on_real.mean(), "on_made": on_made.mean()}
        if self.game.r1 and ctx.step % self.game.r1_every == 0:
            penalty = r1_penalty(self.discriminator, real)
            loss = loss + self.game.r1 * self.game.r1_every * penalty
        return Losses.mean(loss, len(real), **logs)

    def _logits(self, images: Tensor, ctx: Context, turn: str) -> Tensor:
        if self.game.augment:
            images = augmented(images, self.game.augment, ctx.rng(f"augment {turn}"))
        return self.discriminator(images).float()
