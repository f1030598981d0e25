"""VoVNet (1904.09730): a module's convolutions all have one width and are concatenated once, at its end (one-shot aggregation).

Module names are timm's; files of the authors' code, whose keys hold slashes, load through `from_official` as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.protocol import Backbone, per_stage
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.channel_attention import EffectiveSqueezeExcite, EfficientChannelAttention
from paperworks.layers.convolution import ConvNorm
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.pretrained import load_official

Attention = Literal["", "ese", "eca"]


class SeparableConvNorm(nn.Module):
    """Depthwise 3x3, pointwise 1x1, batch norm, ReLU."""

    norm_pairs = (("conv_pw", "bn"),)

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv_dw = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv_pw(self.conv_dw(x))))


class OneShotAggregation(nn.Module):
    """x -> y1 -> y2 ... (each `width` channels), then a 1x1 convolution of [x, y1, y2, ...] (section 3.2, figure 3c).

    The input is added to the result when `residual`: from a stage's second module on. `attention` comes before the sum.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        layers: int,
        *,
        residual: bool = False,
        depthwise: bool = False,
        attention: Attention = "",
        drop_path: float = 0.0,
    ):
        super().__init__()
        if layers < 1:
            raise InputError(f"an aggregation of {layers} layers aggregates nothing: at least 1")
        self.residual = residual
        self.conv_reduction: nn.Module | None = None
        first = inputs
        if depthwise and inputs != width:
            self.conv_reduction = ConvNorm(inputs, width, 1)
            first = width
        make = SeparableConvNorm if depthwise else ConvNorm
        self.conv_mid = nn.Sequential(*(make(first if layer == 0 else width, width) for layer in range(layers)))
        self.conv_concat = ConvNorm(inputs + layers * width, outputs, 1)
        self.attn = make_attention(attention, outputs)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        step = x if self.conv_reduction is None else self.conv_reduction(x)
        for layer in self.conv_mid:
            step = layer(step)
            parts.append(step)
        out = self.attn(self.conv_concat(torch.cat(parts, 1)))
        return self.drop_path(out) + x if self.residual else out


class Stage(nn.Module):
    """A pooling (not before the first stage), then modules; attention only in the last of them."""

    def __init__(self, pool: bool, blocks: Sequence[nn.Module]):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if pool else nn.Identity()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pool(x))


class VoVNet(Backbone):
    """[N, in_chans, H, W], at least 32 pixels, -> [N, num_classes]; five feature maps (1/2 to 1/32).

    stem_chs: of three 3x3 convolutions, of which the first and the last stride. Per stage: stage_conv_chs (width inside a
    module), stage_out_chs, block_per_stage. residual: modules after a stage's first one add their input.
    depthwise, attn: the later variants' ("ese" as in VoVNetV2, or "eca").
    """

    blocks_pattern = r"^stages\.(\d+)\.blocks\.(\d+)"

    def __init__(
        self,
        stem_chs: Sequence[int] = (64, 64, 128),
        stage_conv_chs: Sequence[int] = (128, 160, 192, 224),
        stage_out_chs: Sequence[int] = (256, 512, 768, 1024),
        block_per_stage: Sequence[int] = (1, 1, 2, 2),
        layer_per_block: int = 5,
        *,
        residual: bool = True,
        depthwise: bool = False,
        attn: Attention = "",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_stride: int = 4,
    ):
        super().__init__()
        count = len(stage_conv_chs)
        per_stage("stage_out_chs", stage_out_chs, count)
        per_stage("block_per_stage", block_per_stage, count)
        if len(stem_chs) != 3:
            raise InputError(f"stem_chs has {len(stem_chs)} entries; the stem has three convolutions")
        if stem_stride not in (1, 2, 4):
            raise InputError(f"stem_stride={stem_stride}: 4, or 2 or 1 for small images")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        make = SeparableConvNorm if depthwise else ConvNorm
        first, last = (2 if stem_stride > 1 else 1), (2 if stem_stride > 2 else 1)
        self.stem = nn.Sequential(
            ConvNorm(in_chans, stem_chs[0], 3, first),
            make(stem_chs[0], stem_chs[1]),
            make(stem_chs[1], stem_chs[2], stride=last),
        )
        self.feature_info = [{"num_chs": stem_chs[1], "reduction": first, "module": "stem.1", "index": 0}]
        rates = linear_rates(drop_path_rate, block_per_stage)
        inputs, reduction, stages = stem_chs[2], stem_stride, []
        for index, (width, outputs, blocks) in enumerate(zip(stage_conv_chs, stage_out_chs, block_per_stage)):
            modules = [
                OneShotAggregation(
                    inputs if number == 0 else outputs,
                    width,
                    outputs,
                    layer_per_block,
                    residual=residual and number > 0,
                    depthwise=depthwise,
                    attention=attn if number == blocks - 1 else "",
                    drop_path=rates[index][number],
                )
                for number in range(blocks)
            ]
            stages.append(Stage(index > 0, modules))
            inputs, reduction = outputs, reduction * (2 if index else 1)
            info = {"num_chs": outputs, "reduction": reduction, "module": f"stages.{index}", "index": index + 1}
            self.feature_info.append(info)
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = inputs
        self.head = Head(inputs, num_classes, drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files (argument names of their code: config_stage_ch, config_concat_ch) or timm's (`cfg`)."""
        given = dict(official)
        given |= given.pop("cfg", {})
        names = {"config_stage_ch": "stage_conv_chs", "config_concat_ch": "stage_out_chs"}
        given = {names.get(name, name): value for name, value in given.items()}
        return load_official(cls(**given), state_dict, rename=official_name)

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        stages = [[stage.pool, *stage.blocks] for stage in self.stages if isinstance(stage, Stage)]
        if stages:
            stages[0].insert(0, self.stem[2])
        return [[self.stem[0], self.stem[1]], *stages]

    def keep_levels(self, count: int) -> None:
        self.stages = self.stages[: count - 1]
        self.feature_info = self.feature_info[:count]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.head = Head(self.num_features, num_classes, self.drop_rate)


class Head(nn.Module):
    """Global mean, dropout, linear layer."""

    def __init__(self, features: int, num_classes: int, drop: float):
        super().__init__()
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.drop(x.mean((2, 3)))
        return pooled if pre_logits else self.fc(pooled)


def make_attention(kind: str, channels: int) -> nn.Module:
    kinds = {"": lambda _: nn.Identity(), "ese": EffectiveSqueezeExcite, "eca": EfficientChannelAttention}
    if kind not in kinds:
        raise InputError(f"attn={kind!r}: there are '', 'ese' and 'eca'")
    return kinds[kind](channels)


def official_name(key: str) -> str:
    """stage3.OSA3_1.layers.0.OSA3_1_0/conv.weight -> stages.1.blocks.0.conv_mid.0.conv.weight; other names as they are."""
    layer = r"[^/]*/(conv|norm)\.(.*)"
    found = re.fullmatch(r"stem\.stem_(\d)/(conv|norm)\.(.*)", key)
    if found:
        return f"stem.{int(found[1]) - 1}.{_part(found[2])}.{found[3]}"
    found = re.fullmatch(rf"stage(\d)\.OSA\d_(\d+)\.layers\.(\d+)\.{layer}", key)
    if found:
        where = f"stages.{int(found[1]) - 2}.blocks.{int(found[2]) - 1}"
        return f"{where}.conv_mid.{found[3]}.{_part(found[4])}.{found[5]}"
    found = re.fullmatch(rf"stage(\d)\.OSA\d_(\d+)\.concat\.{layer}", key)
    if found:
        return f"stages.{int(found[1]) - 2}.blocks.{int(found[2]) - 1}.conv_concat.{_part(found[3])}.{found[4]}"
    return re.sub(r"^classifier\.", "head.fc.", key)


def _part(name: str) -> str:
    return "bn" if name == "norm" else name


HEAD = {"first_conv": "stem.0.conv", "classifier": "head.fc"}
SLIM = {"stage_conv_chs": (64, 80, 96, 112), "stage_out_chs": (128, 256, 384, 512), "block_per_stage": (1, 1, 1, 1)}
B = {"attn": "ese"}
"""the V2 options of timm's names ending in b"""
B19 = {"block_per_stage": (1, 1, 1, 1), "layer_per_block": 3, **B}
B19_SLIM = {**B19, "stage_conv_chs": (64, 80, 96, 112), "stage_out_chs": (112, 256, 384, 512)}
SEPARABLE = {"stem_chs": (64, 64, 64), "depthwise": True}


def _timm(name: str) -> dict[str, Any]:
    return {**HEAD, "hf_hub_id": f"timm/{name}"}


ENTRIES: dict[str, Entry] = {
    "vovnet27_slim": Entry(VoVNet, SLIM, HEAD),
    "vovnet39": Entry(VoVNet, {}, HEAD, 76.77),
    "vovnet57": Entry(VoVNet, {"block_per_stage": (1, 1, 4, 3)}, HEAD, 77.73),
    "ese_vovnet19b_slim_dw": Entry(VoVNet, {**B19_SLIM, **SEPARABLE}, HEAD),
    "ese_vovnet19b_dw": Entry(VoVNet, {**B19, **SEPARABLE}, _timm("ese_vovnet19b_dw.ra_in1k")),
    "ese_vovnet19b_slim": Entry(VoVNet, B19_SLIM, HEAD),
    "ese_vovnet39b": Entry(VoVNet, B, _timm("ese_vovnet39b.ra_in1k")),
    "ese_vovnet57b": Entry(VoVNet, {**B, "block_per_stage": (1, 1, 4, 3)}, _timm("ese_vovnet57b.ra4_e3600_r256_in1k")),
    "ese_vovnet99b": Entry(VoVNet, {**B, "block_per_stage": (1, 3, 9, 3)}, HEAD),
    "eca_vovnet39b": Entry(VoVNet, {"attn": "eca"}, HEAD),
}
