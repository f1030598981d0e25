"""Multi-scale residual vector quantisation (VAR 2404.02905, algorithms 1 and 2) and the tokenizer around it.

One code book serves K token maps of growing side. Each map quantises what the maps before it have left over: the residual,
averaged down to the map's size; its codes are enlarged bicubically, passed through a small convolution phi and subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.autoencoder import Decoder, Encoder, to_signed, to_unit
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.vector_quantization import nearest_code, restart_codes

USED = 0.08
"""A code counts as used at this share of the hits it would get if all were hit equally often."""


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


@dataclass(frozen=True)
class Quantized:
    features: Tensor
    """[B, C, H, W] sum of all scales' contributions, with the straight-through gradient to the encoder"""
    loss: Tensor
    """commitment and code-book loss, mean over scales and values"""
    indices: list[Tensor]
    """int64 [B, n] per scale"""


class MultiScaleVQ(nn.Module):
    """The quantiser alone: everything between the encoder's and the decoder's feature maps.

    patch_nums: sides of the maps, the last one the side of the feature map. using_znorm: compare by angle.
    share_quant_resi: number of phi convolutions (0: one per scale). quant_resi: their weight r. beta: commitment weight.
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
    ):
        super().__init__()
        self.vocab_size, self.channels, self.patch_nums = vocab_size, channels, tuple(patch_nums)
        if list(self.patch_nums) != sorted(set(self.patch_nums)) or self.patch_nums[0] < 1:
            raise InputError(f"patch_nums={self.patch_nums} must be growing sides of token maps, such as (1, 2, 3, 4)")
        self.using_znorm, self.beta, self.share_quant_resi = using_znorm, beta, share_quant_resi
        self.embedding = nn.Embedding(vocab_size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / vocab_size, 1 / vocab_size)
        count = share_quant_resi or len(self.patch_nums)
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
        self._residuals: list[Tensor] = []  # what the scales of the current batch quantised: candidates for dead codes

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], *, patch_nums: Sequence[int], **kwargs: Any) -> MultiScaleVQ:
        """From the `quantize.` part of a released tokenizer (keys without that prefix). Usage counts may be absent."""
        names = ("using_znorm", "beta", "quant_resi", "share_quant_resi")
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
        with torch.autocast(features.device.type, enabled=False):
            residual, total = target, torch.zeros_like(target)
            loss = features.new_zeros(())
            indices, self._residuals = [], []
            for scale in range(len(self.patch_nums)):
                found = self._nearest(residual, scale)
                contribution = self._contribution(self._map(self.lookup(found)), scale)
                total = total + contribution
                residual = residual - contribution.detach()
                loss = loss + self.beta * F.mse_loss(features, total.detach()) + F.mse_loss(total, target)
                indices.append(found)
        straight_through = features + (total.detach() - target)
        return Quantized(straight_through, loss / len(self.patch_nums), indices)

    @torch.no_grad()
    def tokenize(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Token maps int64 [B, n] and the accumulated features [B, C, H, W] after each scale."""
        side = self.patch_nums[-1]
        if features.shape[-2:] != (side, side):
            raise InputError(
                f"a feature map of {tuple(features.shape[-2:])} cannot become token maps of sides {self.patch_nums}: "
                f"the image must give {side} x {side}"
            )
        residual, total = features.float(), torch.zeros_like(features, dtype=torch.float32)
        indices, totals = [], []
        for scale in range(len(self.patch_nums)):
            found = self._nearest(residual, scale)
            contribution = self._contribution(self._map(self.lookup(found)), scale)
            total, residual = total + contribution, residual - contribution
            indices.append(found)
            totals.append(total)
        return indices, totals

    # --- from tokens to features ---

    def codes(self) -> Tensor:
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
            features, following = self.accumulate(scale, self._map(self.lookup(found)), features)
            assert following is not None
            inputs.append(following)
        if not inputs:
            return features.new_empty(len(indices[0]), 0, self.channels)
        return torch.cat(inputs, dim=1)

    def features_of(self, indices: Sequence[Tensor]) -> list[Tensor]:
        """Accumulated features [B, C, H, W] after each scale."""
        self.check_indices(indices)
        features, totals = self.begin(len(indices[0])), []
        for scale, found in enumerate(indices):
            features, _ = self.accumulate(scale, self._map(self.lookup(found)), features)
            totals.append(features)
        return totals

    def check_indices(self, indices: Sequence[Tensor]) -> None:
        wanted = [side * side for side in self.patch_nums]
        given = [int(found.shape[1]) for found in indices]
        if given != wanted:
            raise InputError(f"token maps of {given} tokens do not fit scales {self.patch_nums}, which have {wanted}")

    # --- the code book's health ---

    @torch.no_grad()
    def note_hits(self, indices: Sequence[Tensor], momentum: float = 0.99) -> None:
        """Move the running hit counts [scales, V] towards this batch's."""
        for scale, found in enumerate(indices):
            hits = torch.bincount(found.flatten(), minlength=self.vocab_size).to(self.ema_vocab_hit_SV.dtype)
            self.ema_vocab_hit_SV[scale].lerp_(hits, 1 - momentum)

    @torch.no_grad()
    def usages(self, positions: float) -> list[float]:
        """Share of codes in use per scale; `positions`: batch x H x W of the feature map, over all processes."""
        margin = positions / self.vocab_size * USED
        return (self.ema_vocab_hit_SV >= margin).float().mean(1).tolist()

    @torch.no_grad()
    def seed_codes(self, features: Tensor, generator: torch.Generator) -> None:
        """Start the code book with vectors that occur: without it nearly all codes stay unused on small data."""
        pooled = torch.cat([self._vectors(features.float(), scale) for scale in range(len(self.patch_nums))])
        everywhere = torch.ones(self.vocab_size, dtype=torch.bool, device=pooled.device)
        # coarse maps hold averages, fine ones residuals of them: half the vectors' size covers both
        restart_codes(self.embedding.weight, everywhere, pooled * 0.5, generator)

    @torch.no_grad()
    def revive(self, generator: torch.Generator, below: float) -> int:
        """Replace codes hit less than `below` times per batch (over all scales) by residuals of the last training batch."""
        if not self._residuals:
            return 0
        hits = self.ema_vocab_hit_SV.sum(0)
        dead = hits < below
        count = restart_codes(self.embedding.weight, dead, torch.cat(self._residuals), generator)
        if count:
            self.ema_vocab_hit_SV[:, dead] = 2 * below / len(self.patch_nums)  # give the new ones time to be found
        return count

    # --- pieces ---

    def _shrink(self, features: Tensor, scale: int) -> Tensor:
        side = self.patch_nums[scale]
        return features if features.shape[-1] == side else F.interpolate(features, size=(side, side), mode="area")

    def _vectors(self, residual: Tensor, scale: int) -> Tensor:
        return self._shrink(residual, scale).permute(0, 2, 3, 1).flatten(0, 2)

    def _nearest(self, residual: Tensor, scale: int) -> Tensor:
        vectors = self._vectors(residual, scale)
        if self.training:
            self._residuals.append(vectors.detach())
        return nearest_code(vectors, self.embedding.weight, self.using_znorm).view(len(residual), -1)

    def _map(self, vectors: Tensor) -> Tensor:
        side = round(vectors.shape[1] ** 0.5)
        return vectors.transpose(1, 2).unflatten(2, (side, side))

    def _contribution(self, vectors: Tensor, scale: int) -> Tensor:
        side = self.patch_nums[-1]
        if scale < len(self.patch_nums) - 1:
            vectors = F.interpolate(vectors, size=(side, side), mode="bicubic")
        return self.phi(scale)(vectors)


def with_usage(state_dict: Mapping[str, Tensor], quantizer: MultiScaleVQ, prefix: str) -> dict[str, Tensor]:
    """The state dict with usage counts of the right number of scales: they are statistics, and a tokenizer may be used with
    other scales than it was trained with."""
    key = prefix + "ema_vocab_hit_SV"
    counts = state_dict.get(key)
    if counts is None or counts.shape != quantizer.ema_vocab_hit_SV.shape:
        return {**state_dict, key: quantizer.ema_vocab_hit_SV}
    return dict(state_dict)


class MultiScaleVQVAE(nn.Module, Pretrained):
    """Images in [0, 1] <-> token maps. Argument names are the released code's, with `in_channels` and `groups` for small nets.

    The image's side is patch_nums[-1] x 2^(len(ch_mult) - 1).
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 160,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        v_patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        *,
        using_znorm: bool = False,
        beta: float = 0.25,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        quant_conv_ks: int = 3,
        dropout: float = 0.0,
        in_channels: int = 3,
        groups: int = 32,
    ):
        super().__init__()
        shape: dict[str, Any] = {
            "ch": ch,
            "ch_mult": tuple(ch_mult),
            "num_res_blocks": num_res_blocks,
            "z_channels": z_channels,
            "in_channels": in_channels,
            "dropout": dropout,
            "groups": groups,
        }
        self.downsampling = 2 ** (len(ch_mult) - 1)
        self.in_channels = in_channels
        self.encoder = Encoder(**shape)
        self.decoder = Decoder(**shape)
        self.quantize = MultiScaleVQ(
            vocab_size,
            z_channels,
            v_patch_nums,
            using_znorm=using_znorm,
            beta=beta,
            quant_resi=quant_resi,
            share_quant_resi=share_quant_resi,
        )
        self.quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=quant_conv_ks // 2)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=quant_conv_ks // 2)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official_kwargs: Any) -> MultiScaleVQVAE:
        """From a released `vae_ch160v4096z32.pth`; `official_kwargs` as given to the released constructor."""
        kwargs = {k: v for k, v in official_kwargs.items() if k not in ("test_mode", "default_qresi_counts")}
        model = cls(**kwargs)
        return load_official(model, with_usage(state_dict, model.quantize, "quantize."))

    @property
    def patch_nums(self) -> tuple[int, ...]:
        return self.quantize.patch_nums

    @property
    def vocab_size(self) -> int:
        return self.quantize.vocab_size

    @property
    def channels(self) -> int:
        return self.quantize.channels

    @property
    def image_size(self) -> int:
        return self.patch_nums[-1] * self.downsampling

    def features(self, images: Tensor) -> Tensor:
        """The encoder's map [B, C, h, w] of images [B, in_channels, H, W] in [0, 1]."""
        if images.shape[1] != self.in_channels:
            raise InputError(f"images have {images.shape[1]} channels, the tokenizer was built for {self.in_channels}")
        if images.shape[-1] % self.downsampling or images.shape[-2] % self.downsampling:
            raise InputError(
                f"images of {tuple(images.shape[-2:])} pixels do not divide by {self.downsampling}: crop or resize them"
            )
        return self.quant_conv(self.encoder(to_signed(images)))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Token maps, int64 [B, s * s] per scale."""
        return self.quantize.tokenize(self.features(images))[0]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        return self.decode_features(self.quantize.features_of(indices)[-1])

    def decode_features(self, features: Tensor) -> Tensor:
        """Images in [0, 1] of accumulated features."""
        return to_unit(self.decode_signed(features))

    def decode_signed(self, features: Tensor) -> Tensor:
        """The decoder's raw output, about [-1, 1] and unbounded."""
        return self.decoder(self.post_quant_conv(features))

    # what generators ask a tokenizer for
    def begin(self, rows: int) -> Tensor:
        return self.quantize.begin(rows)

    def codes(self) -> Tensor:
        return self.quantize.codes()

    def lookup(self, indices: Tensor) -> Tensor:
        return self.quantize.lookup(indices)

    def accumulate(self, scale: int, vectors: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.quantize.accumulate(scale, vectors, features)
