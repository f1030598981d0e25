"""KimiaNet (2101.07903): DenseNet-121 for tissue. Its features are the pooled last norm, without DenseNet's ReLU after it.

Images are tiles of 1000 pixels at 20x magnification; any size that the network can halve five times works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from paperworks.backbones.densenet import HEAD, DenseLayer, DenseNet
from paperworks.backbones.fused import PackedLinear, Plan
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.folding import fold_after, scale_and_shift
from paperworks.layers.pretrained import load_official

TISSUES = 30
"""tumour types and subtypes that the released network tells apart"""


class KimiaNet(DenseNet):
    """[N, in_chans, H, W], at least 32 pixels, -> [N, num_classes]; five feature maps (1/2 to 1/32).

    `forward_head(x, pre_logits=True)` gives the features for search: 1024 numbers that may be negative (official code:
    `fully_connected` over torchvision's `features`).
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        *,
        num_classes: int = TISSUES,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        stem_stride: int = 4,
    ):
        super().__init__(
            growth_rate,
            block_config,
            num_init_features,
            bn_size,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            stem_stride=stem_stride,
        )
        for name, part in list(self.features.named_children()):
            if name.startswith("denseblock"):
                setattr(self.features, name, DenseBlock(*part.children()))
            elif name.startswith("transition"):
                setattr(self.features, name, Transition(part))

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' file (keys `module.model.0...` and `module.fc_4`, with or without `module.`), or torchvision's
        DenseNet of the same number of classes."""
        return load_official(cls(**official), state_dict, rename=official_name)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.features.get_submodule("norm5")(x).mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        parts = dict(self.features.named_children())
        found: list[list[nn.Module]] = [[parts["conv0"], parts["norm0"], parts["relu0"]]]
        for number in range(1, self.depth + 1):
            before = parts["pool0"] if number == 1 else parts[f"transition{number - 1}"]
            block = parts[f"denseblock{number}"]
            found.append([before, *(block.children() if isinstance(block, DenseBlock) else [block])])
        return found

    def frozen_pattern(self, trainable: int) -> str:
        """What stays as it was when only the last `trainable` blocks learn (the paper's configurations I to IV are 1 to 4): a
        pattern of parameter names, "" for none. A block's transition to the next one belongs to it."""
        if not 1 <= trainable <= self.depth:
            raise InputError(f"{trainable} trainable blocks of {self.depth}: give 1 to {self.depth}")
        frozen = self.depth - trainable
        if not frozen:
            return ""
        return rf"features\.((conv|norm)0|(denseblock|transition)[1-{frozen}])\."


def official_name(key: str) -> str:
    """A key of the authors' file, or of torchvision's (old ones write norm.1 for norm1), as ours."""
    key = re.sub(r"^model\.0\.", "features.", key.removeprefix("module."))
    key = re.sub(r"^fc_4\.", "classifier.", key)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)


class DenseBlock(nn.Sequential):
    """Dense layers in a row, named denselayer1, denselayer2, ..."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        for number, layer in enumerate(layers, 1):
            self.add_module(f"denselayer{number}", layer)

    def for_inference(self, plan: Plan) -> nn.Module:
        """One map that grows in place, in place of a copy of all channels per layer."""
        layers = [layer for layer in self.children() if isinstance(layer, DenseLayer)]
        plan.note("dense block on one map that grows in place")
        return GrowingMap(layers, plan.dtype)


class Transition(nn.Sequential):
    """norm, relu, conv 1x1, mean over 2 x 2."""

    def __init__(self, parts: nn.Module):
        super().__init__()
        for name, part in parts.named_children():
            self.add_module(name, part)

    def for_inference(self, plan: Plan) -> nn.Module:
        """The mean of a product is the product of the mean: a quarter of the multiplications, the same numbers."""
        plan.note("transition pools before it multiplies")
        parts = dict(self.named_children())
        return nn.Sequential(parts["norm"], parts["relu"], parts["pool"], parts["conv"])


class GrowingMap(nn.Module):
    """A dense block for inference, on one map [N, H, W, channels]: each layer reads the channels so far and writes its own
    behind them. Its 1x1 convolution is a product on packed weights."""

    def __init__(self, layers: Sequence[DenseLayer], dtype: torch.dtype):
        super().__init__()
        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        self.inputs: list[int] = []
        for number, layer in enumerate(layers):
            assert isinstance(layer.norm1, nn.BatchNorm2d)
            found = scale_and_shift(layer.norm1)
            assert found is not None, "batch norms of this network keep statistics"
            fold_after(layer.conv1, layer.norm2)
            assert layer.conv1.bias is not None
            self.inputs.append(layer.conv1.in_channels)
            self.first.append(PackedLinear(layer.conv1.weight.flatten(1).to(dtype), layer.conv1.bias.to(dtype)))
            self.second.append(layer.conv2)
            for name, value in zip(("scale", "shift"), found):
                self.register_buffer(f"{name}{number}", value.float())
        self.outputs = self.inputs[-1] + layers[-1].conv2.out_channels

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        grown = torch.empty((batch, height, width, self.outputs), dtype=x.dtype, device=x.device)
        grown[..., :channels] = x.permute(0, 2, 3, 1)
        for number, (first, second) in enumerate(zip(self.first, self.second)):
            known = grown[..., : self.inputs[number]]
            normed = torch.addcmul(getattr(self, f"shift{number}"), known, getattr(self, f"scale{number}")).relu_()
            narrow = first(normed.flatten(0, 2)).relu_().view(batch, height, width, -1)
            new = second(narrow.permute(0, 3, 1, 2))
            grown[..., self.inputs[number] : self.inputs[number] + new.shape[1]] = new.permute(0, 2, 3, 1)
        return grown.permute(0, 3, 1, 2)


WEIGHTS = "KimiaNetPyTorchWeights.pth"
"""the authors' file; an agreement for research use comes with it, so it is not fetched"""

ENTRIES: dict[str, Entry] = {
    "kimianet": Entry(KimiaNet, {}, {**HEAD, "num_classes": TISSUES, "input_size": (3, 1000, 1000), "pool_size": (31, 31)}),
}
