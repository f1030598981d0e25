"""ConvNeXt (2201.03545) in its authors' key layout, with the kernel-size and partial-channel options of the InceptionNeXt
study (2303.16900, section 3.2, table 1)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from paperworks.backbones.fused import Plan, fuse_mlp_block
from paperworks.backbones.protocol import Backbone, initialise, per_stage
from paperworks.errors import InputError
from paperworks.layers.convolution import DepthwiseConv2d, PartialConv2d
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.mlp import make_classifier
from paperworks.layers.norms import LayerNorm2d
from paperworks.layers.pooling import GlobalPool
from paperworks.layers.pretrained import load_official


class ConvNeXtBlock(nn.Module):
    """x + drop_path(gamma * pwconv2(GELU(pwconv1(LayerNorm(dwconv(x))))))."""

    def __init__(self, channels: int, dwconv: nn.Module, layer_scale: float | None, drop_path: float):
        super().__init__()
        self.dwconv = dwconv
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), float(layer_scale))) if layer_scale else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.permute(0, 3, 1, 2))

    def for_inference(self, plan: Plan) -> nn.Module:
        return fuse_mlp_block(self.dwconv, self.norm, self.pwconv1, self.act, self.pwconv2, self.gamma, plan) or self


class ConvNeXt(Backbone):
    """[N, in_chans, H, W] with H, W >= 32 -> [N, num_classes].

    kernel_sizes: of the depthwise convolution, one for all stages or one per stage; the original has 7.
    conv_ratio: share of the channels that are convolved at all (the last ones); 1 in the original.
    """

    blocks_pattern: ClassVar[str] = r"^stages\.(\d+)\.(\d+)"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: int | Sequence[int] = 7,
        conv_ratio: float | Sequence[float] = 1.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        head_init_scale: float = 1.0,
        global_pool: str = "avg",
        patch_size: int = 4,
    ):
        super().__init__()
        count = len(depths)
        kernels = per_stage("kernel_sizes", kernel_sizes, count)
        ratios = per_stage("conv_ratio", conv_ratio, count)
        if len(dims) != count:
            raise InputError(f"dims {tuple(dims)} for depths {tuple(depths)}: one width per stage")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, dims[-1]
        stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], patch_size, patch_size), LayerNorm2d(dims[0]))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in itertools.pairwise(dims):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(before), nn.Conv2d(before, after, 2, stride=2)))
        self.stages = nn.ModuleList()
        for width, kernel, ratio, rates in zip(dims, kernels, ratios, linear_rates(drop_path_rate, depths)):
            blocks = [ConvNeXtBlock(width, _dwconv(width, kernel, ratio), layer_scale_init_value, rate) for rate in rates]
            self.stages.append(nn.Sequential(*blocks))
        self.feature_info = [
            {"num_chs": width, "reduction": patch_size * 2**stage, "module": f"stages.{stage}", "index": stage}
            for stage, width in enumerate(dims)
        ]
        self.global_pool = GlobalPool(global_pool)
        self.head_hidden_size = dims[-1] * self.global_pool.width
        self.norm: nn.Module = nn.LayerNorm(self.head_hidden_size, eps=1e-6)
        self.drop = nn.Dropout(drop_rate)
        self.head = make_classifier(self.head_hidden_size, num_classes)
        self.apply(initialise)
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)
                self.head.bias.mul_(head_init_scale)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """Weights of the ConvNeXt authors or of the study variants (InceptionNeXt authors)."""
        ratio = official.get(
            "conv_ratio", 1
        )  # the study's partial convolution of all channels is a plain one with a longer name
        return load_official(cls(**official), state_dict, rename={r"dwconv\.conv\.": "dwconv."} if ratio == 1 else None)

    def stem_module(self) -> nn.Module:
        return self.downsample_layers[0]

    def levels(self) -> list[list[nn.Module]]:
        return [
            [*([self.downsample_layers[index]] if index else []), *stage]  # type: ignore[misc]
            for index, stage in enumerate(self.stages)
        ]

    def keep_levels(self, count: int) -> None:
        self.downsample_layers, self.stages = self.downsample_layers[:count], self.stages[:count]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.norm(self.global_pool(x)))
        return x if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """A new last layer for `num_classes` (0: none); `reset_other` also takes off the norm after pooling."""
        weight = next(self.downsample_layers.parameters())
        pool = GlobalPool(global_pool or self.global_pool.kind)
        if reset_other:
            self.norm = nn.Identity()
        elif isinstance(self.norm, nn.LayerNorm) and pool.width != self.global_pool.width:
            raise InputError(f"global_pool {global_pool!r} changes the width of the final norm; add reset_other=True")
        self.global_pool, self.num_classes = pool, num_classes
        self.head_hidden_size = self.num_features * pool.width
        head = make_classifier(self.head_hidden_size, num_classes)
        initialise(head)
        self.head = head.to(weight.device, weight.dtype).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = r"^downsample_layers\.0"
        if coarse:
            return {
                "stem": stem,
                "blocks": [(r"^stages\.(\d+)", None), (r"^downsample_layers\.(\d+)", None), (r"^norm", (99999,))],
            }
        blocks = [(r"^downsample_layers\.(\d+)", (0,)), (self.blocks_pattern, None), (r"^norm", (99999,))]
        return {"stem": stem, "blocks": blocks}


def _dwconv(channels: int, kernel: int, ratio: float) -> nn.Module:
    return DepthwiseConv2d(channels, kernel) if ratio == 1 else PartialConv2d(channels, kernel, ratio)
