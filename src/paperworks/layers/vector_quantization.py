"""Code books: exact nearest-code search, and which codes are in use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 22
"""Largest number of scores (vectors x codes) held at once."""


@torch.no_grad()
def nearest_code(vectors: Tensor, codes: Tensor, cosine: bool = False) -> Tensor:
    """Index [N] of the nearest of `codes` [V, C] for `vectors` [N, C], by Euclidean distance or by angle.

    argmin |z - c|^2 = argmax (z.c - |c|^2 / 2): one matrix product, the vectors' own norms never matter.
    """
    vectors, codes = vectors.float(), codes.float()
    if cosine:
        codes, offset = F.normalize(codes, dim=1), None
    else:
        offset = codes.square().sum(1) / -2
    rows = max(1, CHUNK // len(codes))
    parts = []
    for part in vectors.split(rows):
        scores = part @ codes.T if offset is None else torch.addmm(offset, part, codes.T)
        parts.append(scores.argmax(1))
    return torch.cat(parts) if len(parts) != 1 else parts[0]


class CodeUsage:
    """Counts codes over a whole evaluation set."""

    def __init__(self, vocabulary: int):
        self.counts = torch.zeros(vocabulary, dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        self.counts += torch.bincount(indices.flatten().cpu(), minlength=len(self.counts))

    @property
    def usage(self) -> float:
        """Share of codes that occurred at all."""
        return float((self.counts > 0).float().mean())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of code frequencies: the number of equally used codes that would carry as much."""
        share = self.counts.double() / max(1, int(self.counts.sum()))
        return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def restart_codes(codes: Tensor, dead: Tensor, candidates: Tensor, generator: torch.Generator) -> int:
    """Put vectors of the current batch in the place of dead codes, in place; returns how many were replaced.

    codes [V, C]; dead bool [V]; candidates [N, C].
    """
    places = dead.nonzero()[:, 0]
    if len(places):
        chosen = torch.randint(len(candidates), (len(places),), generator=generator, device=candidates.device)
        codes[places] = candidates[chosen].to(codes.dtype)
    return len(places)
