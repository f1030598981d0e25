"""CSWin Transformer (2107.00652): half of the heads look along vertical stripes, the other half along horizontal ones.

Together a token sees a cross of stripe * (H + W) - stripe^2 tokens. Positions enter through a depthwise convolution of the
values inside each stripe (locally-enhanced positions), so nothing depends on the image's size: maps that stripes do not divide
are padded with zeros inside the attention, as in the authors' dense-prediction form, and cropped again.
Blocks take and give [N, C, H, W] and work on its channels-last view.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import PackedLinear, Plan, fuse_mlp_block
from paperworks.backbones.protocol import per_stage, take_indices
from paperworks.backbones.registry import Entry
from paperworks.backbones.staged import Stage, StagedBackbone
from paperworks.errors import InputError
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.folding import fold_scale_and_shift
from paperworks.layers.norms import LayerNorm2d
from paperworks.layers.pretrained import load_official
from paperworks.layers.transformer import FeedForward
from paperworks.layers.windows import Window, as_tokens, cut_windows, join_windows

EPS = 1e-5
STEMS = {4: (7, 2), 2: (3, 1), 1: (3, 1)}
"""patch size -> kernel and padding of the overlapping stem; 4 is the paper's"""

Direction = Literal["vertical", "horizontal", "full"]


class StripeAttention(nn.Module):
    """softmax(q k^T scale) v + LePE(v), each stripe by itself: [N, H, W, 3, C] (queries, keys, values) -> [N, H, W, C].

    LePE is a depthwise 3x3 convolution of the stripe's values; zeros around the stripe keep its neighbours out.
    direction: stripes are H x stripe ("vertical"), stripe x W ("horizontal") or the whole map ("full").
    """

    def __init__(self, dim: int, heads: int, direction: Direction, stripe: int = 1, scale: float | None = None):
        super().__init__()
        self.heads, self.direction, self.stripe, self.scale = heads, direction, stripe, scale
        self.lepe: nn.Module = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def window(self) -> Window:
        vertical, horizontal = self.direction == "vertical", self.direction == "horizontal"
        return (self.stripe if horizontal else None), (self.stripe if vertical else None)

    def forward(self, qkv: Tensor) -> Tensor:
        stripes = cut_windows(qkv, self.window())
        seen = self.attend(stripes) + self.local(stripes[:, :, :, 2])
        return join_windows(seen, self.window(), (qkv.shape[1], qkv.shape[2]))

    def attend(self, stripes: Tensor) -> Tensor:
        """[M, h, w, 3, C] -> [M, h * w, C]."""
        q, k, v = as_tokens(stripes).unflatten(-1, (self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)

    def local(self, values: Tensor) -> Tensor:
        """[M, h, w, C] -> [M, h * w, C]."""
        # a view into the projection is far slower to convolve than values that lie together
        return as_tokens(self.lepe(values.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class CrossShapedAttention(nn.Module):
    """[N, H, W, C] -> the same. The first half of the channels of q, k and v attends along vertical stripes, the second along
    horizontal ones; stripe=None is attention over the whole map."""

    def __init__(self, dim: int, heads: int, stripe: int | None, *, qkv_bias: bool = True, qk_scale: float | None = None):
        super().__init__()
        if dim % heads:
            raise InputError(f"a width of {dim} does not divide into {heads} heads")
        if stripe is not None and heads % 2:
            raise InputError(f"{heads} heads do not split into vertical and horizontal ones; take an even number")
        if stripe is not None and stripe < 1:
            raise InputError(f"a stripe of width {stripe}: it is 1 or more, or None for the whole map")
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if stripe is None:
            branches = [StripeAttention(dim, heads, "full", scale=qk_scale)]
        else:
            directions: tuple[Direction, ...] = ("vertical", "horizontal")
            branches = [StripeAttention(dim // 2, heads // 2, each, stripe, qk_scale) for each in directions]
        self.branches = nn.ModuleList(branches)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.mix(self.qkv(x)))

    def mix(self, qkv: Tensor) -> Tensor:
        """[N, H, W, 3 C] -> [N, H, W, C]: everything between the two products."""
        parts = qkv.unflatten(-1, (3, -1)).chunk(len(self.branches), -1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts)], -1)


class CSWinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), on [N, C, H, W]."""

    def __init__(
        self,
        dim: int,
        heads: int,
        stripe: int | None,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = CrossShapedAttention(dim, heads, stripe, qkv_bias=qkv_bias, qk_scale=qk_scale)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)

    def for_inference(self, plan: Plan) -> nn.Module:
        mlp = fuse_mlp_block(nn.Identity(), self.norm2, self.mlp.fc1, nn.GELU(), self.mlp.fc2, None, plan)
        assert mlp is not None
        return nn.Sequential(PreparedAttention(self.norm1, self.attn, plan), mlp)


class PreparedAttention(nn.Module):
    """x + attention(norm(x)) on [N, C, H, W]: the norm's gains are in the projection, whose weights are packed."""

    def __init__(self, norm: nn.LayerNorm, attn: CrossShapedAttention, plan: Plan):
        super().__init__()
        weight, bias = fold_scale_and_shift(attn.qkv.weight, attn.qkv.bias, norm.weight.double(), norm.bias.double())
        self.qkv = PackedLinear(weight.to(plan.dtype), bias.to(plan.dtype))
        self.proj = PackedLinear(attn.proj.weight.to(plan.dtype), attn.proj.bias.to(plan.dtype))
        self.attn = attn
        del attn.qkv, attn.proj
        plan.note("norm folded into the projection of queries, keys and values; both projections on packed weights")

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        shape = x.shape
        rows = x.reshape(-1, shape[-1])
        qkv = self.qkv(F.layer_norm(rows, rows.shape[1:], eps=EPS))
        mixed = self.attn.mix(qkv.view(*shape[:3], -1))
        out = self.proj(mixed.view(rows.shape)).add_(rows)
        return out.view(shape).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Overlapping convolution, LayerNorm: the stem, and the halving between stages."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding)
        self.norm = LayerNorm2d(outputs, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class CSWin(StagedBackbone):
    """[N, in_chans, H, W] of any size from the last reduction (32 by default) up -> [N, num_classes].

    Per stage: dims, depths, heads (even where stripes are), stripes (width; None for attention over the whole map, as in the
    last stage of all published networks). patch_size: stride of the stem; 4 in the paper, 2 or 1 for small images.
    qk_scale: of the scores, 1 / sqrt(width of a head) by default. drop_rate: before the classifier.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (1, 2, 21, 1),
        heads: Sequence[int] = (2, 4, 8, 16),
        stripes: Sequence[int | None] = (1, 2, 7, None),
        *,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        count = len(depths)
        for name, given in (("dims", dims), ("heads", heads), ("stripes", stripes)):
            per_stage(name, given, count)
        if patch_size not in STEMS:
            raise InputError(f"patch_size={patch_size}: 4, or 2 or 1 for small images")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        kernel, padding = STEMS[patch_size]
        self.stem = ConvNorm(in_chans, dims[0], kernel, patch_size, padding)
        self.feature_info = []
        stages = []
        for index, rates in enumerate(linear_rates(drop_path_rate, depths)):
            dim = dims[index]
            downsample = ConvNorm(dims[index - 1], dim, 3, 2, 1) if index else nn.Identity()
            try:
                blocks = [
                    CSWinBlock(
                        dim,
                        heads[index],
                        stripes[index],
                        mlp_ratio=mlp_ratio,
                        qkv_bias=qkv_bias,
                        qk_scale=qk_scale,
                        drop_path=rate,
                    )
                    for rate in rates
                ]
            except InputError as error:
                raise InputError(f"stage {index + 1}: {error}") from None
            stages.append(Stage(downsample, blocks))
            info = {"num_chs": dim, "reduction": patch_size * 2**index, "module": f"stages.{index}", "index": index}
            self.feature_info.append(info)
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = dims[-1]
        self.norm: nn.Module = LayerNorm2d(dims[-1], EPS)
        self.head = self._classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files, with the arguments of their class (img_size, embed_dim, depth, split_size, num_heads) or ours."""
        arguments = from_official_arguments(**official) if OFFICIAL_ONLY & official.keys() else official
        return load_official(cls(**arguments), state_dict, rename=NAMES)

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    def keep_levels(self, count: int) -> None:
        super().keep_levels(count)
        self.norm = nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Norm of every position, mean over positions, linear layer."""
        pooled = F.dropout(self.norm(x).mean((2, 3)), self.drop_rate, self.training)
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        weight = next(self.stem.parameters())
        self.num_classes, self.head_hidden_size = num_classes, self.num_features
        self.head = self._classifier(num_classes).to(weight.device, weight.dtype)

    def _classifier(self, num_classes: int) -> nn.Module:
        return _initialise(nn.Linear(self.num_features, num_classes)) if num_classes else nn.Identity()


class CSWinDense(CSWin):
    """The form for detection and segmentation: a LayerNorm of its own on every feature map that is taken out.

    Maps come from `forward_intermediates` (or timm's `features_only=True`), at 1/4 to 1/32 of any image size.
    """

    def __init__(self, *args: Any, num_classes: int = 0, **kwargs: Any):
        super().__init__(*args, num_classes=num_classes, **kwargs)
        self.norm = nn.Identity()
        self.output_norms = nn.ModuleList(LayerNorm2d(info["num_chs"], EPS) for info in self.feature_info)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' segmentation checkpoints (keys with or without `backbone.`; decoders are left out), or a classifier's
        weights, with fresh norms on the maps, as a start."""
        arguments = from_official_arguments(dense=True, **official) if OFFICIAL_ONLY & official.keys() else official
        model = cls(**{"num_classes": 0, **arguments})
        weights = {key.removeprefix("backbone."): value for key, value in state_dict.items()}
        names = {**NAMES, **DENSE_NAMES}
        if not any(re.match(r"norm1\.|output_norms\.", key) for key in weights):
            weights |= {key: value for key, value in model.state_dict().items() if key.startswith("output_norms.")}
        ignore = ["decode_head.", "auxiliary_head.", "norm."] + ([] if model.num_classes else ["head."])
        return load_official(model, weights, rename=names, ignore=ignore)

    def _features(self, x: Tensor) -> Tensor:
        return self.output_norms[-1](super()._features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As of every backbone; each map has gone through its norm, whatever `norm` says."""
        last, maps = super().forward_intermediates(x, indices, norm, stop_early, output_fmt)
        taken = sorted(set(take_indices(len(self.levels()), indices)))
        maps = [self._as_given(self.output_norms[index](each), x) for index, each in zip(taken, maps)]
        if intermediates_only:
            return maps
        return self._as_given(self.output_norms[max(taken) if stop_early else -1](last), x), maps

    def keep_levels(self, count: int) -> None:
        super().keep_levels(count)
        self.output_norms = self.output_norms[:count]


def _initialise(layer: nn.Linear) -> nn.Linear:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


# --- the authors' files -------------------------------------------------------------------------------------------------------

NAMES = {
    r"^stage1_conv_embed\.0\.": "stem.conv.",
    r"^stage1_conv_embed\.2\.": "stem.norm.",
    **{rf"^merge{stage}\.": f"stages.{stage}.downsample." for stage in (1, 2, 3)},
    **{rf"^stage{stage + 1}\.(\d+)\.(qkv|proj|attns)\.": rf"stages.{stage}.blocks.\1.attn.\2." for stage in range(4)},
    **{rf"^stage{stage + 1}\.(\d+)\.": rf"stages.{stage}.blocks.\1." for stage in range(4)},
    r"\.attns\.(\d)\.get_v\.": r".branches.\1.lepe.",
}
DENSE_NAMES = {rf"^norm{stage + 1}\.": f"output_norms.{stage}." for stage in range(4)}
OFFICIAL_ONLY = {"img_size", "embed_dim", "depth", "split_size", "num_heads"}
"""arguments of the authors' classes that ours do not have"""


def from_official_arguments(
    img_size: int = 224,
    embed_dim: int = 64,
    depth: Sequence[int] = (1, 2, 21, 1),
    split_size: Sequence[int] = (1, 2, 7, 7),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    *,
    dense: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """The arguments of the authors' classes -> ours.

    Their classifier has one branch over the whole map in the last stage and wherever the map of an img_size image is as wide as
    a stripe, and doubles widths; their dense form has it in the last stage only, and widths grow as the heads do.
    """
    if img_size % 32:
        raise InputError(f"img_size={img_size}: the authors' network is built for multiples of 32; images may have any size")
    dims, stripes = [embed_dim], list[int | None](split_size)
    for index in range(1, len(depth)):
        dims.append(dims[-1] * (num_heads[index] // num_heads[index - 1] if dense else 2))
    for index in range(len(depth)):
        whole = not dense and img_size // (4 * 2**index) == split_size[index]
        if whole or index == len(depth) - 1:
            stripes[index] = None
    training = ("drop_rate", "attn_drop_rate", "hybrid_backbone", "norm_layer", "use_chk", "patch_size")
    kept = {name: value for name, value in others.items() if name not in training}
    if dense:
        kept["qkv_bias"] = True  # whatever the argument says
    return {"dims": dims, "depths": list(depth), "heads": list(num_heads), "stripes": stripes, **kept}


# --- named networks -----------------------------------------------------------------------------------------------------------

CFG = {"first_conv": "stem.conv", "classifier": "head", "crop_pct": 0.9}
CFG_384 = {**CFG, "crop_pct": 1.0, "input_size": (3, 384, 384), "pool_size": (12, 12)}
DEEP = {"depths": (2, 4, 32, 2)}
TINY: dict[str, Any] = {}
SMALL: dict[str, Any] = DEEP
BASE: dict[str, Any] = {**DEEP, "dims": (96, 192, 384, 768), "heads": (4, 8, 16, 32)}
LARGE: dict[str, Any] = {**DEEP, "dims": (144, 288, 576, 1152), "heads": (6, 12, 24, 24)}
"""24 heads in the last stage, as in the released weights"""
WIDE = {"stripes": (1, 2, 12, None)}
"""for 384 pixels"""

ENTRIES: dict[str, Entry] = {
    "cswin_tiny": Entry(CSWin, TINY, CFG, 82.8),
    "cswin_small": Entry(CSWin, SMALL, CFG, 83.6),
    "cswin_base": Entry(CSWin, BASE, CFG, 84.2),
    "cswin_base_384": Entry(CSWin, {**BASE, **WIDE}, CFG_384, 85.5),
    "cswin_large": Entry(CSWin, LARGE, CFG, 86.5),
    "cswin_large_384": Entry(CSWin, {**LARGE, **WIDE}, CFG_384, 87.5),
    "cswin_tiny_dense": Entry(CSWinDense, TINY, CFG),
    "cswin_small_dense": Entry(CSWinDense, SMALL, CFG),
    "cswin_base_dense": Entry(CSWinDense, BASE, CFG),
}
