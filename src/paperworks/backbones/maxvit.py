"""MaxViT (2204.01697): one block again and again: MBConv, attention within windows, attention over a sparse grid.

The window stays as it is while the image grows, so the cost is linear in pixels; a window and a grid after one another still
connect far parts of the map, at every resolution and without shifts or masks. Where the window does not divide a map, it is
padded inside the attention and the padding is never looked at; `set_window` changes the window and interpolates the biases.
Module names are timm's (`maxvit_*_tf_*`, the authors' weights converted); blocks take and give [N, C, H, W].
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import PackedLinear, Plan, fuse_mlp_block
from paperworks.backbones.protocol import Backbone, per_stage
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.convolution import SameConv2d
from paperworks.layers.folding import fold_after, fold_before, fold_scale_and_shift
from paperworks.layers.grids import Size
from paperworks.layers.mbconv import MBConv
from paperworks.layers.mlp import make_activation
from paperworks.layers.multi_axis import Axis, AxisBlock, MultiAxisAttention, as_size, resized_table
from paperworks.layers.pretrained import load_official
from paperworks.layers.transformer import ACTIVATIONS, ActivationKind

TABLE = "relative_position_bias_table"


class MaxViTBlock(nn.Module):
    """[N, inputs, H, W] -> [N, dim, H / stride, W / stride]: MBConv, then an attention with MLP along each of `axes`."""

    def __init__(
        self,
        inputs: int,
        dim: int,
        stride: int = 1,
        *,
        window: int | Size = 7,
        grid: int | Size | None = None,
        axes: tuple[Axis, Axis] = ("block", "grid"),
        head_dim: int = 32,
        expand: float = 4.0,
        se_ratio: float = 0.25,
        mlp_ratio: float = 4.0,
        conv_eps: float = 1e-3,
        norm_eps: float = 1e-5,
        activation: ActivationKind = "gelu_tanh",
        drop_path: float = 0.0,
    ):
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.LayerNorm(channels, norm_eps)

        common: dict[str, Any] = {"activation": activation, "drop_path": drop_path}
        self.conv: nn.Module = MBConv(inputs, dim, stride, expand=expand, se_ratio=se_ratio, eps=conv_eps, **common)
        sizes = {"block": window, "grid": window if grid is None else grid}
        first, second = (
            AxisBlock(dim, axis, sizes.get(axis, 1), head_dim=head_dim, mlp_ratio=mlp_ratio, norm=norm, **common)
            for axis in axes
        )
        self.attn_block, self.attn_grid = first, second

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        return self.attn_grid(self.attn_block(x)).permute(0, 3, 1, 2)

    def for_inference(self, plan: Plan) -> nn.Module:
        conv = PreparedMBConv(self.conv, plan) if isinstance(self.conv, MBConv) else self.conv
        return nn.Sequential(conv, *prepared_axis(self.attn_block, plan), *prepared_axis(self.attn_grid, plan))


class Stem(nn.Module):
    """Two 3x3 convolutions with biases, batch norm and GELU after the first; the first one strides."""

    norm_pairs = (("conv1", "norm1"),)

    def __init__(self, in_chans: int, width: int, stride: int, bias: bool, eps: float, activation: ActivationKind):
        super().__init__()
        self.conv1 = SameConv2d(in_chans, width, 3, stride, bias=bias)
        self.norm1 = nn.BatchNorm2d(width, eps, momentum=0.01)
        self.conv2 = SameConv2d(width, width, 3, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(ACTIVATIONS[self.activation](self.norm1(self.conv1(x))))


class Stage(nn.Module):
    """Blocks, of which the first halves the map."""

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Head(nn.Module):
    """Global mean, LayerNorm, linear layer with tanh (none for hidden=0), dropout, classifier."""

    def __init__(self, features: int, hidden: int, num_classes: int, drop: float, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(features, eps)
        between = OrderedDict(fc=nn.Linear(features, hidden), act=nn.Tanh()) if hidden else OrderedDict[str, nn.Module]()
        self.pre_logits = nn.Sequential(between)
        self.drop = nn.Dropout(drop)
        self.fc: nn.Module = nn.Identity()
        self.width = hidden or features
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        weight = self.norm.weight
        self.fc = nn.Linear(self.width, num_classes).to(weight.device, weight.dtype) if num_classes else nn.Identity()
        _initialise(self.fc)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        features = self.drop(self.pre_logits(self.norm(x.mean((2, 3)))))
        return features if pre_logits else self.fc(features)


class MaxViT(Backbone):
    """[N, in_chans, H, W] of any size from the last reduction (32 by default) up -> [N, num_classes]; maps at 1/2 to 1/32.

    Per stage: dims (multiples of head_dim), depths. window: side of the windows (P in the paper) or both sides; grid: tokens of
    the grid (G), as many as a window by default. stem_stride: 2, or 1 for small images. axes: along which a block attends.
    head_width: of the layer before the classifier, the last width by default. The rate of dropped paths grows over the blocks
    from 0 to drop_path_rate * (blocks - 1) / blocks, as in the authors' code.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        stem_width: int = 64,
        *,
        window: int | Size = 7,
        grid: int | Size | None = None,
        axes: tuple[Axis, Axis] = ("block", "grid"),
        head_dim: int = 32,
        expand: float = 4.0,
        se_ratio: float = 0.25,
        mlp_ratio: float = 4.0,
        stem_stride: int = 2,
        stem_bias: bool = True,
        head_width: int | None = None,
        conv_eps: float = 1e-3,
        norm_eps: float = 1e-5,
        activation: ActivationKind = "gelu_tanh",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        per_stage("dims", dims, len(depths))
        if stem_stride not in (1, 2):
            raise InputError(f"stem_stride={stem_stride}: 2, or 1 for small images")
        if activation not in ACTIVATIONS:
            raise InputError(f"activation {activation!r}: there are {', '.join(ACTIVATIONS)}")
        self.num_classes, self.in_chans, self.drop_rate, self.norm_eps = num_classes, in_chans, drop_rate, norm_eps
        self.stem = Stem(in_chans, stem_width, stem_stride, stem_bias, conv_eps, activation)
        self.feature_info = [{"num_chs": stem_width, "reduction": stem_stride, "module": "stem", "index": 0}]
        inputs, number, stages = stem_width, 0, []
        for index, (dim, depth) in enumerate(zip(dims, depths)):
            blocks = []
            for position in range(depth):
                block = MaxViTBlock(
                    inputs,
                    dim,
                    2 if position == 0 else 1,
                    window=window,
                    grid=grid,
                    axes=axes,
                    head_dim=head_dim,
                    expand=expand,
                    se_ratio=se_ratio,
                    mlp_ratio=mlp_ratio,
                    conv_eps=conv_eps,
                    norm_eps=norm_eps,
                    activation=activation,
                    drop_path=drop_path_rate * number / sum(depths),
                )
                blocks.append(block)
                inputs, number = dim, number + 1
            stages.append(Stage(blocks))
            reduction = stem_stride * 2 ** (index + 1)
            info = {"num_chs": dim, "reduction": reduction, "module": f"stages.{index}", "index": index + 1}
            self.feature_info.append(info)
        self.stages = nn.Sequential(*stages)
        self.num_features, self.head_hidden_size = dims[-1], head_width or dims[-1]
        for module in self.modules():
            _initialise(module)
        self.head = Head(self.num_features, self.head_hidden_size, num_classes, drop_rate, norm_eps)
        _initialise(self.head.pre_logits[0])

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """timm's `maxvit_*_tf_*` files (the authors' weights). Biases of another window are interpolated to this network's."""
        model = cls(**official)
        ours = model.state_dict()
        weights = dict(state_dict)
        for name in weights.keys() & ours.keys():
            if name.endswith(TABLE) and weights[name].ndim == 3 and len(weights[name]) == len(ours[name]):
                high, wide = ((side + 1) // 2 for side in ours[name].shape[1:])
                weights[name] = resized_table(weights[name], (high, wide))
        return load_official(model, weights)

    def set_window(self, window: int | Size, grid: int | Size | None = None) -> None:
        """Windows (and grids) of another size, as the paper's fine-tuning at 384 (12) and 512 pixels (16) has them: image / 32
        is the size that needs no padding. Biases are interpolated."""
        sizes = {"block": as_size(window), "grid": as_size(window if grid is None else grid)}
        for module in self.modules():
            if isinstance(module, MultiAxisAttention):
                module.resize_window(sizes[module.axis])

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> list[list[nn.Module]]:
        return [[self.stem], *([*stage.blocks] for stage in self.stages if isinstance(stage, Stage))]

    def keep_levels(self, count: int) -> None:
        self.stages = self.stages[: count - 1]
        self.feature_info = self.feature_info[:count]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """reset_other: the layer before the classifier goes as well."""
        self.num_classes = num_classes
        if reset_other:
            weight = self.stem.conv1.weight
            head = Head(self.num_features, 0, num_classes, self.drop_rate, self.norm_eps)
            self.head, self.head_hidden_size = head.to(weight.device, weight.dtype), self.num_features
        self.head.reset(num_classes)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(TABLE)}


def _initialise(module: nn.Module) -> None:
    """Convolutions from a normal that keeps the variance of gradients, linear layers from one of deviation 0.02; no biases."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# --- for inference ------------------------------------------------------------------------------------------------------------


class PreparedMBConv(nn.Module):
    """MBConv with all three norms in the convolutions, the wide products on packed weights, activations in place."""

    def __init__(self, conv: MBConv, plan: Plan):
        super().__init__()
        done = [fold_before(conv.pre_norm, conv.conv1_1x1)]
        done += [fold_after(conv.conv1_1x1, conv.norm1), fold_after(conv.conv2_kxk, conv.norm2)]
        assert all(done)
        self.first, self.last = _packed(conv.conv1_1x1, plan), _packed(conv.conv3_1x1, plan)
        self.depthwise, self.shortcut = conv.conv2_kxk, conv.shortcut
        self.se: nn.Module = conv.se
        self.act = make_activation(conv.activation)
        plan.note("MBConv: batch norms folded into the convolutions, 1x1 convolutions on packed weights")

    def forward(self, x: Tensor) -> Tensor:
        hidden = self._activated(_as_map(self.first(_as_rows(x)), x))
        hidden = self.se(self._activated(self.depthwise(hidden)))
        shortcut = self.shortcut(x)
        return _as_map(self.last(_as_rows(hidden)).add_(_as_rows(shortcut)), shortcut)

    def _activated(self, x: Tensor) -> Tensor:
        if isinstance(self.act, nn.GELU):
            return torch.ops.aten.gelu_(x, approximate=self.act.approximate)
        return self.act(x)


class PreparedAttention(nn.Module):
    """x + attention(norm(x)) on [N, C, H, W]: the norm's gains are in the projection, the bias is looked up once."""

    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, attn: MultiAxisAttention, plan: Plan):
        super().__init__()
        weight, bias = fold_scale_and_shift(attn.qkv.weight, attn.qkv.bias, norm.weight.double(), norm.bias.double())
        self.qkv = PackedLinear(weight.to(plan.dtype), bias.to(plan.dtype))
        self.proj = PackedLinear(attn.proj.weight.to(plan.dtype), attn.proj.bias.to(plan.dtype))
        self.register_buffer("bias", attn.rel_pos().to(plan.dtype))
        self.eps, self.attn = norm.eps, attn
        del attn.qkv, attn.proj, attn.rel_pos
        plan.note("norm folded into the projection of queries, keys and values; bias looked up once; packed weights")

    def forward(self, x: Tensor) -> Tensor:
        rows = _as_rows(x)
        qkv = self.qkv(F.layer_norm(rows, rows.shape[1:], eps=self.eps))
        mixed = self.attn.mix(qkv.view(len(x), *x.shape[2:], -1), self.bias)
        return _as_map(self.proj(mixed.reshape(rows.shape)).add_(rows), x)


def prepared_axis(block: AxisBlock, plan: Plan) -> list[nn.Module]:
    assert isinstance(block.norm1, nn.LayerNorm)
    activation = make_activation(block.mlp.activation)
    mlp = fuse_mlp_block(nn.Identity(), block.norm2, block.mlp.fc1, activation, block.mlp.fc2, None, plan)
    assert mlp is not None
    return [PreparedAttention(block.norm1, block.attn, plan), mlp]


def _packed(conv: nn.Conv2d, plan: Plan) -> PackedLinear:
    assert conv.bias is not None
    return PackedLinear(conv.weight.flatten(1).to(plan.dtype), conv.bias.to(plan.dtype))


def _as_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C]; no copy where channels lie together."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)


# --- named networks -----------------------------------------------------------------------------------------------------------

DEEP = {"depths": (2, 6, 14, 2)}
WIDTHS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"dims": (96, 192, 384, 768)},
    "base": {**DEEP, "dims": (96, 192, 384, 768)},
    "large": {**DEEP, "dims": (128, 256, 512, 1024), "stem_width": 128},
    "xlarge": {**DEEP, "dims": (192, 384, 768, 1536), "stem_width": 192},
}
SIZES = (224, 384, 512)
TOP1 = {
    "tiny": (83.62, 85.24, 85.72),
    "small": (84.45, 85.74, 86.19),
    "base": (84.95, 86.34, 86.66),
    "large": (85.17, 86.40, 86.70),
    "xlarge": (None, 88.5, 88.7),
}
"""ImageNet top-1 at 224, 384 and 512 pixels; xlarge after ImageNet-21K"""


def _cfg(width: str, size: int, tag: str) -> dict[str, Any]:
    # as timm has it: ImageNet's mean and deviation go with the 224-pixel weights of ImageNet-1K only
    scaling = {} if tag == "in1k" and size == 224 else {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return {
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "hf_hub_id": f"timm/maxvit_{width}_tf_{size}.{tag}",
        "num_classes": 21843 if tag == "in21k" else 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 0.95 if size == 224 else 1.0,
        **scaling,
    }


def _entry(width: str, size: int, pretrained: bool = False) -> Entry:
    """pretrained: the network for ImageNet-21K; xlarge has no other at 224 pixels, and only fine-tuned ones above."""
    only_21k = width == "xlarge"
    tag = "in21k" if pretrained or (only_21k and size == 224) else "in21k_ft_in1k" if only_21k else "in1k"
    cfg = _cfg(width, size, tag)
    arguments = {**WIDTHS[width], "window": size // 32, "num_classes": cfg["num_classes"]}
    return Entry(MaxViT, arguments, cfg, None if tag == "in21k" else TOP1[width][SIZES.index(size)])


ENTRIES: dict[str, Entry] = {
    **{f"maxvit_{width}": _entry(width, 224) for width in WIDTHS},
    **{f"maxvit_{width}_21k": _entry(width, 224, pretrained=True) for width in ("base", "large")},
    **{f"maxvit_{width}_tf_{size}": _entry(width, size) for width in WIDTHS for size in SIZES},
}
"""timm's names, and plain ones, which timm does not have: the networks for 224 pixels, with "_21k" for ImageNet-21K"""
