"""xAR's transformer (2502.20388): continuous latents generated entity after entity, each by flow matching.

An entity is a token, a cell of tokens, a subsample, a scale or the whole image: an order of the grid's positions and sizes of
consecutive blocks. A token sees its own entity and all earlier ones; every entity has its own time of the flow. Module names
are those of the released checkpoints where these do not differ by block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.adaln_transformer import Attend
from paperworks.layers.block_causal import block_causal_attention, block_causal_mask, block_numbers
from paperworks.layers.positions import rotary_2d
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import Attention, GatedFeedForward, xavier

EntityKind = Literal["token", "cell", "subsample", "scale", "image"]


@dataclass(frozen=True)
class Entities:
    """order: positions of the grid (row by row) in the order in which they are generated; sizes: of consecutive entities."""

    order: Tensor
    sizes: tuple[int, ...]

    def split(self, latents: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, C] in order."""
        return latents.flatten(2).transpose(1, 2)[:, self.order]

    def merge(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[B, L, C] in order -> [B, C, H, W]."""
        back = torch.empty_like(tokens)
        back[:, self.order] = tokens
        return back.transpose(1, 2).unflatten(2, (height, width))


def make_entities(kind: EntityKind, height: int, width: int, size: int = 8) -> Entities:
    """token: one position each. cell: size x size neighbours. subsample: positions `size` apart, size^2 entities. scale: every
    size-th position first, then those that halve the distance, up to all. image: everything at once."""
    grid = torch.arange(height * width).view(height, width)
    if kind == "token":
        return Entities(grid.flatten(), (1,) * grid.numel())
    if kind == "image":
        return Entities(grid.flatten(), (grid.numel(),))
    if kind not in ("cell", "subsample", "scale"):
        raise InputError(f"entity={kind!r}: there are token, cell, subsample, scale and image")
    if size < 1 or height % size or width % size:
        raise InputError(f"a grid of {height} x {width} does not divide into {kind} entities of {size}: change the size")
    if kind == "cell":
        cells = grid.view(height // size, size, width // size, size).permute(0, 2, 1, 3).reshape(-1, size * size)
        return Entities(cells.flatten(), (size * size,) * len(cells))
    if kind == "subsample":
        parts = grid.view(height // size, size, width // size, size).permute(1, 3, 0, 2).reshape(size * size, -1)
        return Entities(parts.flatten(), (parts.shape[1],) * len(parts))
    if size & (size - 1):
        raise InputError(f"scales halve their distance, so size={size} must be a power of two")
    seen = torch.zeros(height, width, dtype=torch.bool)
    levels: list[Tensor] = []
    step = size
    while step >= 1:
        here = torch.zeros_like(seen)
        here[::step, ::step] = True
        levels.append(grid[here & ~seen])
        seen |= here
        step //= 2
    return Entities(torch.cat(levels), tuple(len(part) for part in levels))


class FlowBlock(nn.Module):
    """x + g1 attention(RMS(x) (1 + s1) + h1), then the same with a GEGLU; the condition differs from token to token.

    dropout: of the attention probabilities and of what both parts put out.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.attn = Attention(dim, heads, dropout=dropout, attention_dropout=dropout)
        self.mlp = GatedFeedForward(dim, hidden, "geglu", bias=True, dropout=dropout)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...], attend: Attend, rotary: Tensor) -> Tensor:
        gain1, gain2, scale1, scale2, shift1, shift2 = modulation
        x = x + gain1 * self.attn(_norm(x) * (1 + scale1) + shift1, attend, rotary)
        return x + gain2 * self.mlp(_norm(x) * (1 + scale2) + shift2)

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Six [B, n, dim] of a condition [B, n, dim]."""
        return self.ada_lin(condition).chunk(6, -1)


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


class NextEntityTransformer(nn.Module, Pretrained):
    """Velocities of latents [B, channels, side, side] whose entities are noised to times of their own; label `num_classes` is
    no class. depth: blocks of each of the two halves."""

    mask: Tensor
    rotary: Tensor
    entity_of: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        side: int = 16,
        channels: int = 16,
        dim: int = 768,
        depth: int = 8,
        heads: int = 12,
        *,
        entity: EntityKind = "cell",
        entity_size: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.num_classes, self.side, self.channels, self.dim, self.depth, self.heads = (
            num_classes,
            side,
            channels,
            dim,
            depth,
            heads,
        )
        self.entities = make_entities(entity, side, side, entity_size)
        length = side * side
        hidden = int(dim * mlp_ratio * 2 / 3)
        self.class_emb = nn.Embedding(num_classes + 1, dim)
        self.time_embed = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.z_proj = nn.Linear(channels, dim)
        self.z_proj_ln = nn.RMSNorm(dim, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.encoder_blocks = nn.ModuleList(FlowBlock(dim, heads, hidden, dropout) for _ in range(depth))
        self.encoder_norm = nn.RMSNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, dim)
        self.decoder_pos_embed_learned = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.decoder_blocks = nn.ModuleList(FlowBlock(dim, heads, hidden, dropout) for _ in range(depth))
        self.decoder_norm = nn.RMSNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, channels)
        order = self.entities.order
        self.register_buffer("rotary", rotary_2d(order // side, order % side, dim // heads), persistent=False)
        self.register_buffer("mask", block_causal_mask(self.entities.sizes), persistent=False)
        self.register_buffer("entity_of", torch.tensor(block_numbers(self.entities.sizes)), persistent=False)
        xavier(self.modules())
        nn.init.normal_(self.class_emb.weight, std=0.02)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """A released `xAR-*.pth` with the argument names of its code; masks and rotary tables in it are derived."""
        side = official["img_size"] // official["vae_stride"] // official.get("patch_size", 1)
        cells = round(math.sqrt(official.get("clusters", 4)))
        if (
            official["encoder_embed_dim"] != official["decoder_embed_dim"]
            or official["encoder_depth"] != official["decoder_depth"]
        ):
            raise InputError("both halves must have one width and depth, as in all released models")
        model = cls(
            len(state_dict["class_emb.weight"]) - 1,
            side,
            state_dict["z_proj.weight"].shape[1],
            official["encoder_embed_dim"],
            official["encoder_depth"],
            official["encoder_num_heads"],
            entity_size=side // cells,
            mlp_ratio=official.get("mlp_ratio", 4.0),
        )
        derived = ("mask", "attn_mask", "rope")
        weights = {key: value for key, value in state_dict.items() if ".rope." not in key}
        return load_official(model, weights, rename=_ours, ignore=derived)

    def forward(self, labels: Tensor, tokens: Tensor, times: Tensor) -> Tensor:
        """Velocity [B, L, channels] of tokens [B, L, channels] in entity order, each entity at its time in [0, 1] (times
        [B, entities]; 1 is noise)."""

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
            if dropout:  # in training, where the shorter paths below have no such option
                return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, dropout_p=dropout, scale=scale)
            return block_causal_attention(query, key, value, self.entities.sizes, scale, self.mask)

        return self.velocity(labels, tokens, times, slice(None), lambda layer: attend)

    def velocity(self, labels: Tensor, tokens: Tensor, times: Tensor, where: slice, attends: Any) -> Tensor:
        """The same for the positions `where`, whose entities have `times` [B, their number]; attends(layer) gives the
        attention of each of the 2 x depth layers."""
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= self.num_classes):
            raise InputError(f"labels must lie in 0..{self.num_classes - 1}, or be {self.num_classes} for no class")
        if times.numel() and not (float(times.min()) >= 0 and float(times.max()) <= 1):
            raise InputError(f"times must lie in [0, 1], these go from {float(times.min()):.3g} to {float(times.max()):.3g}")
        condition = self.class_emb(labels)[:, None] + self.time_embed(time_features(times).to(self.z_proj.weight.dtype))
        entity = self.entity_of[where] - self.entity_of[where][0]
        rotary = self.rotary[where]
        x = self.z_proj_ln(self.z_proj(tokens) + self.encoder_pos_embed_learned[:, where])
        for layer, block in enumerate(self.encoder_blocks):
            x = self._block(block, x, condition, entity, attends(layer), rotary)
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, where]
        for layer, block in enumerate(self.decoder_blocks, self.depth):
            x = self._block(block, x, condition, entity, attends(layer), rotary)
        return self.pred(self.decoder_norm(x))

    @staticmethod
    def _block(block: nn.Module, x: Tensor, condition: Tensor, entity: Tensor, attend: Attend, rotary: Tensor) -> Tensor:
        assert isinstance(block, FlowBlock)
        modulation = tuple(part[:, entity] for part in block.modulation(condition))
        return block(x, modulation, attend, rotary)


def time_features(times: Tensor, width: int = 256) -> Tensor:
    """[..., width]: cosines, then sines, of floor(1000 t) at falling frequencies."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=times.device, dtype=torch.float32) / half)
    angles = (1000 * times).floor().float()[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1)


def _ours(key: str) -> str:
    key = re.sub(r"^time_embed\.mlp\.", "time_embed.", key)
    return key.replace(".mlp.fc1_g.", ".mlp.gate.").replace(".mlp.fc1_x.", ".mlp.fc1.")
