"""Vector quantisers: features, channels last, become numbers of code vectors and back.

All of them search the exact nearest code in float32 (also under autocast: a token is an exact choice), keep running counts of
how often codes are hit, can start their code book from data, and can put codes that fell out of use onto vectors that occur.
That is what `objectives.tokenizer_training` asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.vector_quantization import USED, nearest_code, restart_codes

StraightThrough = Literal["searched", "raw"]


@dataclass(frozen=True)
class Quantized:
    features: Tensor
    """quantised, in the shape of the features, with the straight-through gradient to the encoder"""
    loss: Tensor
    """commitment and code-book loss, mean over values (and levels)"""
    indices: list[Tensor]
    """int64 [B, n] per token map or level"""
    vectors: list[Tensor]
    """[B n, C] per token map or level: what was quantised, detached"""


class CodeBook(nn.Module):
    """What quantisers with one table per level share: counts of hits, [levels, V], and the code book's health."""

    hit_average: Tensor

    def __init__(self, vocab_size: int, channels: int, levels: int = 1):
        super().__init__()
        if vocab_size < 1 or channels < 1 or levels < 1:
            raise InputError(f"{levels} code books of {vocab_size} codes x {channels} channels hold nothing")
        self.vocab_size, self.channels, self.levels = vocab_size, channels, levels
        self.register_buffer("hit_average", torch.zeros(levels, vocab_size))

    # --- what kinds differ in ---

    def table(self, level: int) -> Tensor | None:
        """The trained codes [V, C] of a level, where a code can be replaced by a vector; None where it cannot."""
        raise NotImplementedError

    def starting_vectors(self, features: Tensor) -> list[Tensor]:
        """Per level the vectors [N, C] that its codes stand for, given features [B, ..., C]."""
        return [features.flatten(0, -2)]

    # --- the code book's health ---

    @torch.no_grad()
    def hits(self, indices: Sequence[Tensor]) -> Tensor:
        """How often each code was chosen, [levels, V]."""
        return torch.stack([torch.bincount(found.flatten(), minlength=self.vocab_size) for found in indices]).float()

    @torch.no_grad()
    def note_hits(self, hits: Tensor, step: int) -> None:
        """Move the running counts towards those of a step (summed over all processes): quickly in the first hundred."""
        self.hit_average.lerp_(hits, 1.0 if step == 0 else 0.1 if step < 100 else 0.01)

    @torch.no_grad()
    def usage(self) -> Tensor:
        """Share of codes in use: hit at least 0.08 times as often as if all were hit equally."""
        even = self.hit_average.sum(1, keepdim=True) / self.vocab_size
        return (self.hit_average >= (even * USED).clamp(min=1e-12)).float().mean()

    @torch.no_grad()
    def seed_codes(self, features: Tensor, generator: torch.Generator) -> None:
        """Start the codes with vectors of a batch of features [B, ..., C]; nearly all codes stay unused without it when data
        are few."""
        for level in range(self.levels):
            codes = self.table(level)
            if codes is not None:
                vectors = self.starting_vectors(features.float())[level]
                restart_codes(codes, torch.ones(len(codes), dtype=torch.bool, device=codes.device), vectors, generator)

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator, below: float) -> int:
        """Put codes that are hit less than `below` times per step onto vectors that were quantised lately: [N, C], an equal
        share for each level, in their order. Returns how many."""
        count = 0
        for level, share in enumerate(vectors.chunk(self.levels)):
            codes = self.table(level)
            if codes is None:
                continue
            dead = self.hit_average[level] < below
            count += restart_codes(codes, dead, share, generator)
            self.hit_average[level, dead] = 2 * below  # give the new ones time to be found
            self.replaced(level, dead)
        return count

    def replaced(self, level: int, which: Tensor) -> None:
        """Called after codes were replaced, for statistics that belong to them."""


class VectorQuantizer(CodeBook):
    """One code book (2017 VQ-VAE, 1711.00937), features [B, ..., C].

    normalize: codes and features are compared, passed on and trained on the unit sphere (ViT-VQGAN, 2110.04627).
    beta, codebook_weight: of |sg(q) - z|^2, which moves the encoder, and |q - sg(z)|^2, which moves the codes.
    straight_through: gradients go to what was "searched" with (normalised or not) or to the "raw" features.
    ema: decay with which codes follow their vectors' running means instead of gradients; 0 for gradients.
    frozen: codes never change. start: half-width of the uniform initial codes, 1 / vocab_size by default; 0 for N(0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        channels: int,
        *,
        normalize: bool = False,
        beta: float = 0.25,
        codebook_weight: float = 1.0,
        straight_through: StraightThrough = "searched",
        ema: float = 0.0,
        ema_eps: float = 1e-5,
        frozen: bool = False,
        start: float | None = None,
    ):
        super().__init__(vocab_size, channels)
        if not 0 <= ema < 1:
            raise InputError(f"ema={ema} is a decay below 1 (0 trains codes by gradients)")
        self.normalize, self.beta, self.codebook_weight = normalize, beta, codebook_weight
        self.straight_through, self.ema, self.ema_eps, self.frozen = straight_through, ema, ema_eps, frozen
        self.embedding = nn.Embedding(vocab_size, channels)
        width = 1 / vocab_size if start is None else start
        if width:
            nn.init.uniform_(self.embedding.weight, -width, width)
        self.embedding.weight.requires_grad_(not frozen and not ema)
        if ema:
            self.register_buffer("cluster_size", torch.zeros(vocab_size))
            self.register_buffer("embed_avg", self.embedding.weight.detach().clone())

    cluster_size: Tensor
    embed_avg: Tensor

    def codes(self) -> Tensor:
        """The code vectors [V, C] as they are searched and passed on."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.normalize else weight

    def forward(self, features: Tensor) -> Quantized:
        """Quantise for training: features [B, ..., C] with gradient."""
        raw = features.float()
        searched = F.normalize(raw, dim=-1) if self.normalize else raw
        vectors = searched.detach().flatten(0, -2)
        indices = nearest_code(vectors, self.codes()).view(features.shape[:-1])
        quantised = self.lookup(indices)
        loss = self.beta * F.mse_loss(quantised.detach(), searched)
        if not self.frozen and not self.ema:
            loss = loss + self.codebook_weight * F.mse_loss(quantised, searched.detach())
        if self.ema and self.training:
            self._follow(vectors, indices.flatten())
        target = raw if self.straight_through == "raw" else searched
        passed = target + (quantised - target).detach()
        return Quantized(passed, loss, [indices.flatten(1)], [vectors])

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """int64 [B, ...] of features [B, ..., C]."""
        vectors = features.float().flatten(0, -2)  # on the unit sphere the nearest code is the one at the smallest angle
        return nearest_code(vectors, self.embedding.weight, cosine=self.normalize).view(features.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Code vectors [..., C]."""
        check_indices(indices, self.vocab_size)
        found = F.embedding(indices, self.embedding.weight)
        return F.normalize(found, dim=-1) if self.normalize else found

    def soft_lookup(self, weights: Tensor) -> Tensor:
        """Mixtures of codes [..., C] for weights [..., V]."""
        mixed = weights.float() @ self.codes()
        return F.normalize(mixed, dim=-1) if self.normalize else mixed

    def table(self, level: int) -> Tensor | None:
        return None if self.frozen else self.embedding.weight

    def replaced(self, level: int, which: Tensor) -> None:
        if self.ema:
            self.embed_avg[which] = self.embedding.weight[which]
            self.cluster_size[which] = 1.0

    @torch.no_grad()
    def seed_codes(self, features: Tensor, generator: torch.Generator) -> None:
        super().seed_codes(F.normalize(features.float(), dim=-1) if self.normalize else features, generator)
        self.replaced(0, torch.ones(self.vocab_size, dtype=torch.bool, device=self.embedding.weight.device))

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor) -> None:
        """Codes become the running means of their vectors, with smoothed counts n -> (n + eps) / (N + V eps) N."""
        counts = torch.bincount(indices, minlength=self.vocab_size).to(vectors.dtype)
        sums = torch.zeros_like(self.embed_avg).index_add_(0, indices, vectors)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.cluster_size.lerp_(counts, 1 - self.ema)
        self.embed_avg.lerp_(sums, 1 - self.ema)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.ema_eps) / (total + self.vocab_size * self.ema_eps) * total
        self.embedding.weight.copy_(self.embed_avg / smoothed[:, None])


class GumbelQuantizer(VectorQuantizer):
    """Codes drawn with Gumbel noise and mixed while training (1611.01144), the nearest one otherwise; the loss keeps the
    choice near uniform: KL(q || uniform). `temperature` may be lowered while training."""

    def __init__(self, vocab_size: int, channels: int, *, normalize: bool = True, temperature: float = 1.0):
        super().__init__(vocab_size, channels, normalize=normalize)
        self.temperature = temperature

    def forward(self, features: Tensor) -> Quantized:
        raw = features.float()
        searched = F.normalize(raw, dim=-1) if self.normalize else raw
        vectors, codes = searched.flatten(0, -2), self.codes()
        logits = 2 * vectors @ codes.T - codes.square().sum(1) - vectors.square().sum(1, keepdim=True)
        chances = logits.softmax(1)
        loss = (chances * (chances * self.vocab_size + 1e-10).log()).sum(1).mean()
        picks = F.gumbel_softmax(logits, self.temperature, hard=False) if self.training else None
        indices = logits.argmax(1) if picks is None else picks.argmax(1)
        mixed = codes[indices] if picks is None else picks @ codes
        shape = features.shape[:-1]
        return Quantized(mixed.view(raw.shape), loss, [indices.view(shape).flatten(1)], [vectors.detach()])


class ResidualQuantizer(CodeBook):
    """Levels of codes, each for what the levels before left over (RQ-VAE 2203.01941); features [B, ..., C].

    shared: one table for all levels. normalize: each level compares directions and adds a unit code (shared tables only, as
    ViT-VQGAN's residual form). ema as in VectorQuantizer, per level.
    """

    def __init__(
        self,
        depth: int,
        vocab_size: int,
        channels: int,
        *,
        shared: bool = False,
        normalize: bool = False,
        beta: float = 0.25,
        codebook_weight: float = 1.0,
        ema: float = 0.0,
    ):
        super().__init__(vocab_size, channels, depth)
        self.shared = shared
        options: dict[str, Any] = {"normalize": normalize, "beta": beta, "codebook_weight": codebook_weight, "ema": ema}
        books = [VectorQuantizer(vocab_size, channels, **options) for _ in range(1 if shared else depth)]
        for book in books:
            del book.hit_average  # counted here, for all levels
        self.books = nn.ModuleList(books)

    @property
    def depth(self) -> int:
        return self.levels

    def book(self, level: int) -> VectorQuantizer:
        found = self.books[0 if self.shared else level]
        assert isinstance(found, VectorQuantizer)
        return found

    def forward(self, features: Tensor) -> Quantized:
        raw = features.float()
        residual, total = raw, torch.zeros_like(raw)  # what is subtracted has no gradient; every level pulls at the encoder
        loss, indices, vectors = raw.new_zeros(()), [], []
        for level in range(self.levels):
            book = self.book(level)
            found = book(residual)
            quantised = book.lookup(found.indices[0].view(raw.shape[:-1]))
            total = total + quantised
            if book.normalize:
                loss = loss + found.loss
            else:  # the encoder is pulled towards the sum so far, as RQ-VAE has it (equation 6)
                loss = loss + book.beta * F.mse_loss(raw, total.detach())
                if not book.ema:
                    loss = loss + book.codebook_weight * F.mse_loss(quantised, residual.detach())
            residual = residual - quantised.detach()
            indices.append(found.indices[0])
            vectors.append(found.vectors[0])
        passed = raw + (total - raw).detach()
        return Quantized(passed, loss / self.levels, indices, vectors)

    @torch.no_grad()
    def encode(self, features: Tensor, depth: int | None = None) -> list[Tensor]:
        """int64 [B, ...] per level, coarse to fine, of features [B, ..., C]."""
        residual, found = features.float(), []
        for level in range(depth or self.levels):
            indices = self.book(level).encode(residual)
            residual = residual - self.book(level).lookup(indices)
            found.append(indices)
        return found

    def lookup(self, indices: Sequence[Tensor]) -> Tensor:
        """Sum of the code vectors of the given levels, [..., C]; fewer levels give a coarser sum."""
        if not 1 <= len(indices) <= self.levels:
            raise InputError(f"{len(indices)} levels of tokens, but the quantiser has {self.levels}")
        return torch.stack([self.book(level).lookup(found) for level, found in enumerate(indices)]).sum(0)

    def table(self, level: int) -> Tensor | None:
        return self.book(level).table(0) if level == 0 or not self.shared else None

    def replaced(self, level: int, which: Tensor) -> None:
        self.book(level).replaced(0, which)

    @torch.no_grad()
    def seed_codes(self, features: Tensor, generator: torch.Generator) -> None:
        residual = features.float()
        for level in range(self.levels):
            if level == 0 or not self.shared:
                self.book(level).seed_codes(residual, generator)
            residual = residual - self.book(level).lookup(self.book(level).encode(residual))


def check_indices(indices: Tensor, vocab_size: int) -> None:
    """Raises InputError unless tokens are whole numbers of codes that exist."""
    if indices.is_floating_point():
        raise InputError(f"tokens must be whole numbers, not {indices.dtype}; weights over codes go to soft_lookup")
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < vocab_size):
        raise InputError(f"tokens must lie in 0..{vocab_size - 1}, these go from {indices.min()} to {indices.max()}")


def with_hit_average(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A released state dict completed by our own running counts, which are statistics and not in it."""
    own = {name: value for name, value in model.state_dict().items() if name.endswith("hit_average")}
    return {**own, **state_dict}
