"""HMAR's transformer (2506.04421): next-scale prediction in which a scale sees the image decoded so far and nothing else of the
past, and a second head of blocks that refines a scale by masked prediction.

Attention is block-diagonal over scales, so sampling needs no cache and training no L x L mask. Module names are those of the
released checkpoints: base_blocks are shared, ns_blocks and mask_blocks are the two versions of the last ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.next_scale import SCALES_256
from paperworks.layers.adaln_transformer import AdaLNBlock, AdaLNHeadNorm, init_adaln_transformer
from paperworks.layers.block_causal import block_diagonal_attention, block_ends, block_numbers
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import full_attention

Branch = Literal["ns", "mask"]


class MaskedScaleTransformer(nn.Module, Pretrained):
    """Predicts a multi-scale tokenizer's maps scale after scale ("ns"), or the masked tokens of scales ("mask").

    refine_layers: how many of the last blocks exist twice. drop_path_rate: of the last block, growing from 0. Other arguments
    as NextScaleTransformer's; label `num_classes` is no class.
    """

    levels: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        depth: int = 16,
        embed_dim: int = 1024,
        num_heads: int = 16,
        patch_nums: Sequence[int] = SCALES_256,
        vocab_size: int = 4096,
        code_channels: int = 32,
        mlp_ratio: float = 4.0,
        refine_layers: int = 8,
        attn_l2_norm: bool = True,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"embed_dim={embed_dim} does not divide into num_heads={num_heads}")
        if not 1 <= refine_layers <= depth:
            raise InputError(f"refine_layers={refine_layers} must lie between 1 and depth={depth}")
        self.num_classes, self.vocab_size, self.code_channels = num_classes, vocab_size, code_channels
        self.depth, self.dim, self.heads, self.refine_layers = depth, embed_dim, num_heads, refine_layers
        self.patch_nums = tuple(patch_nums)
        self.sizes = [side * side for side in self.patch_nums]
        self.ends = block_ends(self.sizes)
        self.length = sum(self.sizes)

        self.word_embed = nn.Linear(code_channels, embed_dim, bias=False)
        self.word_embed_bias = nn.Parameter(torch.zeros(embed_dim))
        self.mask_embed = nn.Embedding(1, embed_dim)
        self.class_emb = nn.Embedding(num_classes + 1, embed_dim)
        self.pos_start = nn.Parameter(torch.empty(1, self.sizes[0], embed_dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, self.length, embed_dim))
        self.lvl_embed = nn.Embedding(len(self.patch_nums), embed_dim)

        rates = [drop_path_rate * number / max(1, depth - 1) for number in range(depth)]

        def blocks(rates: Sequence[float]) -> nn.ModuleList:
            options: dict[str, Any] = {"l2_norm": attn_l2_norm, "eps": norm_eps}
            return nn.ModuleList(AdaLNBlock(embed_dim, num_heads, mlp_ratio, drop_path=rate, **options) for rate in rates)

        shared, last = rates[: depth - refine_layers], rates[depth - refine_layers :]
        self.base_blocks, self.ns_blocks, self.mask_blocks = blocks(shared), blocks(last), blocks(last)
        self.ns_head_nm, self.mask_head_nm = AdaLNHeadNorm(embed_dim, norm_eps), AdaLNHeadNorm(embed_dim, norm_eps)
        self.ns_head, self.mask_head = nn.Linear(embed_dim, vocab_size), nn.Linear(embed_dim, vocab_size)

        self.register_buffer("levels", torch.tensor(block_numbers(self.sizes)), persistent=False)
        std = (1 / embed_dim / 3) ** 0.5
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)
        every = nn.ModuleList([*self.base_blocks, *self.ns_blocks])
        init_adaln_transformer(self, every, self.ns_head, self.ns_head_nm, std=std)
        self.start_refining()

    def start_refining(self) -> None:
        """Let the mask branch start as a copy of the next-scale branch (before its training)."""
        self.mask_blocks.load_state_dict(self.ns_blocks.state_dict())
        self.mask_head_nm.load_state_dict(self.ns_head_nm.state_dict())
        self.mask_head.load_state_dict(self.ns_head.state_dict())

    def mask_parameters(self) -> list[nn.Parameter]:
        """What the second stage trains; everything else stays as the first one left it."""
        parts = (self.mask_embed, self.mask_blocks, self.mask_head_nm, self.mask_head)
        return [parameter for part in parts for parameter in part.parameters()]

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], *, mask_only: bool = False, **official: Any) -> Self:
        """Released files: the merged model, or the next-scale model, whose blocks then serve both branches.

        The masked-prediction model cannot draw a scale by itself: merge it first (`merged`), or say mask_only=True to use its
        mask branch alone.
        """
        if "head.weight" in state_dict and "mask_embed.weight" in state_dict and not mask_only:
            raise InputError(
                "this is HMAR's masked-prediction model alone, which cannot draw a scale: merge it with its next-scale model "
                "(generators.masked_scale.merged) and load that"
            )
        names = ("num_classes", "depth", "embed_dim", "num_heads", "patch_nums", "mlp_ratio", "attn_l2_norm")
        kwargs = {name: official[name] for name in names if name in official}
        refine = official.get("n_layers_train", 8)
        head = "ns_head.weight" if "ns_head.weight" in state_dict else "head.weight"
        try:
            kwargs |= {"vocab_size": len(state_dict[head]), "code_channels": state_dict["word_embed.weight"].shape[1]}
        except KeyError as missing:
            raise InputError(f"not a checkpoint of HMAR: it has no {missing}") from None
        model = cls(**kwargs, refine_layers=refine, norm_eps=official.get("norm_eps", 1e-6))
        weights = dict(state_dict)
        if "head.weight" in weights:
            weights = merged(weights, weights, model.depth, refine)
        weights.setdefault("mask_embed.weight", model.mask_embed.weight.detach())
        derived = ("attn_bias_for_masking", "lvl_1L", "vae.", "vae_proxy", "vae_quant_proxy")
        return load_official(model, weights, ignore=derived)

    # --- training ---

    def forward(self, labels: Tensor, inputs: Tensor, own: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] of all scales for labels [B] and inputs [B, L - first, code_channels] (the tokenizer's
        `next_inputs`). With own [B, L - first, code_channels] (`own_inputs` of each scale but the first) and masked, bool
        [L - first], those of the mask branch: tokens at masked positions are hidden, the others are seen."""
        self.check_labels(labels)
        if inputs.shape[1] != self.length - self.sizes[0]:
            raise InputError(f"inputs hold {inputs.shape[1]} positions, {self.length - self.sizes[0]} follow the first scale")
        condition = self.class_emb(labels)
        x = torch.cat((self.start(condition), self.embed(inputs, own, masked, slice(self.sizes[0], None))), 1)

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            return block_diagonal_attention(query, key, value, self.sizes, scale)

        branch: Branch = "ns" if own is None else "mask"
        for block in self.branch(branch):
            x = block(x, block.modulation(condition), attend)
        return self.head(branch, x, condition)

    def embed(self, inputs: Tensor, own: Tensor | None, masked: Tensor | None, where: slice) -> Tensor:
        """Inputs of the positions `where`, [B, n, dim]."""
        x = self.word_embed(inputs.to(self.word_embed.weight.dtype))
        if own is not None:
            assert masked is not None
            seen = self.word_embed(own.to(self.word_embed.weight.dtype))
            x = x + torch.where(masked[..., None], self.mask_embed.weight.to(seen.dtype), seen)
        return x + self.word_embed_bias + self.positions()[:, where]

    def start(self, condition: Tensor) -> Tensor:
        """Input of the first scale, [B, first, dim]."""
        return condition[:, None] + self.pos_start + self.positions()[:, : self.sizes[0]]

    def positions(self) -> Tensor:
        return self.pos_1LC + self.lvl_embed(self.levels)

    def branch(self, branch: Branch) -> list[AdaLNBlock]:
        last = self.ns_blocks if branch == "ns" else self.mask_blocks
        return [block for block in (*self.base_blocks, *last) if isinstance(block, AdaLNBlock)]

    def head(self, branch: Branch, x: Tensor, condition: Tensor) -> Tensor:
        if branch == "ns":
            return self.ns_head(self.ns_head_nm(x, condition))
        return self.mask_head(self.mask_head_nm(x, condition))

    def check_labels(self, labels: Tensor) -> None:
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= self.num_classes):
            raise InputError(f"labels must lie in 0..{self.num_classes - 1}, or be {self.num_classes} for no class")


class ScaleSteps:
    """Runs single scales for fixed rows; what depends on the condition alone is computed once."""

    def __init__(self, model: MaskedScaleTransformer, labels: Tensor):
        model.check_labels(labels)
        self.model, self.condition = model, model.class_emb(labels)
        branches: tuple[Branch, Branch] = ("ns", "mask")
        self.blocks = {name: [(b, b.modulation(self.condition)) for b in model.branch(name)] for name in branches}

    def logits(
        self, branch: Branch, scale: int, inputs: Tensor | None, own: Tensor | None = None, masked: Any = None
    ) -> Tensor:
        """[rows, n, V] of one scale; inputs [rows, n, code_channels] (None for the first scale), masked bool [rows, n]."""
        begin, end = self.model.ends[scale]
        if inputs is None:
            x = self.model.start(self.condition)
        else:
            x = self.model.embed(inputs, own, masked, slice(begin, end))
        for block, modulation in self.blocks[branch]:
            x = block(x, modulation, full_attention)
        return self.model.head(branch, x, self.condition).float()


def merged(next_scale: Mapping[str, Tensor], mask: Mapping[str, Tensor], depth: int, refine_layers: int) -> dict[str, Tensor]:
    """One state dict from the two separately trained models."""
    shared = depth - refine_layers
    made = {}
    for branch, weights in (("mask", mask), ("ns", next_scale)):
        for key, value in weights.items():
            found = re.fullmatch(r"blocks\.(\d+)\.(.*)", key)
            if found and int(found[1]) < shared:
                made[f"base_blocks.{found[1]}.{found[2]}"] = value
            elif found:
                made[f"{branch}_blocks.{int(found[1]) - shared}.{found[2]}"] = value
            elif key.startswith(("head.", "head_nm.")):
                made[f"{branch}_{key}"] = value
            else:
                made["word_embed_bias" if key == "word_embed.bias" else key] = value
    return made


def scale_weights(patch_nums: Sequence[int], kind: Literal["lognorm", "equal", "uniform"] = "lognorm") -> Tensor:
    """Weight of every token in the next-scale loss, [L], summing to 1.

    "uniform": all tokens alike, so that large scales dominate. "equal": every scale alike. "lognorm": a scale weighs the normal
    density at the standardised side of its counterpart from the other end of the list, shared by its tokens.
    """
    sides = torch.tensor(patch_nums, dtype=torch.float64)
    counts = sides.square()
    if kind == "uniform":
        per_scale = counts
    elif kind == "equal" or len(sides) == 1:
        per_scale = torch.ones_like(sides)
    elif kind == "lognorm":
        standard = (sides.flip(0) - sides.mean()) / sides.std()
        per_scale = torch.exp(-standard.square() / 2)
    else:
        raise InputError(f"weights {kind!r}: there are lognorm, equal and uniform")
    tokens = (per_scale / counts).repeat_interleave(counts.long())
    return (tokens / tokens.sum()).float()


def weighted_cross_entropy(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows of the weighted sum over tokens; logits [B, L, V], tokens [B, L], weights [L] summing to 1."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none").view_as(tokens)
    return (losses * weights.to(losses.device)).sum(1).mean()
