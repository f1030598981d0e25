"""Training of an image tokenizer: reconstruction, perceptual and adversarial loss (VQGAN 2012.09841, section 3.1, equations
4 to 7), which VAR's authors used (2404.02905, appendix) and did not release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.autoencoder import to_signed
from paperworks.objectives.adversarial import (
    Adversarial,
    LeCam,
    adaptive_weight,
    augmented,
    judge_loss,
    maker_loss,
    r1_penalty,
)
from paperworks.tokenizers.quantizers import Quantized
from paperworks.training.objective import Batch, Context, Losses, Objective, Phase
from paperworks.training.seeds import mixed_seed

__all__ = ["Compared", "TokenizerTraining", "TrainableTokenizer", "adaptive_weight"]


class TrainableTokenizer(Protocol):
    """What training needs of a tokenizer (a module with these)."""

    quantize: Any
    """called with features, gives features, loss, indices and vectors; has hits, note_hits and usage, and where it has codes
    seed_codes and revive"""
    decoder: Any
    """has last_layer, unless the tokenizer itself has"""

    def features(self, images: Tensor) -> Tensor: ...
    def decode_signed(self, features: Tensor) -> Tensor: ...


class Compared(NamedTuple):
    """What a decoder made, what it should have made (both in [-1, 1]), the loss, and what to log."""

    made: Tensor
    real: Tensor
    loss: Tensor
    logs: dict[str, Tensor]


class TokenizerTraining(Objective):
    """Two phases: "generator" trains the tokenizer, "discriminator" the judge, from step `adversarial_start` on.

    The tokenizer's loss is
        l2_weight * L2 + l1_weight * L1 + perceptual_weight * perceptual + codebook_weight * quantiser's loss
        + adversarial_weight * adaptive weight * adversarial
    where the adaptive weight equalises the gradients of the pixel and perceptual part and of the adversarial part at the
    decoder's last layer (equation 7).

    perceptual: module (made, real) -> scalar on [0, 1] images, or None. discriminator: None for no adversarial term;
    `adversarial` says which losses and regularisers it plays by.
    Code book: started from the first batch's residuals; codes that fall out of use are put onto residuals of the current
    batch every `revive_every` steps during the first half, so that small data use it all too (0 switches both off). A quantiser
    without codes, such as a VAE's posterior, goes without.
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
        adversarial: Adversarial | None = None,
        l2_weight: float = 1.0,
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
        if not (l2_weight or l1_weight or perceptual_weight * (perceptual is not None)):
            raise InputError("a tokenizer needs a reconstruction loss: l2_weight, l1_weight and perceptual_weight are all 0")
        self.tokenizer, self.perceptual, self.discriminator = tokenizer, perceptual, discriminator
        self.game = adversarial or Adversarial()
        self.game.check()
        self.lecam = LeCam() if discriminator is not None and self.game.lecam else None
        self.l2_weight, self.l1_weight, self.perceptual_weight = l2_weight, l1_weight, perceptual_weight
        self.codebook_weight = codebook_weight
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.revive_every = revive_every if hasattr(tokenizer.quantize, "revive") else 0
        self.revive_below = revive_below
        self.seed_step = 0
        # of the current step alone, so a resumed run misses nothing:
        self._made: dict[int, tuple[Tensor, Tensor]] = {}  # each micro-batch's made and real images, for the discriminator
        self._tokens: list[tuple[list[Tensor], list[Tensor]]] = []  # each micro-batch's tokens and quantised vectors
        self._judged: list[Tensor] = []  # each micro-batch's mean logits on real and made images

    def phases(self) -> Sequence[Phase]:
        maker = Phase("generator", modules=("tokenizer",), optimizer="main")
        if self.discriminator is None:
            return (maker,)
        judge = Phase("discriminator", modules=("discriminator",), optimizer="discriminator", start=self.adversarial_start)
        return (maker, judge)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        return self._judge_loss(batch, ctx) if phase == "discriminator" else self._maker_loss(batch, ctx)

    # --- the tokenizer's turn ---

    def _maker_loss(self, batch: Batch, ctx: Context) -> Losses:
        images = batch["image"]
        quantized = self._quantized(images, ctx)
        if self.training:
            self._tokens.append((quantized.indices, quantized.vectors))
        made, real, loss, logs = self._compare(quantized.features, images)
        if self.discriminator is not None and ctx.step >= self.adversarial_start and self.training:
            self._made[ctx.micro] = made.detach(), real
            fooled = maker_loss(self._judged_logits(made, ctx, "maker"), self.game.loss)
            adaptive = torch.ones(())
            if self.game.adaptive:
                last = getattr(self.tokenizer, "last_layer", None)
                adaptive = adaptive_weight(loss, fooled, self.tokenizer.decoder.last_layer if last is None else last, ctx.world)
            loss = loss + self.adversarial_weight * adaptive * fooled
            logs |= {"fooled": fooled, "adversarial_weight": self.adversarial_weight * adaptive}
        loss = loss + self.codebook_weight * quantized.loss
        logs |= {"codes": quantized.loss, "code_usage": self.tokenizer.quantize.usage()}
        return Losses.mean(loss, len(images), **logs)

    def _quantized(self, images: Tensor, ctx: Context) -> Quantized:
        return self.tokenizer.quantize(self._seeded(self.tokenizer.features(images), ctx))

    def _seeded(self, features: Tensor, ctx: Context) -> Tensor:
        """The same features; in step `seed_step` the code book starts from them."""
        if self.training and self.revive_every and ctx.step == self.seed_step and ctx.micro == 0:
            everyone = _from_all_processes(features.detach().float(), ctx)
            self.tokenizer.quantize.seed_codes(everyone, _common_generator(ctx, "codes"))
        return features

    def _compare(self, features: Tensor, images: Tensor) -> Compared:
        """What is made of quantised features, beside the images it should be."""
        return self._against(self.tokenizer.decode_signed(features).float(), images)

    def _against(self, made: Tensor, images: Tensor, look: bool = True) -> Compared:
        """made in about [-1, 1], images in [0, 1], of one size. look: with the perceptual loss, if there is one."""
        real = to_signed(images)
        squared = F.mse_loss(made, real)
        loss, logs = self.l2_weight * squared, {"mse": squared}
        if self.l1_weight:
            loss = loss + self.l1_weight * F.l1_loss(made, real)
        if look and self.perceptual is not None and self.perceptual_weight:
            perceptual = self.perceptual((made + 1) / 2, images)
            loss = loss + self.perceptual_weight * perceptual
            logs["perceptual"] = perceptual
        return Compared(made, real, loss, logs)

    # --- the discriminator's turn ---

    def _judge_loss(self, batch: Batch, ctx: Context) -> Losses:
        made, real = self._made.pop(ctx.micro)
        on_real, on_made = self._judged_logits(real, ctx, "real"), self._judged_logits(made, ctx, "made")
        loss = judge_loss(on_real, on_made, self.game.loss)
        logs = {"on_real": on_real.mean(), "on_made": on_made.mean()}
        if self.lecam is not None:
            loss = loss + self.game.lecam * self.lecam(on_real, on_made)
            self._judged.append(torch.stack([on_real.mean(), on_made.mean()]).detach())
        if self.game.r1 and ctx.step % self.game.r1_every == 0:
            assert self.discriminator is not None
            penalty = r1_penalty(self.discriminator, real)
            loss = loss + self.game.r1 * self.game.r1_every * penalty
            logs["r1"] = penalty
        return Losses.mean(loss, len(real), **logs)

    def _judged_logits(self, images: Tensor, ctx: Context, turn: str) -> Tensor:
        assert self.discriminator is not None
        if self.game.augment:
            images = augmented(images, self.game.augment, ctx.rng(f"augment {turn}"))
        return self.discriminator(images).float()

    # --- after both ---

    def after_step(self, ctx: Context) -> None:
        if self._tokens:
            self._keep_codes_in_use(ctx)
        if self.lecam is not None and self._judged:
            means = ctx.summed(torch.stack(self._judged).mean(0)) / ctx.world
            self.lecam.update(means[0], means[1])
        self._made, self._tokens, self._judged = {}, [], []

    def _keep_codes_in_use(self, ctx: Context) -> None:
        quantize = self.tokenizer.quantize
        hits = torch.stack([quantize.hits(indices) for indices, _ in self._tokens]).sum(0)
        quantize.note_hits(ctx.summed(hits), ctx.step)
        if self.revive_every and (ctx.step + 1) % self.revive_every == 0 and ctx.step < ctx.max_steps / 2:
            scales = zip(*(vectors for _, vectors in self._tokens))
            lately = torch.cat([_from_all_processes(torch.cat(parts), ctx) for parts in scales])
            quantize.revive(lately[lately.isfinite().all(1)], _common_generator(ctx, "revive"), self.revive_below)


def _common_generator(ctx: Context, name: str) -> torch.Generator:
    """The same draws on every process."""
    return torch.Generator(device=ctx.device).manual_seed(mixed_seed(ctx.seed, name, ctx.step))


def _from_all_processes(rows: Tensor, ctx: Context) -> Tensor:
    """Rows of all processes in order of rank, on each of them."""
    if ctx.world == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(ctx.world)]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
