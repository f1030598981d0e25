"""T2T-ViT (2101.11986): tokens-to-token in front of a deep and narrow transformer, and the blocks that its study compares.

Parameter names are those of the released files (81.5_T2T_ViT_14.pth.tar and others of the authors' release "main").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.protocol import Backbone, take_indices
from paperworks.backbones.registry import Entry
from paperworks.backbones.t2t_blocks import BlockKind, DenseBlock, T2TBlock, Transition
from paperworks.backbones.tokens_to_token import (
    SPLITS,
    HardSplit,
    TokensToToken,
    TokensType,
    Window,
    as_map,
    as_tokens,
    check_splits,
)
from paperworks.errors import InputError
from paperworks.layers.drop_path import linear_rates
from paperworks.layers.mlp import make_classifier
from paperworks.layers.positions import sincos_1d
from paperworks.layers.pretrained import load_official


class T2TBackbone(Backbone):
    """Tokens, class token, fixed positions, any blocks, norm, linear layer: what T2T-ViT's networks have in common.

    `forward_features` gives normed tokens [N, 1 + h * w, C], the class token first, as timm's vision transformers do. Maps are
    the two of tokens-to-token, then the patches of every block.
    """

    num_prefix_tokens = 1
    blocks: nn.ModuleList

    def _start(
        self,
        img_size: int | Sequence[int],
        tokens_type: TokensType,
        in_chans: int,
        embed_dim: int,
        token_dim: int,
        splits: Sequence[Window],
        drop_rate: float,
    ) -> None:
        """Everything in front of the blocks."""
        check_splits(splits)
        self.in_chans = in_chans
        self.reduction = reduction = splits[0][1] * splits[1][1] * splits[2][1]
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        if min(size) < reduction:
            raise InputError(f"img_size={img_size}: at least {reduction} pixels, the width of a token")
        self.tokens_to_token: TokensToToken | HardSplit
        self.feature_info = []
        if tokens_type == "patch":
            self.tokens_to_token = HardSplit(in_chans, embed_dim, reduction)
        else:
            self.tokens_to_token = TokensToToken(in_chans, embed_dim, token_dim, tokens_type, splits)
            for index, shrunk in enumerate((splits[0][1], splits[0][1] * splits[1][1])):
                self._add_level(token_dim, shrunk, f"tokens_to_token.attention{index + 1}")
        self.grid = self.tokens_to_token.grid(size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = sinusoid_table(1 + self.grid[0] * self.grid[1], embed_dim)
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.pos_drop = nn.Dropout(drop_rate)

    def _finish(self, widths: Sequence[int], num_classes: int) -> None:
        """Everything behind the blocks. widths: of the blocks' outputs."""
        self.groups = _groups(self.blocks)
        for group, width in zip(self.groups, widths):
            self._add_level(width, self.reduction, f"blocks.{group[-1]}")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.norm = nn.LayerNorm(widths[-1])
        self.head = make_classifier(widths[-1], num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                _initialise(module)

    def _add_level(self, channels: int, reduction: int, module: str) -> None:
        index = len(self.feature_info)
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": module, "index": index})

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files and constructor arguments. `token_dim` is read off the weights, and a position table of another
        square grid is resized (bicubic)."""
        width = state_dict.get("tokens_to_token.attention1.norm2.weight")
        if width is not None:
            official.setdefault("token_dim", len(width))
        model = cls(**official)
        weights = dict(state_dict)
        table = weights.get("pos_embed")
        if table is not None and table.shape != model.pos_embed.shape and table.shape[-1] == model.pos_embed.shape[-1]:
            side = round((table.shape[1] - 1) ** 0.5)
            weights["pos_embed"] = resize_positions(table, (side, side), model.grid)
        return load_official(model, weights)

    # --- forward passes ---------------------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        """For names and counts: the tokens between them are not maps, so the passes below go their own way."""
        return [[step] for step in self.tokens_to_token.steps()] + [[self.blocks[i] for i in g] for g in self.groups]

    def forward_features(self, x: Tensor) -> Tensor:
        """Normed tokens [N, 1 + h * w, num_features], the class token first (timm's form for transformers)."""
        return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        x = self._through(self.tokens_to_token.steps(), self._enter(x))
        return self.norm(self._through(list(self.blocks), self._with_positions(self.tokens_to_token.project(x))))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """(normed tokens, chosen maps) or only the chosen maps; see `Backbone`. norm: also of the maps of the last width."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt {output_fmt!r}: feature maps are NCHW")
        taken = take_indices(len(self.feature_info), indices)
        last = max(taken) if stop_early or intermediates_only else len(self.feature_info) - 1
        given, maps = x, []
        x = self._enter(x)
        steps = self.tokens_to_token.steps()
        for index, step in enumerate(steps[: last + 1]):
            x = self._through([step], x)
            if index in taken:
                maps.append(self._as_given(x, given))
        if last < len(steps):
            return maps if intermediates_only else (as_tokens(x), maps)
        x = self.tokens_to_token.project(x)
        height, width = x.shape[2:]
        x = self._with_positions(x)
        for index, group in enumerate(self.groups[: last + 1 - len(steps)], len(steps)):
            x = self._through([self.blocks[i] for i in group], x)
            if index in taken:
                tokens = self.norm(x) if norm and x.shape[-1] == self.norm.normalized_shape[0] else x
                maps.append(self._as_given(as_map(tokens[:, 1:], height, width), given))
        return maps if intermediates_only else (self.norm(x), maps)

    def _with_positions(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] -> tokens [N, 1 + h * w, C] with the class token and fixed positions."""
        table: Tensor = self.pos_embed
        grid = (x.shape[2], x.shape[3])
        # an exported graph has to take any size, so there the table is always resized: for its own grid that changes nothing
        if _recorded() or grid != self.grid:
            table = resize_positions(table, self.grid, grid)
        tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), as_tokens(x)), 1)
        return self.pos_drop(tokens + table.to(x.dtype))

    # --- the rest of timm's protocol ----------------------------------------------------------------------------------------

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed tokens -> logits, from the class token."""
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.head = make_classifier(self.head_hidden_size, num_classes)

    def keep_levels(self, count: int) -> None:
        kept = max(0, count - len(self.tokens_to_token.steps()))
        self.groups = self.groups[:kept]
        self.blocks = self.blocks[: self.groups[-1][-1] + 1 if kept else 0]
        self.feature_info = self.feature_info[:count]
        width = self.feature_info[-1]["num_chs"]
        if width != self.head_hidden_size:  # the final norm belongs to what was dropped
            self.norm = nn.LayerNorm(width)
            self.head_hidden_size = width

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^blocks\.(\d+)"
        return {"stem": r"^(?:cls_token|pos_embed|tokens_to_token)", "blocks": blocks if coarse else [(blocks, None)]}

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}


class T2TViT(T2TBackbone):
    """[N, in_chans, H, W] -> [N, num_classes]. Maps: the two of tokens-to-token (1/4, 1/8), then every block's (1/16).

    img_size: pixels, or (height, width), of the position table; other sizes resize it. embed_dim, depth, num_heads, mlp_ratio:
    of the transformer. tokens_type: attention inside tokens-to-token, or "patch" for hard patches without it; token_dim its
    width; splits its three windows (kernel, stride, padding). block: "plain", or "se" and "ghost" of the paper's study.
    qk_scale: factor of the attention's products, head width^-0.5 by default, with which the released weights work best.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        tokens_type: TokensType = "performer",
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 14,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_dim: int = 64,
        block: BlockKind = "plain",
        splits: Sequence[Window] = SPLITS,
    ):
        super().__init__()
        if depth < 1:
            raise InputError(f"depth={depth}: at least one block")
        self._start(img_size, tokens_type, in_chans, embed_dim, token_dim, splits, drop_rate)
        [rates] = linear_rates(drop_path_rate, [depth])
        shared: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_scale": qk_scale, "drop": drop_rate, "attn_drop": attn_drop_rate}
        self.blocks = nn.ModuleList(
            T2TBlock(embed_dim, num_heads, mlp_ratio, kind=block, drop_path=rate, **shared) for rate in rates
        )
        self._finish([embed_dim] * depth, num_classes)


class DenseT2TViT(T2TBackbone):
    """T2T-ViT with DenseNet's connections (the paper's section 3.2): every block adds `growth_rate` channels to what came
    before, and between stages a transition halves the width. block_config: blocks per stage."""

    def __init__(
        self,
        growth_rate: int = 64,
        tokens_type: TokensType = "performer",
        block_config: Sequence[int] = (3, 6, 6, 4),
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 128,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_dim: int = 64,
        splits: Sequence[Window] = SPLITS,
    ):
        super().__init__()
        if not block_config or min(block_config) < 1:
            raise InputError(f"block_config={block_config}: at least one block in every stage")
        self._start(img_size, tokens_type, in_chans, embed_dim, token_dim, splits, drop_rate)
        shared: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_scale": qk_scale, "drop": drop_rate, "attn_drop": attn_drop_rate}
        self.blocks = nn.ModuleList()
        dim, widths = embed_dim, []
        for stage, rates in enumerate(linear_rates(drop_path_rate, block_config)):
            if stage > 0:
                self.blocks.append(Transition(dim, dim // 2))
                dim //= 2
            for rate in rates:
                self.blocks.append(DenseBlock(growth_rate, dim, num_heads, mlp_ratio, drop_path=rate, **shared))
                dim += growth_rate
                widths.append(dim)
        self._finish(widths, num_classes)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        official.pop("depth", None)  # the authors' class has it, block_config decides
        return super().from_official(state_dict, **official)


def _recorded() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _groups(blocks: nn.ModuleList) -> list[list[int]]:
    """Numbers of the modules that lead to each map: a block, with the transition before it."""
    groups: list[list[int]] = [[]]
    for number, module in enumerate(blocks):
        groups[-1].append(number)
        if not isinstance(module, Transition):
            groups.append([])
    return groups[:-1]


def _initialise(module: nn.Linear | nn.Conv2d) -> None:
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def sinusoid_table(positions: int, dim: int) -> Tensor:
    """[positions, dim]: sine and cosine of position / 10000^(2i / dim) take turns; the class token is position 0."""
    sines, cosines = sincos_1d(torch.arange(positions), dim).chunk(2, 1)
    return torch.stack((sines, cosines), -1).flatten(1)


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table [1, 1 + h * w, C] for another grid: the class token's row stays, the others are resized (bicubic)."""
    if table.shape[1] != 1 + old[0] * old[1]:
        raise InputError(
            f"a position table of {table.shape[1]} rows does not belong to {old[0]} x {old[1]} tokens and a class token"
        )
    grid = as_map(table[:, 1:].float(), *old)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], as_tokens(resized).to(table.dtype)), 1)


HEAD = {"classifier": "head", "crop_pct": 0.9}
LITE = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0}


def _deep(embed_dim: int, depth: int, **more: Any) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": embed_dim // 64, "mlp_ratio": 3.0, **more}


AT_384 = {**HEAD, "input_size": (3, 384, 384), "crop_pct": 1.0}
SOFTMAX = {"tokens_type": "transformer"}

ENTRIES: dict[str, Entry] = {
    "t2t_vit_7": Entry(T2TViT, {**LITE, "depth": 7}, HEAD, 71.7),
    "t2t_vit_10": Entry(T2TViT, {**LITE, "depth": 10}, HEAD, 75.2),
    "t2t_vit_12": Entry(T2TViT, {**LITE, "depth": 12}, HEAD, 76.5),
    "t2t_vit_14": Entry(T2TViT, _deep(384, 14), HEAD, 81.5),
    "t2t_vit_14_384": Entry(T2TViT, _deep(384, 14, img_size=384), AT_384, 83.3),
    "t2t_vit_19": Entry(T2TViT, _deep(448, 19), HEAD, 81.9),
    "t2t_vit_24": Entry(T2TViT, _deep(512, 24), HEAD, 82.3),
    "t2t_vit_t_14": Entry(T2TViT, _deep(384, 14, **SOFTMAX), HEAD, 81.7),
    "t2t_vit_t_19": Entry(T2TViT, _deep(448, 19, **SOFTMAX), HEAD, 82.4),
    "t2t_vit_t_24": Entry(T2TViT, _deep(512, 24, **SOFTMAX), HEAD, 82.6),
    "t2t_vit_14_resnext": Entry(T2TViT, _deep(384, 14) | {"num_heads": 32}, HEAD),
    "t2t_vit_14_wide": Entry(T2TViT, _deep(768, 4), HEAD),
    "t2t_vit_14_se": Entry(T2TViT, _deep(384, 14, block="se"), HEAD),
    "t2t_vit_16_ghost": Entry(T2TViT, _deep(384, 16, block="ghost"), HEAD),
    "t2t_vit_dense": Entry(DenseT2TViT, {}, HEAD),
}
