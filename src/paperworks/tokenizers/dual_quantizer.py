"""PUT's dual code book (2205.05076, section 3.1.2): patches that are fully known choose among one part of the codes, patches
that a hole touches among the other, so that the black of the hole never takes a code from the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.vector_quantization import nearest_code, restart_codes
from paperworks.tokenizers.quantizers import Quantized, VectorQuantizer

HIDDEN, KNOWN, PARTLY = 0, 1, 2
"""types of a token: its patch lies in the hole, is fully known, is touched by the hole"""

Distance = Literal["euclidean", "cosine", "sinkhorn"]


def token_types(known: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Type and known share of every patch: known bool or 0/1 [B, 1, H, W] (1 = known) -> int64 and float [B, H/p, W/p]."""
    if known.shape[-1] % patch or known.shape[-2] % patch:
        raise InputError(f"a mask of {tuple(known.shape[-2:])} pixels does not divide into patches of {patch}: pad or crop it")
    count = F.avg_pool2d(known.float(), patch, divisor_override=1)[:, 0]  # of known pixels, exact
    types = torch.full(count.shape, PARTLY, dtype=torch.int64, device=known.device)
    return types.masked_fill(count == 0, HIDDEN).masked_fill(count == patch * patch, KNOWN), count / patch**2


def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Assignments [N, V] of N vectors to codes that use all codes equally: rows sum to 1, columns nearly to N / V
    (Sinkhorn-Knopp on exp(scores / epsilon), as in SwAV 2006.09882)."""
    shares = (scores / epsilon - scores.max() / epsilon).exp()
    shares = shares / shares.sum()
    rows, columns = scores.shape
    for _ in range(iterations):
        shares = shares / shares.sum(0, keepdim=True) / columns
        shares = shares / shares.sum(1, keepdim=True) / rows
    return shares * rows


class DualQuantizer(VectorQuantizer):
    """Codes [0, clean_codes) are for patches of type KNOWN, the others for those a hole touches; features [B, ..., C].

    ema: decay with which codes follow their vectors (0.99); 0 trains them by gradients, at a quarter of the commitment's
    weight. distance: "euclidean", "cosine" (both sides normalised) or "sinkhorn" (balanced assignment of the batch).
    """

    def __init__(
        self,
        vocab_size: int = 1024,
        channels: int = 256,
        clean_codes: int | None = None,
        *,
        distance: Distance = "euclidean",
        ema: float = 0.99,
    ):
        if distance not in ("euclidean", "cosine", "sinkhorn"):
            raise InputError(f"distance={distance!r}: there are euclidean, cosine and sinkhorn")
        super().__init__(
            vocab_size,
            channels,
            normalize=distance != "euclidean",
            beta=1.0,
            codebook_weight=0.25,
            ema=ema,
            start=0.0 if ema else None,
        )
        self.clean_codes = vocab_size if clean_codes is None else clean_codes
        if not 0 < self.clean_codes <= vocab_size:
            raise InputError(f"clean_codes={clean_codes} must be between 1 and all {vocab_size} codes")
        self.distance = distance

    def forward(
        self, features: Tensor, types: Tensor | None = None, noise: Tensor | None = None, scale: float = 1.0
    ) -> Quantized:
        """Quantise for training. types int64 [B, ...]: all KNOWN without.

        noise: exponential numbers [B, ..., V] (mean 1) turn the choice into a draw with Gumbel noise of `scale` on -log of the
        squared distances, as the 2024 recipe begins.
        """
        raw = features.float()
        searched = F.normalize(raw, dim=-1) if self.normalize else raw
        vectors = searched.detach().flatten(0, -2)
        indices = self._search(vectors, types, noise, scale).view(features.shape[:-1])
        quantised = self.lookup(indices)
        loss = self.beta * F.mse_loss(quantised.detach(), searched)
        if not self.ema:
            loss = loss + self.codebook_weight * F.mse_loss(quantised, searched.detach())
        elif self.training:
            self._follow(vectors, indices.flatten())
        passed = searched + (quantised - searched).detach()
        return Quantized(passed, loss, [indices.flatten(1)], [vectors])

    @torch.no_grad()
    def encode(self, features: Tensor, types: Tensor | None = None) -> Tensor:
        """int64 [B, ...] of features [B, ..., C]."""
        raw = features.float()
        vectors = (F.normalize(raw, dim=-1) if self.normalize else raw).flatten(0, -2)
        return self._search(vectors, types).view(features.shape[:-1])

    @torch.no_grad()
    def _search(self, vectors: Tensor, types: Tensor | None, noise: Tensor | None = None, scale: float = 1.0) -> Tensor:
        codes, split = self.codes(), self.clean_codes
        if noise is not None:
            noise = noise.flatten(0, -2)
        if split == self.vocab_size:
            return self._choose(vectors, codes, noise, scale)
        if types is None:
            return self._choose(vectors, codes[:split], None if noise is None else noise[:, :split], scale)
        clean = types.flatten() == KNOWN
        found = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        for rows, first, last in ((clean, 0, split), (~clean, split, self.vocab_size)):
            if bool(rows.any()):
                drawn = None if noise is None else noise[rows, first:last]
                found[rows] = first + self._choose(vectors[rows], codes[first:last], drawn, scale)
        return found

    def _choose(self, vectors: Tensor, codes: Tensor, noise: Tensor | None, scale: float) -> Tensor:
        if self.distance == "sinkhorn":
            return sinkhorn(vectors @ codes.T).argmax(1)
        if noise is None:
            return nearest_code(vectors, codes, cosine=self.normalize)
        distances = torch.cdist(vectors, codes).square().clamp(min=1e-12)
        return (-distances.log() - scale * noise.log()).argmax(1)

    # --- the code book's health: each part is looked after with its own vectors ---

    @torch.no_grad()
    def seed_codes(self, features: Tensor, generator: torch.Generator, touched: Tensor | None = None) -> None:
        """Start the clean codes with vectors of `features` [B, ..., C] and, if given, the others with those of `touched`
        [N, C], features of patches that holes touch."""
        for vectors, first, last in ((features, 0, self.clean_codes), (touched, self.clean_codes, self.vocab_size)):
            if vectors is None or first == last or not vectors.numel():
                continue
            vectors = vectors.float().flatten(0, -2)
            vectors = F.normalize(vectors, dim=-1) if self.normalize else vectors
            self._restart(torch.ones(last - first, dtype=torch.bool, device=vectors.device), first, vectors, generator)

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator, below: float, tokens: Tensor | None = None) -> int:
        """As every code book's; `tokens` [N] tell which part each vector belongs to (all clean without)."""
        clean = torch.ones(len(vectors), dtype=torch.bool) if tokens is None else tokens < self.clean_codes
        count = 0
        for rows, first, last in ((clean, 0, self.clean_codes), (~clean, self.clean_codes, self.vocab_size)):
            if first < last and bool(rows.any()):
                dead = self.hit_average[0, first:last] < below
                count += self._restart(dead, first, vectors[rows], generator)
                self.hit_average[0, first:last][dead] = 2 * below  # give the new ones time to be found
        return count

    def _restart(self, dead: Tensor, first: int, vectors: Tensor, generator: torch.Generator) -> int:
        count = restart_codes(self.embedding.weight[first : first + len(dead)], dead, vectors, generator)
        which = torch.zeros(self.vocab_size, dtype=torch.bool, device=dead.device)
        which[first : first + len(dead)] = dead
        self.replaced(0, which)
        return count

    def shares_in_use(self) -> Sequence[float]:
        """Share of codes in use in either part, by the running counts."""
        parts = (self.hit_average[0, : self.clean_codes], self.hit_average[0, self.clean_codes :])
        return [float((part >= part.mean() * 0.08).float().mean()) if part.sum() > 0 else 0.0 for part in parts]
