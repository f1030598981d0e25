"""Multi-scale residual vector quantisation (VAR 2404.02905, algorithms 1 and 2): everything between the encoder's and the
decoder's feature maps.

One code book serves K token maps of growing side. Each map quantises what the maps before it have left over: the residual,
averaged down to the map's size; its codes are enlarged bicubically, passed through a small convolution phi and subtracted.
All of it is computed in float32, also under autocast: a token is an exact choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.pretrained import load_official
from paperworks.layers.vector_quantization import USED, nearest_code, restart_codes
from paperworks.tokenizers.quantizers import Quantized


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv3x3(h): repairs what enlarging a map has blurred."""

    def __init__(self, channels: int, ratio: float):
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:
        return torch.lerp(h, super().forward(h), self.ratio)


class _SharedPhi(nn.Module):
    """Key layout of several phis for all scales."""

    def __init__(self, phis: Sequence[nn.Module]):
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


class _SinglePhi(nn.Module):
    def __init__(self, phi: nn.Module):
        super().__init__()
        self.qresi = phi


def phi_index(progress: float, count: int) -> int:
    """Which of `count` convolutions serves a scale at `progress` = k / (K - 1): the one with the nearest tick. Ticks lie
    evenly between 1/(2n) and 1 - 1/(2n); released weights with four of them use 1/(3n) and 1 - 1/(3n).

    With ten scales and four ticks two scales lie halfway between ticks. Which side they take is decided by the last bit of
    numpy's arithmetic, and the released weights were trained with that choice: hence numpy here.
    """
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    return int(np.abs(np.linspace(edge, 1 - edge, count) - progress).argmin())


class MultiScaleVQ(nn.Module):
    """The quantiser alone; argument names are the released code's.

    patch_nums: sides of the maps, the last one the side of the feature map. using_znorm: compare by angle.
    share_quant_resi: number of phi convolutions (0: one per scale, or `default_qresi_counts` of them). quant_resi: their
    weight r. beta: commitment weight.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(
        self,
        vocab_size: int = 4096,
        channels: int = 32,
        patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        *,
        using_znorm: bool = False,
        beta: float = 0.25,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
    ):
        super().__init__()
        self.vocab_size, self.channels, self.patch_nums = vocab_size, channels, tuple(patch_nums)
        if not self.patch_nums or list(self.patch_nums) != sorted(set(self.patch_nums)) or self.patch_nums[0] < 1:
            raise InputError(f"patch_nums={self.patch_nums} must be growing sides of token maps, such as (1, 2, 3, 4)")
        if vocab_size < 1 or channels < 1:
            raise InputError(f"a code book of {vocab_size} codes x {channels} channels holds nothing")
        self.using_znorm, self.beta, self.share_quant_resi = using_znorm, beta, share_quant_resi
        self.embedding = nn.Embedding(vocab_size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / vocab_size, 1 / vocab_size)
        count = share_quant_resi or default_qresi_counts or len(self.patch_nums)
        phis = [Phi(channels, quant_resi) if abs(quant_resi) > 1e-6 else nn.Identity() for _ in range(count)]
        if share_quant_resi == 0:
            self.quant_resi: nn.Module = nn.ModuleList(phis)
        elif share_quant_resi == 1:
            self.quant_resi = _SinglePhi(phis[0])
        else:
            self.quant_resi = _SharedPhi(phis)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.patch_nums), vocab_size))
        last = max(1, len(self.patch_nums) - 1)
        self.phi_indices = [phi_index(scale / last, count) for scale in range(len(self.patch_nums))]

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], *, patch_nums: Sequence[int], **kwargs: Any) -> MultiScaleVQ:
        """From the `quantize.` part of a released tokenizer (keys without that prefix). Usage counts may be absent."""
        names = ("using_znorm", "beta", "quant_resi", "share_quant_resi", "default_qresi_counts")
        vocab_size, channels = state_dict["embedding.weight"].shape
        quantizer = cls(vocab_size, channels, patch_nums, **{name: kwargs[name] for name in names if name in kwargs})
        return load_official(quantizer, with_usage(state_dict, quantizer, ""))

    def phi(self, scale: int) -> nn.Module:
        if isinstance(self.quant_resi, _SinglePhi):
            return self.quant_resi.qresi
        phis = self.quant_resi.qresi_ls if isinstance(self.quant_resi, _SharedPhi) else self.quant_resi
        assert isinstance(phis, nn.ModuleList)
        return phis[self.phi_indices[scale]]

    # --- from features to tokens ---

    def forward(self, features: Tensor) -> Quantized:
        """Quantise for training: features [B, C, H, W] with gradient."""
        features = features.float()
        target = features.detach()
        total, loss = torch.zeros_like(target), features.new_zeros(())
        indices, pooled = [], []
        for found, contribution, vectors in self._maps(target):
            total = total + contribution
            loss = loss + self.beta * F.mse_loss(features, total.detach()) + F.mse_loss(total, target)
            indices.append(found)
            pooled.append(vectors)
        straight_through = features + (total.detach() - target)
        return Quantized(straight_through, loss / len(self.patch_nums), indices, pooled)

    @torch.no_grad()
    def tokenize(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Token maps int64 [B, n] and the accumulated features [B, C, H, W] after each scale."""
        features = features.float()
        total, indices, totals = torch.zeros_like(features), [], []
        for found, contribution, _ in self._maps(features):
            total = total + contribution
            indices.append(found)
            totals.append(total)
        return indices, totals

    # --- from tokens to features ---

    def codes(self) -> Tensor:
        """The code book [V, C]."""
        return self.embedding.weight

    def lookup(self, indices: Tensor) -> Tensor:
        """Code vectors [B, n, C]."""
        return F.embedding(indices, self.embedding.weight)

    def begin(self, rows: int) -> Tensor:
        """The empty feature map [rows, C, H, W] that generation starts from."""
        return self.embedding.weight.new_zeros(rows, self.channels, self.patch_nums[-1], self.patch_nums[-1])

    def accumulate(self, scale: int, vectors: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add code vectors [B, C, s, s] of a scale; returns the new features and the transformer's input [B, s' s', C] for
        the next scale (None after the last)."""
        features = features + self._contribution(vectors, scale)
        if scale + 1 == len(self.patch_nums):
            return features, None
        return features, self._shrink(features, scale + 1).flatten(2).transpose(1, 2)

    def next_inputs(self, indices: Sequence[Tensor]) -> Tensor:
        """What the transformer is fed in teacher forcing, [B, L - first, C]: for every scale but the first, the features
        accumulated so far at its size."""
        self.check_indices(indices)
        features, inputs = self.begin(len(indices[0])), []
        for scale, found in enumerate(indices[:-1]):
            features, following = self.accumulate(scale, _map(self.lookup(found)), features)
            assert following is not None
            inputs.append(following)
        if not inputs:
            return features.new_empty(len(indices[0]), 0, self.channels)
        return torch.cat(inputs, dim=1)

    def own_inputs(self, scale: int, indices: Tensor) -> Tensor:
        """What the tokens int64 [B, n] of one scale add to the features, averaged down to that scale's own size: [B, n, C]."""
        return self._shrink(self._contribution(_map(self.lookup(indices)), scale), scale).flatten(2).transpose(1, 2)

    def features_of(self, indices: Sequence[Tensor]) -> list[Tensor]:
        """Accumulated features [B, C, H, W] after each scale."""
        self.check_indices(indices)
        features, totals = self.begin(len(indices[0])), []
        for scale, found in enumerate(indices):
            features, _ = self.accumulate(scale, _map(self.lookup(found)), features)
            totals.append(features)
        return totals

    def check_indices(self, indices: Sequence[Tensor]) -> None:
        """Raises InputError unless there is one map per scale, of the right size, with numbers of codes that exist."""
        wanted = [side * side for side in self.patch_nums]
        given = [int(found.shape[1]) for found in indices]
        if given != wanted:
            raise InputError(f"token maps of {given} tokens do not fit scales {self.patch_nums}, which have {wanted}")
        for found in indices:
            if found.numel() and not (int(found.min()) >= 0 and int(found.max()) < self.vocab_size):
                raise InputError(f"tokens must lie in 0..{self.vocab_size - 1}, these go from {found.min()} to {found.max()}")

    # --- the code book's health ---

    @torch.no_grad()
    def hits(self, indices: Sequence[Tensor]) -> Tensor:
        """How often each code was chosen, [scales, V]."""
        return torch.stack([torch.bincount(found.flatten(), minlength=self.vocab_size) for found in indices]).float()

    @torch.no_grad()
    def note_hits(self, hits: Tensor, step: int) -> None:
        """Move the running counts towards those of a step (summed over all processes): quickly in the first hundred."""
        self.ema_vocab_hit_SV.lerp_(hits, 1.0 if step == 0 else 0.1 if step < 100 else 0.01)

    @torch.no_grad()
    def usages(self, positions: float) -> Tensor:
        """Share of codes in use per scale, [scales]; `positions`: batch x H x W of the feature map, over all processes.

        A code is in use on a scale when it is hit at least USED = 0.08 times as often as if all codes shared the last
        scale's positions equally.
        """
        return (self.ema_vocab_hit_SV >= positions / self.vocab_size * USED).float().mean(1)

    @torch.no_grad()
    def usage(self) -> Tensor:
        """Share of codes in use, all scales counted together."""
        hits = self.ema_vocab_hit_SV.sum(0)
        return (hits >= (hits.sum() / self.vocab_size * USED).clamp(min=1e-12)).float().mean()

    @torch.no_grad()
    def seed_codes(self, features: Tensor, generator: torch.Generator) -> None:
        """Start the code book with vectors that occur, an equal share of it for each scale: residuals of `features`
        [B, C, H, W] that the codes of the scales before leave over. Without it nearly all codes stay unused on small data.
        """
        residual, codes = features.detach().float(), self.embedding.weight
        bounds = [len(codes) * scale // len(self.patch_nums) for scale in range(len(self.patch_nums) + 1)]
        for scale, (first, end) in enumerate(pairwise(bounds)):
            vectors = self._vectors(residual, scale)
            mine = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
            mine[first:end] = True
            restart_codes(codes, mine, vectors, generator)
            if end:
                found = nearest_code(vectors, codes[:end], self.using_znorm).view(len(residual), -1)
                residual = residual - self._contribution(_map(self.lookup(found)), scale)

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator, below: float) -> int:
        """Put codes that are hit less than `below` times per step (over all scales) onto `vectors` [N, C] that were quantised
        lately; returns how many."""
        hits = self.ema_vocab_hit_SV.sum(0)
        dead = hits < below
        count = restart_codes(self.embedding.weight, dead, vectors, generator)
        if count:
            self.ema_vocab_hit_SV[:, dead] = 2 * below / len(self.patch_nums)  # give the new ones time to be found
        return count

    # --- pieces ---

    def _maps(self, features: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Scale by scale: tokens [B, n], their contribution [B, C, H, W] to the features, and the vectors they stand for."""
        side = self.patch_nums[-1]
        if features.shape[-2:] != (side, side):
            raise InputError(
                f"a feature map of {tuple(features.shape[-2:])} cannot become token maps of sides {self.patch_nums}: "
                f"the image must give {side} x {side}"
            )
        residual = features
        for scale in range(len(self.patch_nums)):
            vectors = self._vectors(residual, scale)
            found = nearest_code(vectors, self.embedding.weight, self.using_znorm).view(len(residual), -1)
            contribution = self._contribution(_map(self.lookup(found)), scale)
            residual = residual - contribution.detach()
            yield found, contribution, vectors

    def _shrink(self, features: Tensor, scale: int) -> Tensor:
        side = self.patch_nums[scale]
        return features if features.shape[-1] == side else F.interpolate(features, size=(side, side), mode="area")

    def _vectors(self, residual: Tensor, scale: int) -> Tensor:
        return self._shrink(residual, scale).permute(0, 2, 3, 1).flatten(0, 2)

    def _contribution(self, vectors: Tensor, scale: int) -> Tensor:
        side = self.patch_nums[-1]
        with torch.autocast(vectors.device.type, enabled=False):
            if scale < len(self.patch_nums) - 1:
                vectors = F.interpolate(vectors, size=(side, side), mode="bicubic")
            return self.phi(scale)(vectors)


def _map(vectors: Tensor) -> Tensor:
    """[B, s s, C] -> [B, C, s, s]."""
    side = round(vectors.shape[1] ** 0.5)
    return vectors.transpose(1, 2).unflatten(2, (side, side))


def with_usage(state_dict: Mapping[str, Tensor], quantizer: MultiScaleVQ, prefix: str) -> dict[str, Tensor]:
    """The state dict with usage counts of the right number of scales: they are statistics, and a tokenizer may be used with
    other scales than it was trained with."""
    key = prefix + "ema_vocab_hit_SV"
    counts = state_dict.get(key)
    if counts is None or counts.shape != quantizer.ema_vocab_hit_SV.shape:
        return {**state_dict, key: quantizer.ema_vocab_hit_SV}
    return dict(state_dict)
