"""Stage 1 of TiTok's training (2406.07550, section 3.3): per patch, predict the code that a trained 2-D tokenizer gives it."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.tokenizer_training import Compared, TokenizerTraining
from paperworks.tokenizers.titok import TiTok


class ProxyCodes(TokenizerTraining):
    """Cross-entropy against the codes of `teacher`, a frozen tokenizer with one map of as many tokens as there are patches,
    + codebook_weight * the quantiser's loss. Codes are kept in use as in `TokenizerTraining`."""

    def __init__(self, tokenizer: TiTok, teacher: Any, *, codebook_weight: float = 1.0, revive_every: int = 20):
        super().__init__(tokenizer, codebook_weight=codebook_weight, revive_every=revive_every)
        proxy, patches = tokenizer.decoder.proxy_codes, tokenizer.decoder.side**2
        if teacher.spec.vocab_size != proxy or teacher.spec.tokens != patches:
            raise InputError(
                f"the teacher has {teacher.spec.tokens} tokens of {teacher.spec.vocab_size} codes, but the decoder predicts "
                f"{patches} of {proxy}: give both the same grid and proxy_codes"
            )
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def _compare(self, features: Tensor, images: Tensor) -> Compared:
        with torch.no_grad():
            (wanted,) = self.teacher.encode(images)
        logits = self.tokenizer.decode_logits(features).flatten(2).float()
        loss = F.cross_entropy(logits, wanted)
        right = (logits.detach().argmax(1) == wanted).float().mean()
        return Compared(logits, logits, loss, {"proxy_loss": loss, "proxy_accuracy": right})
