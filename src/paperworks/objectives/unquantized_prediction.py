"""Training of PUT's transformer (2205.05076, equation 6): which code of a complete patch belongs where the hole is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.generators.unquantized_sampling import InputKind
from paperworks.tokenizers.dual_quantizer import KNOWN, token_types
from paperworks.training.objective import Batch, Context, Losses, Objective, Phase


@dataclass(frozen=True)
class Example:
    """What the transformer reads and should say, patches flattened to [B, L]."""

    embedded: Tensor
    targets: Tensor
    """codes of the complete image"""
    types: Tensor
    known: Tensor
    """bool: fully known patches"""


class UnquantizedPrediction(Objective):
    """Batches hold `image` and `hole` (bool [B, H, W], True where pixels are unknown). Mean cross-entropy over all patches that
    the hole touches, fully or partly.

    random_quantize: share of known patches that are read as their code instead of their features, as drawn patches will be
    when sampling. features="quantized" reads all as codes: the baseline. poly: weight of 1 - p in the poly loss (2204.12511),
    which the 2024 form adds. codec: an `InpaintingCodec` that is a module; it is frozen.
    """

    needs = {"image": "float NCHW in [0, 1]", "hole": "bool [B, H, W]"}

    def __init__(
        self,
        model: UnquantizedTransformer,
        codec: Any,
        *,
        random_quantize: float = 0.3,
        features: InputKind = "continuous",
        poly: float = 0.0,
    ):
        super().__init__()
        self.codec: Any
        if not 0 <= random_quantize <= 1:
            raise InputError(f"random_quantize={random_quantize} is a share of the known patches")
        self.model = model
        self.codec = codec.requires_grad_(False).eval()
        self.random_quantize, self.features, self.poly = random_quantize, features, poly

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.codec.eval()  # its code book must not follow what it sees
        return self

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(modules=("model",)),)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        images, hole = batch["image"], batch["hole"]
        side = hole.shape[-1] // self.codec.patch
        if self.training:
            chance = torch.rand(len(hole), hole.shape[-2] // self.codec.patch, side, generator=ctx.rng("quantize"))
        else:
            chance = torch.ones(len(hole), hole.shape[-2] // self.codec.patch, side)
        example = self.examples(images, hole, chance.to(images.device))
        logits = self.model(example.embedded, example.known if self.model.attend_known else None)
        losses = self.losses(logits, example)
        wanted = ~example.known
        count = wanted.sum()
        with torch.no_grad():
            hit = ((logits.argmax(-1) == example.targets) & wanted).sum() / count.clamp(min=1)
        mean = losses.detach().sum() / count.clamp(min=1)
        return Losses(losses.sum(), count, {"loss": mean, "accuracy": hit})

    def examples(self, images: Tensor, hole: Tensor, chance: Tensor) -> Example:
        """chance [B, h, w] in [0, 1): known patches below `random_quantize` are read as their code."""
        codec, known = self.codec, ~hole[:, None]
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.float()
            features = codec.features(images, known)
            tokens, types = codec.encode_masked(images, known)
            as_codes = torch.ones_like(types, dtype=torch.bool)
            if self.features == "continuous":
                as_codes = (types == KNOWN) & (chance < self.random_quantize)
            features = torch.where(as_codes[..., None], codec.lookup(tokens), features)
            targets = codec.encode(images)[0].flatten(1)
        share = token_types(known, codec.patch)[1].flatten(1)
        embedded = self.model.embed(features.flatten(1, 2), share)
        return Example(embedded, targets, types.flatten(1), (types == KNOWN).flatten(1))

    def losses(self, logits: Tensor, example: Example) -> Tensor:
        """[B, L], 0 at known patches."""
        logits = logits.float()
        found = F.cross_entropy(logits.transpose(1, 2), example.targets, reduction="none")
        if self.poly:
            found = found + self.poly * (1 - (-found).exp())
        return found.masked_fill(example.known, 0.0)
