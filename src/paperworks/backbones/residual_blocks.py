"""Blocks of residual networks (1512.03385, 1611.05431), with the places where IBN-Net (1807.09441) puts its norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from paperworks.backbones.fused import Plan
from paperworks.layers.drop_path import DropPath
from paperworks.layers.folding import fold_after
from paperworks.layers.instance_batch_norm import IBN, InstanceBatchNorm, InstanceNorm, fold_batch_half


class Block(nn.Module):
    """What both kinds of block share: relu(branch(x) + shortcut(x)), and where IBN puts its instance norms.

    ibn "a": the branch's first norm is half instance norm; "b": instance norm after the sum.
    """

    expansion: ClassVar[int]
    norm_pairs: ClassVar[Sequence[tuple[str, str]]]
    """names of a convolution and the norm that follows it at once; inference folds them"""

    def __init__(self, outputs: int, shortcut: nn.Sequential | None, attention: nn.Module, drop_path: float, ibn: IBN | None):
        super().__init__()
        self.downsample = shortcut
        self.se = attention
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.IN = InstanceNorm(outputs) if ibn == "b" else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.IN(self.drop_path(self.se(self.branch(x))) + shortcut))

    def for_inference(self, plan: Plan) -> nn.Module:
        """Norms go into the convolutions before them; of a half instance norm the batch half does."""
        for conv, norm in self.norm_pairs:
            part = _folded(self.get_submodule(conv), self.get_submodule(norm), plan)
            self.add_module(norm, part)
        if self.downsample is not None:
            self.downsample[-1] = _folded(self.downsample[-2], self.downsample[-1], plan)
        return self


class BasicBlock(Block):
    """Two 3x3 convolutions; the first one strides."""

    expansion = 1
    norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, inputs: int, planes: int, stride: int, *, ibn: IBN | None, ibn_ratio: float, **common: Any):
        super().__init__(planes, ibn=ibn, **common)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = InstanceBatchNorm(planes, ibn_ratio) if ibn == "a" else nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
    """1x1, 3x3 (which strides) and 1x1 to four times as many channels. `groups` and `base_width` as in ResNeXt (1611.05431)."""

    expansion = 4
    norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        *,
        ibn: IBN | None,
        ibn_ratio: float,
        groups: int = 1,
        base_width: int = 64,
        **common: Any,
    ):
        super().__init__(4 * planes, ibn=ibn, **common)
        width = int(planes * base_width / 64) * groups
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width, ibn_ratio) if ibn == "a" else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


BLOCKS: dict[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def _folded(conv: nn.Module, norm: nn.Module, plan: Plan) -> nn.Module:
    """What remains to be done after `conv` once it has taken over of `norm` what it can."""
    if not isinstance(conv, nn.Conv2d):
        return norm
    if isinstance(norm, InstanceBatchNorm):
        part = fold_batch_half(conv, norm)
        if part is None:
            return norm
        plan.note("batch half of a norm folded into the convolution before it, instance half in place")
        return part
    if isinstance(norm, nn.BatchNorm2d) and fold_after(conv, norm):
        plan.note("batch norm folded into the convolution before it")
        return nn.Identity()
    return norm
