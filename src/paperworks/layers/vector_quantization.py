"""Code books: exact nearest-code search, and which codes are in use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 22
"""Largest number of scores (vectors x codes) held at once."""

MANY, BLOCK, PIECE = 16_384, 256, (32, 16_384)
"""From MANY codes on the search goes block by block; a piece is so many vectors x codes, 2 MB of scores"""

USED = 0.08
"""A code counts as used at this share of the hits it would get if all were hit equally often (VAR's rule)."""


@torch.no_grad()
def nearest_code(vectors: Tensor, codes: Tensor, cosine: bool = False) -> Tensor:
    """Index [N] of the nearest of `codes` [V, C] for `vectors` [N, C], by Euclidean distance or by angle.

    argmin |z - c|^2 = argmax (z.c - |c|^2 / 2): one matrix product, the vectors' own norms never matter. In float32 whatever
    the inputs and autocast say: rounded to bfloat16, neighbours would change places.
    """
    vectors, codes = vectors.float(), codes.float()
    if cosine:
        codes = F.normalize(codes, dim=1)
    offset = codes.new_zeros(len(codes)) if cosine else codes.square().sum(1) / -2
    rows = max(1, CHUNK // len(codes))
    with torch.autocast(vectors.device.type, enabled=False):
        if len(codes) >= MANY and vectors.device.type == "cpu":
            return _nearest_of_many(vectors, codes, offset)
        parts = [torch.addmm(offset, part, codes.T).argmax(1) for part in vectors.split(rows)]
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def _nearest_of_many(vectors: Tensor, codes: Tensor, offset: Tensor) -> Tensor:
    """The same for very many codes: first the best score of every block of codes, in pieces that stay in the processor's
    cache (a plain maximum runs several times as fast as its position), then the position within the best block."""
    count, channels = codes.shape
    blocks = -(-count // BLOCK)
    codes = F.pad(codes, (0, 0, 0, blocks * BLOCK - count))
    offset = F.pad(offset, (0, blocks * BLOCK - count), value=-torch.inf)
    found = []
    for part in vectors.split(PIECE[0]):
        best = torch.empty(len(part), blocks, device=part.device)
        for start in range(0, len(codes), PIECE[1]):
            scores = torch.addmm(offset[start : start + PIECE[1]], part, codes[start : start + PIECE[1]].T)
            piece = scores.view(len(part), scores.shape[1] // BLOCK, BLOCK)
            best[:, start // BLOCK : start // BLOCK + piece.shape[1]] = piece.amax(2)
        chosen = best.argmax(1)
        within = torch.bmm(codes.view(blocks, BLOCK, channels)[chosen], part[:, :, None])[..., 0]
        found.append(chosen * BLOCK + (within + offset.view(blocks, BLOCK)[chosen]).argmax(1))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=vectors.device)


class CodeUsage:
    """Counts codes over a whole evaluation set, of which every batch is given to `update`."""

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
    """Put randomly chosen vectors in the place of dead codes, in place; returns how many were replaced.

    codes [V, C]; dead bool [V]; candidates [N, C]. No vector is chosen twice while there are enough.
    """
    places = dead.nonzero()[:, 0]
    if not len(places) or not len(candidates):
        return 0
    device = candidates.device
    if len(places) <= len(candidates):
        chosen = torch.randperm(len(candidates), generator=generator, device=device)[: len(places)]
    else:
        chosen = torch.randint(len(candidates), (len(places),), generator=generator, device=device)
    codes[places] = candidates[chosen].to(codes.dtype)
    return len(places)
