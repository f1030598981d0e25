"""Training of PUT's P-VQVAE (2205.05076, section 3.1.4): reconstruct complete images from their tokens, with whatever a random
mask leaves of the image as reference, and learn codes for patches that a hole touches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.layers.autoencoder import to_signed
from paperworks.objectives.adversarial import Adversarial, maker_loss
from paperworks.objectives.style import ContentStyle
from paperworks.objectives.tokenizer_training import TokenizerTraining, _common_generator, _from_all_processes
from paperworks.tokenizers.dual_quantizer import KNOWN, token_types
from paperworks.training.objective import Batch, Context, Losses


def gradient_loss(made: Tensor, real: Tensor) -> Tensor:
    """L1 between the absolute differences of neighbouring pixels, mean of both directions."""
    across = F.l1_loss(made.diff(dim=3).abs(), real.diff(dim=3).abs())
    return (across + F.l1_loss(made.diff(dim=2).abs(), real.diff(dim=2).abs())) / 2


class InpaintingCodecTraining(TokenizerTraining):
    """Batches hold `image` and `hole` (bool [B, H, W]). With images in [0, 1], u the unknown part and from step `start` on all
    of it, before only the first and the last term:

        L1 / mean(u) + gradient * |gradient difference| + content * content + style * style(only u) + adversarial * nsGAN
        + quantiser's loss

    erase: share of images that are shown, and to be rebuilt, with a second hole in black, whose patches take codes of the
    second part. no_reference: share of images that leave the decoder nothing to refer to. perceptual: None for no content and
    style. noisy_steps: first steps in which codes are drawn with Gumbel noise (2024; its scale falls to a tenth after a tenth
    of them).
    """

    needs = {"image": "float NCHW in [0, 1]", "hole": "bool [B, H, W]"}

    def __init__(
        self,
        tokenizer: nn.Module,
        *,
        perceptual: ContentStyle | None = None,
        discriminator: nn.Module | None = None,
        start: int = 5000,
        gradient_weight: float = 5.0,
        content_weight: float = 0.1,
        style_weight: float = 250.0,
        adversarial_weight: float = 0.1,
        erase: float = 0.2,
        no_reference: float = 0.3,
        noisy_steps: int = 0,
        revive_every: int = 20,
    ):
        super().__init__(
            tokenizer,
            discriminator=discriminator,
            adversarial=Adversarial("non_saturating"),
            l2_weight=0.0,
            l1_weight=1.0,
            perceptual_weight=0.0,
            adversarial_weight=adversarial_weight,
            adversarial_start=start,
            revive_every=revive_every,
        )
        self.look, self.start = perceptual, start
        self.gradient_weight, self.content_weight, self.style_weight = gradient_weight, content_weight, style_weight
        self.erase, self.no_reference, self.noisy_steps = erase, no_reference, noisy_steps

    def _maker_loss(self, batch: Batch, ctx: Context) -> Losses:
        images, known, shown_part = self._masked(batch, ctx)
        tokenizer, quantize = self.tokenizer, self.tokenizer.quantize
        types, _ = token_types(shown_part, tokenizer.patch)
        if self.training and self.revive_every and ctx.step == 0 and ctx.micro == 0:
            self._begin(batch, ctx)
        features = tokenizer.features(images)
        quantized = quantize(features, types, *self._noise(features, ctx))
        if self.training:
            self._tokens.append((quantized.indices, quantized.vectors))
        made = tokenizer.decode_signed(quantized.features, images, known).float()
        loss, logs = self._rebuilding(made, images, (~known).float(), ctx)
        if self.discriminator is not None and ctx.step >= self.start and self.training:
            self._made[ctx.micro] = made.detach(), to_signed(images)  # real ones as they were shown
            fooled = maker_loss(self._judged_logits(made, ctx, "maker"), self.game.loss)
            loss = loss + self.adversarial_weight * fooled
            logs["fooled"] = fooled
        loss = loss + self.codebook_weight * quantized.loss
        return Losses.mean(loss, len(images), codes=quantized.loss, code_usage=quantize.usage(), **logs)

    def _masked(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Images as they are shown, the part the decoder may refer to, and the part that was not erased."""
        images, hole = batch["image"], batch["hole"][:, None]
        shown = torch.ones_like(hole)
        if self.training:
            chance = torch.rand(2, len(images), 1, 1, 1, generator=ctx.rng("masks"), device=images.device)
            shown = ~(hole.roll(1, 0) & (chance[0] < self.erase))  # the hole of another image
            images = images * shown
            hole = hole | (chance[1] < self.no_reference)
        return images, ~hole & shown, shown

    def _rebuilding(self, made: Tensor, images: Tensor, unknown: Tensor, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        made = (made + 1) / 2
        pixels = F.l1_loss(made, images)
        loss = pixels / unknown.mean().clamp(min=1e-3)
        logs = {"l1": pixels}
        if ctx.step < self.start and self.training:
            return loss, logs
        if self.gradient_weight:
            logs["gradient"] = gradient_loss(made, images)
            loss = loss + self.gradient_weight * logs["gradient"]
        if self.look is not None:
            logs["content"], logs["style"] = self.look(made, images, unknown)
            loss = loss + self.content_weight * logs["content"] + self.style_weight * logs["style"]
        return loss, logs

    def _noise(self, features: Tensor, ctx: Context) -> tuple[Any, ...]:
        if not self.training or ctx.step >= self.noisy_steps:
            return ()
        shape = (*features.shape[:-1], self.tokenizer.quantize.vocab_size)
        drawn = torch.empty(shape, device=features.device).exponential_(generator=ctx.rng("codes"))
        return drawn, 1.0 if ctx.step < self.noisy_steps / 10 else 0.1

    # --- the code book's two parts ---

    @torch.no_grad()
    def _begin(self, batch: Batch, ctx: Context) -> None:
        """Bring features to the scale of codes, and start both parts of the code book from the first batch."""
        tokenizer, images, known = self.tokenizer, batch["image"], ~batch["hole"][:, None]
        touched_types, _ = token_types(known, tokenizer.patch)
        with torch.autocast(images.device.type, enabled=False):
            clean = _from_all_processes(tokenizer.features(images).flatten(0, 2), ctx)
            if hasattr(tokenizer, "standardize"):
                tokenizer.standardize(clean)
                clean = _from_all_processes(tokenizer.features(images).flatten(0, 2), ctx)
            masked = _from_all_processes(tokenizer.features(images, known).flatten(0, 2), ctx)
        touched = _from_all_processes((touched_types != KNOWN).flatten(), ctx)
        tokenizer.quantize.seed_codes(clean, _common_generator(ctx, "codes"), masked[touched])

    def _keep_codes_in_use(self, ctx: Context) -> None:
        quantize = self.tokenizer.quantize
        hits = torch.stack([quantize.hits(indices) for indices, _ in self._tokens]).sum(0)
        quantize.note_hits(ctx.summed(hits), ctx.step)
        if self.revive_every and (ctx.step + 1) % self.revive_every == 0 and ctx.step < ctx.max_steps / 2:
            lately = _from_all_processes(torch.cat([vectors[0] for _, vectors in self._tokens]), ctx)
            tokens = _from_all_processes(torch.cat([indices[0].flatten() for indices, _ in self._tokens]), ctx)
            fine = lately.isfinite().all(1)
            quantize.revive(lately[fine], _common_generator(ctx, "revive"), self.revive_below, tokens[fine])
