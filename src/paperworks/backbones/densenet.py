"""DenseNet (1608.06993), with torchvision's names, and with instance norm where IBN-Net (1807.09441) puts it."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.instance_batch_norm import DENSE_EVERY, DENSE_RATIO, InstanceBatchNorm
from paperworks.layers.pretrained import load_official


class DenseLayer(nn.Module):
    """norm-relu-conv 1x1 to bn_size x growth, norm-relu-conv 3x3 to growth; the new channels follow the old ones.

    ibn_ratio: share of the first norm's channels that stay batch norm, the others are instance-normalised; None for all.
    """

    norm_pairs = (("conv1", "norm2"),)

    def __init__(self, inputs: int, growth: int, bn_size: int, drop: float, ibn_ratio: float | None):
        super().__init__()
        self.norm1: nn.Module = nn.BatchNorm2d(inputs)
        if ibn_ratio is not None:
            self.norm1 = InstanceBatchNorm(inputs, ibn_ratio, "BN")
        self.conv1 = nn.Conv2d(inputs, bn_size * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bn_size * growth)
        self.conv2 = nn.Conv2d(bn_size * growth, growth, 3, padding=1, bias=False)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, F.dropout(new, self.drop, self.training)], 1)


class DenseNet(Backbone):
    """[N, in_chans, H, W], at least 32 pixels, -> [N, num_classes]; five feature maps (1/2 to 1/32).

    A map is what the next transition receives, so the last one has no norm yet: `forward_head` applies norm5 and ReLU.
    ibn: instance norm in the first norm of every ibn_interval-th layer of the first ibn_stages blocks (None: all but the last),
    for the share 1 - ibn_ratio of the channels; IBN-Net's rule by default. stem_stride: 4; 1 for small images.
    """

    blocks_pattern = r"^features\.denseblock(\d+)\.denselayer(\d+)"

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        ibn: bool = False,
        ibn_stages: int | None = None,
        ibn_interval: int = DENSE_EVERY,
        ibn_ratio: float = DENSE_RATIO,
        stem_stride: int = 4,
    ):
        super().__init__()
        self.num_classes, self.in_chans, self.depth = num_classes, in_chans, len(block_config)
        mixed_blocks = self.depth - 1 if ibn_stages is None else ibn_stages
        if not 0 <= mixed_blocks <= self.depth or ibn_interval < 1:
            raise InputError(f"ibn_stages={ibn_stages} is 0 to {self.depth}, ibn_interval={ibn_interval} at least 1")
        size, stride = (7, 2) if stem_stride > 1 else (3, 1)
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(in_chans, num_init_features, size, stride, size // 2, bias=False),
            norm0=nn.BatchNorm2d(num_init_features),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, 2, 1) if stem_stride > 2 else nn.Identity(),
        )
        self.feature_info = [{"num_chs": num_init_features, "reduction": stride, "module": "features.relu0", "index": 0}]
        channels, reduction = num_init_features, stem_stride
        for number, layers in enumerate(block_config, 1):
            block: OrderedDict[str, nn.Module] = OrderedDict()
            for layer in range(layers):
                mixed = ibn and number <= mixed_blocks and layer % ibn_interval == 0
                block[f"denselayer{layer + 1}"] = DenseLayer(
                    channels + layer * growth_rate, growth_rate, bn_size, drop_rate, ibn_ratio if mixed else None
                )
            parts[f"denseblock{number}"] = nn.Sequential(block)
            channels += layers * growth_rate
            info = {"num_chs": channels, "reduction": reduction, "module": f"features.denseblock{number}", "index": number}
            self.feature_info.append(info)
            if number < self.depth:
                parts[f"transition{number}"] = _transition(channels, channels // 2)
                channels, reduction = channels // 2, reduction * 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.num_features = self.head_hidden_size = channels
        self.classifier = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """torchvision's files (old ones write norm.1 for norm1) and IBN-Net's."""
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
        return load_official(cls(**official), state_dict, rename=lambda key: old.sub(r"\1\2.", key))

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        parts = dict(self.features.named_children())
        found: list[list[nn.Module]] = [[parts["conv0"], parts["norm0"], parts["relu0"]]]
        for number in range(1, self.depth + 1):
            before = parts["pool0"] if number == 1 else parts[f"transition{number - 1}"]
            found.append([before, *parts[f"denseblock{number}"].children()])
        return found

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = F.relu(self.features.get_submodule("norm5")(x)).mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^features\.(conv|norm)0",
            "blocks": r"^features\.denseblock(\d+)" if coarse else self.blocks_pattern,
        }


def _transition(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(inputs),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(inputs, outputs, 1, bias=False),
            pool=nn.AvgPool2d(2, 2),
        )
    )


HEAD = {"first_conv": "features.conv0", "classifier": "classifier"}
SIZES: dict[int, dict[str, Any]] = {
    121: {},
    169: {"block_config": (6, 12, 32, 32)},
    201: {"block_config": (6, 12, 48, 32)},
    161: {"growth_rate": 48, "block_config": (6, 12, 36, 24), "num_init_features": 96},
}
IBN_FILES = {121: "e4af5cc1", 169: "9f32c161"}


def _ibn(depth: int) -> Entry:
    name, file = f"densenet{depth}_ibn_a", IBN_FILES.get(depth)
    url = {"url": f"https://github.com/XingangPan/IBN-Net/releases/download/v1.0/{name}-{file}.pth"} if file else {}
    return Entry(DenseNet, {**SIZES[depth], "ibn": True}, {**HEAD, **url})


ENTRIES: dict[str, Entry] = {f"densenet{depth}_ibn_a": _ibn(depth) for depth in SIZES}
"""plain DenseNets are timm's by name; `DenseNet(**SIZES[121])` builds them"""
