"""Residual networks (1512.03385) with what later papers changed in them: deep stems, average-pooled shortcuts, grouped
convolutions, squeeze-and-excitation, instance norm. Module names are torchvision's and timm's, so their files load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from torch import Tensor, nn

from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import Entry
from paperworks.backbones.residual_blocks import BLOCKS, BasicBlock, Block, Bottleneck
from paperworks.errors import InputError
from paperworks.layers.channel_attention import LinearSqueezeExcite, SqueezeExcite
from paperworks.layers.drop_path import linear_rates
from paperworks.layers.instance_batch_norm import IBN, InstanceNorm, stage_marks
from paperworks.layers.pretrained import load_official

Attention = Literal["", "se", "se_linear"]


class ResNet(Backbone):
    """[N, in_chans, H, W], at least 32 pixels and otherwise any size, -> [N, num_classes]; five feature maps (1/2 to 1/32).

    block: "basic" or "bottleneck". layers, channels: blocks and planes of each stage.
    stem: "plain" (7x7, stride 2) or "deep" (three 3x3 of stem_width, stem_width and 2 stem_width channels, ResNet-D).
    stem_pool: "max", "conv" (3x3 convolution of stride 2, ResNet-RS) or "none". stem_stride: 2; 1 for small images.
    avg_down: shortcuts that stride average first (cells beyond the edge are not counted), then convolve.
    attention: "se" (biases, width ratio se_ratio of the block's output) or "se_linear" (none).
    ibn: "a", "b" or None per stage, or one of them: "a" is then for all stages but the last, "b" for the first half. "b" also
    makes the stem's norm an instance norm. drop_path_rule: "stage" grows from stage to stage, rate x (2, 3, 4, 5) / 5, as the
    ResNet-RS code does; "block" grows linearly over all blocks, as timm does.
    bn_momentum: of the statistics; with 1.0 they are those of the last batch, for training whose averaged weights smooth them.
    """

    blocks_pattern = r"^layer(\d+)\.(\d+)"

    def __init__(
        self,
        block: str = "bottleneck",
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        stem: Literal["plain", "deep"] = "plain",
        stem_width: int = 64,
        stem_stride: int = 2,
        stem_pool: Literal["max", "conv", "none"] = "max",
        avg_down: bool = False,
        groups: int = 1,
        base_width: int = 64,
        attention: Attention = "",
        se_ratio: float = 0.25,
        ibn: Sequence[IBN | None] | IBN | None = None,
        ibn_ratio: float = 0.5,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_rule: Literal["stage", "block"] = "stage",
        zero_init_last: bool = True,
        bn_momentum: float = 0.1,
    ):
        super().__init__()
        if block not in BLOCKS:
            raise InputError(f"block={block!r}: there are {', '.join(BLOCKS)}")
        if len(layers) != len(channels):
            raise InputError(f"layers has {len(layers)} stages, channels {len(channels)}")
        if not 0 <= drop_rate < 1:
            raise InputError(f"drop_rate={drop_rate} is a probability below 1")
        if se_ratio <= 0:
            raise InputError(f"se_ratio={se_ratio} must be positive (attention='' switches it off)")
        kind = BLOCKS[block]
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grouping = {"groups": groups, "base_width": base_width} if kind is Bottleneck else {}
        self.attention, self.se_ratio, self.avg_down, self.ibn_ratio = attention, se_ratio, avg_down, ibn_ratio
        marks = stage_marks(ibn, len(layers))
        width = self._make_stem(stem, stem_width, stem_stride, stem_pool, "b" in marks)
        self.feature_info = [{"num_chs": width, "reduction": stem_stride, "module": "relu", "index": 0}]
        reduction = stem_stride * (1 if stem_pool == "none" else 2)
        rates = _drop_path_rates(drop_path_rate, layers, drop_path_rule)
        for index, (count, planes) in enumerate(zip(layers, channels)):
            stride = 1 if index == 0 else 2
            reduction *= stride
            stage = self._make_stage(kind, width, planes, count, stride, marks[index], rates[index])
            self.add_module(f"layer{index + 1}", stage)
            width = planes * kind.expansion
            name = f"layer{index + 1}"
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": name, "index": index + 1})
        self.stages = len(layers)
        self.num_features = self.head_hidden_size = width
        self.fc = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self._initialise(zero_init_last)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum

    # --- building ---------------------------------------------------------------------------------------------------------

    def _make_stem(self, stem: str, width: int, stride: int, pool: str, instance: bool) -> int:
        if stem == "deep":
            outputs = 2 * width
            self.conv1: nn.Module = nn.Sequential(
                nn.Conv2d(self.in_chans, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, outputs, 3, 1, 1, bias=False),
            )
        elif stem == "plain":
            outputs = width
            size = 7 if stride == 2 else 3
            self.conv1 = nn.Conv2d(self.in_chans, width, size, stride, size // 2, bias=False)
        else:
            raise InputError(f"stem={stem!r}: there are 'plain' and 'deep'")
        self.norm_pairs = (("conv1.6" if stem == "deep" else "conv1", "bn1"),)
        self.bn1: nn.Module = InstanceNorm(outputs) if instance else nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        if pool == "conv":
            conv = nn.Conv2d(outputs, outputs, 3, 2, 1, bias=False)
            self.maxpool: nn.Module = nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
        elif pool in ("max", "none"):
            self.maxpool = nn.MaxPool2d(3, 2, 1) if pool == "max" else nn.Identity()
        else:
            raise InputError(f"stem_pool={pool!r}: there are 'max', 'conv' and 'none'")
        return outputs

    def _make_stage(
        self,
        kind: type[BasicBlock | Bottleneck],
        inputs: int,
        planes: int,
        count: int,
        stride: int,
        ibn: IBN | None,
        rates: Sequence[float],
    ) -> nn.Sequential:
        outputs, blocks = planes * kind.expansion, []
        for number in range(count):
            first = number == 0
            mark = ibn if ibn != "b" or number == count - 1 else None  # "b" only after the stage's last sum
            blocks.append(
                kind(
                    inputs if first else outputs,
                    planes,
                    stride if first else 1,
                    shortcut=self._shortcut(inputs, outputs, stride) if first else None,
                    attention=self._attention(outputs),
                    drop_path=rates[number],
                    ibn=mark,
                    ibn_ratio=self.ibn_ratio,
                    **self.grouping,
                )
            )
        return nn.Sequential(*blocks)

    def _shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
        if stride == 1 and inputs == outputs:
            return None
        if not self.avg_down:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity()
        return nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def _attention(self, channels: int) -> nn.Module:
        hidden = max(1, round(channels * self.se_ratio))
        if self.attention == "se":
            return SqueezeExcite(channels, hidden)
        if self.attention == "se_linear":
            return LinearSqueezeExcite(channels, hidden)
        if self.attention:
            raise InputError(f"attention={self.attention!r}: there are '', 'se' and 'se_linear'")
        return nn.Identity()

    def _initialise(self, zero_init_last: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)
        if zero_init_last:  # every block starts as its shortcut
            for module in self.modules():
                if isinstance(module, Block):
                    last = module.get_submodule(module.norm_pairs[-1][1])
                    assert isinstance(last, nn.BatchNorm2d)
                    nn.init.zeros_(last.weight)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """Files of torchvision, timm and the authors of IBN-Net, in a network built with the given arguments."""
        model = cls(**official)
        try:
            return load_official(model, state_dict)
        except InputError as error:
            raise InputError(f"{error}{_hint(model.state_dict(), state_dict)}") from None

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        stages = [list(self.get_submodule(f"layer{number}").children()) for number in range(1, self.stages + 1)]
        stages[0].insert(0, self.maxpool)
        return [[self.conv1, self.bn1, self.relu], *stages]

    def keep_levels(self, count: int) -> None:
        for number in range(count, self.stages + 1):
            delattr(self, f"layer{number}")
        self.stages = count - 1
        self.feature_info = self.feature_info[:count]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = nn.functional.dropout(x.mean((2, 3)), self.drop_rate, self.training)
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^conv1|^bn1|^maxpool", "blocks": r"^layer(\d+)" if coarse else self.blocks_pattern}


def _hint(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """What kind of network the names of a file's weights are of, where it is another kind than ours."""
    if ("conv1.weight" in theirs) != ("conv1.weight" in ours):
        kinds = ("a plain stem (one convolution)", "a deep stem (three convolutions, as ResNet-RS has)")
        there, here = kinds if "conv1.weight" in theirs else kinds[::-1]
        return f"; the file is of a network with {there}, this one has {here}"
    there, here = _ibn_form(theirs), _ibn_form(ours)
    if there == here:
        return ""
    loading = "; ibn_from_plain starts a network with IBN from such a file" if there == "no IBN" else ""
    return f"; the file is of a network with {there}, this one has {here}{loading}"


def _ibn_form(names: Iterable[str]) -> str:
    if any(".bn1.IN." in name for name in names):
        return "IBN-a"
    return "IBN-b" if any(".IN." in name for name in names) else "no IBN"


def stage_drop_path_rates(rate: float, stages: int) -> list[float]:
    """One rate per stage, as the ResNet-RS code has it: rate x 2/5, 3/5, 4/5, 5/5 for four stages."""
    return [rate * (index + 2) / (stages + 1) for index in range(stages)]


def _drop_path_rates(rate: float, layers: Sequence[int], rule: str) -> list[list[float]]:
    if rule == "stage":
        return [[each] * count for each, count in zip(stage_drop_path_rates(rate, len(layers)), layers)]
    if rule != "block":
        raise InputError(f"drop_path_rule={rule!r}: there are 'stage' and 'block'")
    return linear_rates(rate, layers)


# --- named networks ---------------------------------------------------------------------------------------------------

HEAD = {"first_conv": "conv1", "classifier": "fc"}
RS = {
    "stem": "deep",
    "stem_width": 32,
    "stem_pool": "conv",
    "avg_down": True,
    "attention": "se",
    "drop_rate": 0.25,
}
"""ResNet-RS (2103.07579, section 4.3)"""
RS_DEPTHS = {
    50: ((3, 4, 6, 3), 160, 0.0),
    101: ((3, 4, 23, 3), 192, 0.0),
    152: ((3, 8, 36, 3), 256, 0.0),
    200: ((3, 24, 36, 3), 256, 0.1),
    270: ((4, 29, 53, 4), 256, 0.1),
    350: ((4, 36, 72, 4), 320, 0.1),
    420: ((4, 44, 87, 4), 320, 0.1),
}
"""depth -> blocks per stage, the largest image size it was trained at, stochastic depth"""


def _resnet_rs(depth: int) -> Entry:
    layers, size, drop_path = RS_DEPTHS[depth]
    dropout = 0.4 if size == 320 else 0.25
    arguments = {**RS, "layers": layers, "drop_rate": dropout, "drop_path_rate": drop_path}
    cfg = {"first_conv": "conv1.0", "classifier": "fc", "hf_hub_id": f"timm/resnetrs{depth}.tf_in1k"}
    return Entry(ResNet, arguments, {**cfg, "input_size": (3, size, size), "pool_size": (size // 32,) * 2})


A, B = ("a", "a", "a", None), ("b", "b", None, None)
BASIC = {"block": "basic"}
DEPTHS: dict[int, dict[str, Any]] = {
    18: {**BASIC, "layers": (2, 2, 2, 2)},
    34: {**BASIC, "layers": (3, 4, 6, 3)},
    50: {"layers": (3, 4, 6, 3)},
    101: {"layers": (3, 4, 23, 3)},
    152: {"layers": (3, 8, 36, 3)},
}
RESNEXT = {"groups": 32, "base_width": 4}
SE16 = {"attention": "se_linear", "se_ratio": 1 / 16}
IBN_FILES = {
    "resnet18_ibn_a": "2f571257",
    "resnet34_ibn_a": "94bc1577",
    "resnet50_ibn_a": "d9d0bb7b",
    "resnet101_ibn_a": "59ea0ac6",
    "resnet18_ibn_b": "bc2f3c11",
    "resnet34_ibn_b": "04134c37",
    "resnet50_ibn_b": "9ca61e85",
    "resnet101_ibn_b": "c55f6dba",
    "resnext101_ibn_a": "6ace051d",
    "se_resnet101_ibn_a": "fabed4e2",
}
"""released files and the ends of their names"""


def _ibn(name: str, **arguments: Any) -> tuple[str, Entry]:
    file = IBN_FILES.get(name)
    url = {"url": f"https://github.com/XingangPan/IBN-Net/releases/download/v1.0/{name}-{file}.pth"} if file else {}
    return name, Entry(ResNet, {"zero_init_last": False, **arguments}, {**HEAD, **url})


ENTRIES: dict[str, Entry] = {
    **{f"resnetrs{depth}": _resnet_rs(depth) for depth in RS_DEPTHS},
    **dict(_ibn(f"resnet{depth}_ibn_a", ibn=A, **DEPTHS[depth]) for depth in DEPTHS),
    **dict(_ibn(f"resnet{depth}_ibn_b", ibn=B, **DEPTHS[depth]) for depth in (18, 34, 50, 101)),
    **dict(
        [_ibn("resnext101_ibn_a", ibn=A, **RESNEXT, **DEPTHS[101]), _ibn("se_resnet101_ibn_a", ibn=A, **SE16, **DEPTHS[101])]
    ),
}
