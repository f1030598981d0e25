"""The networks for 32x32 images that pruning papers use: ResNet-20/32, VGG-16, DenseNet-121 (growth 12), EfficientNet-B0.

Module names are those of the code that RD-prune (2308.10438) released, so checkpoints written by it load strictly.
They work at other sizes too (VGG from 32 pixels up); `width` makes the ResNet and the VGG narrower or wider. All speak timm's
protocol and are registered: `timm.create_model("resnet20_cifar", num_classes=10)`. Inputs are normalised images [N, C, H, W].
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.pretrained import load_official

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
"""of CIFAR-10's training images"""


class CifarNet(Backbone):
    """Global average and one linear layer on the last feature map. Subclasses say how that layer is called."""

    head_name: ClassVar[str] = "fc"

    def __init__(self, num_classes: int, in_chans: int, features: int):
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        setattr(self, self.head_name, nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity())

    def keep_levels(self, count: int) -> None:
        raise InputError(f"{type(self).__name__} cannot drop feature maps; take them with forward_intermediates")

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official_kwargs: Any) -> Any:
        """A network with weights trained by the released code (no weights were released themselves)."""
        return load_official(cls(**official_kwargs), state_dict)

    def _finish(self, modules: Sequence[str], channels: Sequence[int], reductions: Sequence[int]) -> None:
        """He initialisation, and timm's table of feature maps. modules: name of the module that gives each map."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        rows = enumerate(zip(modules, channels, reductions, strict=True))
        self.feature_info = [{"num_chs": c, "reduction": r, "module": m, "index": i} for i, (m, c, r) in rows]


# --- ResNet (He et al. 2015, section 4.2, with 1x1 convolutions on the shortcuts that change shape) -------------------------


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(CifarNet):
    """depth = 6n + 2: three stages of n blocks with width, 2 x width, 4 x width channels."""

    def __init__(self, depth: int = 20, num_classes: int = 10, in_chans: int = 3, width: int = 16):
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"a CIFAR ResNet has depth 6n + 2 (20, 32, 44, ...), not {depth}")
        super().__init__(num_classes, in_chans, 4 * width)
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = (depth - 2) // 6
        for stage in range(3):
            outputs = width * 2**stage
            inputs = width if stage == 0 else outputs // 2
            first = BasicBlock(inputs, outputs, 1 if stage == 0 else 2)
            setattr(
                self, f"layer{stage + 1}", nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
            )
        self.fc = nn.Linear(4 * width, num_classes)
        self._finish(("layer1", "layer2", "layer3"), (width, 2 * width, 4 * width), (1, 2, 4))

    def stem_module(self) -> nn.Module:
        return nn.Sequential(self.conv1, self.bn1, nn.ReLU(inplace=True))

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        return [list(self.get_submodule(name).children()) for name in ("layer1", "layer2", "layer3")]


# --- VGG-16 ---------------------------------------------------------------------------------------------------------------


class CifarVGG(CifarNet):
    """Thirteen 3x3 convolutions with bias and batch norm, five poolings, one linear layer instead of three."""

    head_name = "classifier"
    plan = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
    """per stage: channels as a multiple of `width`, and how many convolutions"""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 64):
        super().__init__(num_classes, in_chans, 8 * width)
        modules: list[nn.Module] = []
        channels = in_chans
        for multiple, convolutions in self.plan:
            for _ in range(convolutions):
                modules += [
                    nn.Conv2d(channels, multiple * width, 3, padding=1),
                    nn.BatchNorm2d(multiple * width),
                    nn.ReLU(True),
                ]
                channels = multiple * width
            modules.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(8 * width, num_classes)
        self._ends = [i for i, module in enumerate(modules) if isinstance(module, nn.MaxPool2d)]
        channels_of = [multiple * width for multiple, _ in self.plan]
        self._finish([f"features.{end}" for end in self._ends], channels_of, (2, 4, 8, 16, 32))

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        starts = [0] + [end + 1 for end in self._ends[:-1]]
        return [list(self.features[start : end + 1]) for start, end in zip(starts, self._ends)]


# --- DenseNet-121 -----------------------------------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    """norm-relu-conv 1x1 to 4 x growth, norm-relu-conv 3x3 to growth; the new channels go in FRONT of the old ones."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([new, x], 1)


class Transition(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class CifarDenseNet(CifarNet):
    """Dense blocks with transitions that halve the channels in between; the stem has 2 x growth channels."""

    head_name = "linear"

    def __init__(self, blocks: Sequence[int] = (6, 12, 24, 16), growth: int = 12, num_classes: int = 10, in_chans: int = 3):
        channels, counts = 2 * growth, []
        for i, layers in enumerate(blocks):
            channels += layers * growth
            counts.append(channels)
            channels = channels // 2 if i < len(blocks) - 1 else channels
        super().__init__(num_classes, in_chans, channels)
        self.depth = len(blocks)
        self.conv1 = nn.Conv2d(in_chans, 2 * growth, 3, padding=1, bias=False)
        inputs = 2 * growth
        for i, (layers, outputs) in enumerate(zip(blocks, counts), 1):
            setattr(self, f"dense{i}", nn.Sequential(*(DenseLayer(inputs + j * growth, growth) for j in range(layers))))
            inputs = outputs // 2
            if i < self.depth:
                setattr(self, f"trans{i}", Transition(outputs, inputs))
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        self._finish([f"dense{i + 1}" for i in range(self.depth)], counts, [2**i for i in range(self.depth)])

    def stem_module(self) -> nn.Module:
        return self.conv1

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        found: list[list[nn.Module]] = []
        for i in range(1, self.depth + 1):
            transition = [self.get_submodule(f"trans{i - 1}")] if i > 1 else []
            found.append([*transition, *self.get_submodule(f"dense{i}").children()])
        return found

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return super().forward_head(F.relu(self.bn(x)), pre_logits)


# --- EfficientNet-B0 --------------------------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.se1 = nn.Conv2d(channels, squeezed, 1)
        self.se2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se2(F.silu(self.se1(x.mean((2, 3), keepdim=True)))).sigmoid()


class MobileBlock(nn.Module):
    """1x1 expansion (its weights exist unused where nothing expands), depthwise, squeeze-excite, 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        channels = inputs * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and inputs == outputs
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels, inputs // 4)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.bn1(self.conv1(x))) if self.expands else x
        out = self.bn3(self.conv3(self.se(F.silu(self.bn2(self.conv2(out))))))
        return out + x if self.skips else out


class CifarEfficientNet(CifarNet):
    """B0's plan with a stem of stride 1 and no 1280-channel head. Dropout 0.2 before the linear layer."""

    head_name = "linear"
    plan = (
        # blocks, expansion, channels, kernel, stride
        (1, 1, 16, 3, 1),
        (2, 6, 24, 3, 2),
        (2, 6, 40, 5, 2),
        (3, 6, 80, 3, 2),
        (3, 6, 112, 5, 1),
        (4, 6, 192, 5, 2),
        (1, 6, 320, 3, 1),
    )

    def __init__(self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.2):
        super().__init__(num_classes, in_chans, self.plan[-1][2])
        self.drop_rate = drop_rate
        self.conv1 = nn.Conv2d(in_chans, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for count, expansion, outputs, kernel, stride in self.plan:
            for i in range(count):
                blocks.append(MobileBlock(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.linear = nn.Linear(inputs, num_classes)
        self._ends = list(itertools.accumulate(row[0] for row in self.plan))
        reductions = itertools.accumulate((row[4] for row in self.plan), operator.mul)
        self._finish([f"layers.{end - 1}" for end in self._ends], [row[2] for row in self.plan], list(reductions))

    def stem_module(self) -> nn.Module:
        return nn.Sequential(self.conv1, self.bn1, nn.SiLU(inplace=True))

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        return [list(self.layers[start:end]) for start, end in zip([0, *self._ends], self._ends)]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = F.dropout(x.mean((2, 3)), self.drop_rate, self.training)
        return pooled if pre_logits else self.linear(pooled)


# --- names ------------------------------------------------------------------------------------------------------------------

_CFG = {"num_classes": 10, "input_size": (3, 32, 32), "pool_size": None, "crop_pct": 1.0, "mean": MEAN, "std": STD}

ENTRIES: dict[str, Entry] = {
    "resnet20_cifar": Entry(CifarResNet, {"depth": 20}, _CFG | {"first_conv": "conv1", "classifier": "fc"}),
    "resnet32_cifar": Entry(CifarResNet, {"depth": 32}, _CFG | {"first_conv": "conv1", "classifier": "fc"}),
    "vgg16_cifar": Entry(CifarVGG, {}, _CFG | {"first_conv": "features.0", "classifier": "classifier"}),
    "densenet121_cifar": Entry(CifarDenseNet, {}, _CFG | {"first_conv": "conv1", "classifier": "linear"}),
    "efficientnet_b0_cifar": Entry(CifarEfficientNet, {}, _CFG | {"first_conv": "conv1", "classifier": "linear"}),
}
"""nobody released weights for these; sizes are those of RD-prune's code"""
