"""Image networks as video networks: 2-D convolutions become 3-D ones (I3D 1705.07750, section 2.4, and 3-D ResNet-RS)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.residual_blocks import Block
from paperworks.backbones.resnet import ResNet
from paperworks.errors import InputError
from paperworks.layers.channel_attention import LinearSqueezeExcite, SqueezeExcite

IMAGE_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d, nn.AvgPool2d)


class VideoResNet(nn.Module):
    """Clips [N, C, T, H, W] -> [N, num_classes], from a ResNet whose weights it takes over.

    temporal: names of a block's convolutions that get a kernel of three frames, by default the first and the third of a
    bottleneck and the first of a basic block; centred so that a still clip gives what the image network gives for its frame.
    stem_frames: of the stem's first convolution. Instance norms and gates take their statistics over a whole clip.
    """

    def __init__(self, network: ResNet, *, temporal: Sequence[str] | None = None, stem_frames: int = 1):
        super().__init__()
        blocks = [module for module in network.modules() if isinstance(module, Block)]
        known = {name for block in blocks for name, _ in block.named_children() if name.startswith("conv")}
        if temporal is None:
            temporal = [name for name in ("conv1", "conv3") if name in known]
        unknown = [name for name in temporal if name not in known]
        if unknown:
            raise InputError(f"temporal={unknown[0]!r}: blocks have {', '.join(sorted(known))}")
        if stem_frames % 2 == 0:
            raise InputError(f"stem_frames={stem_frames} must be odd")
        self.network = copy.deepcopy(network)
        for name, module in list(self.network.named_modules()):
            made = _inflated(module, 3 if name.startswith("layer") and name.rpartition(".")[2] in temporal else 1)
            if made is not None:
                parent, _, last = name.rpartition(".")
                setattr(self.network.get_submodule(parent), last, made)
        first = self.network.conv1[0] if isinstance(self.network.conv1, nn.Sequential) else self.network.conv1
        if stem_frames > 1:
            assert isinstance(first, nn.Conv3d)
            wider = _with_frames(first, stem_frames)
            if isinstance(self.network.conv1, nn.Sequential):
                self.network.conv1[0] = wider
            else:
                self.network.conv1 = wider
        for name, module in self.network.named_modules():
            if isinstance(module, IMAGE_LAYERS):
                raise InputError(f"{name} of the network is a {type(module).__name__}, which has no form for clips here")
        self.num_classes, self.in_chans = network.num_classes, network.in_chans

    def forward(self, clips: Tensor) -> Tensor:
        if clips.ndim != 5 or clips.shape[1] != self.in_chans:
            raise InputError(f"clips are [N, {self.in_chans}, T, H, W], not {list(clips.shape)}")
        x = clips
        for level in self.network.levels():
            for module in level:
                x = module(x)
        pooled = F.dropout(x.mean((2, 3, 4)), self.network.drop_rate, self.training)
        return self.network.fc(pooled)


class _LinearSqueezeExcite3d(nn.Module):
    def __init__(self, layer: LinearSqueezeExcite):
        super().__init__()
        self.fc = layer.fc

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3, 4)))[:, :, None, None, None]


class _SqueezeExcite3d(nn.Module):
    def __init__(self, layer: SqueezeExcite):
        super().__init__()
        self.fc1, self.fc2 = layer.fc1, layer.fc2

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(x.mean((2, 3, 4)), self.fc1.weight.flatten(1), self.fc1.bias))
        gate = F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias).sigmoid()
        return x * gate[:, :, None, None, None]


def _inflated(module: nn.Module, frames: int) -> nn.Module | None:
    """The 3-D form of a 2-D layer; None for what works on clips as it is."""
    match module:
        case nn.Conv2d() if isinstance(module.padding, tuple):
            made = nn.Conv3d(
                module.in_channels,
                module.out_channels,
                (1, *_pair(module.kernel_size)),
                (1, *_pair(module.stride)),
                (0, *_pair(module.padding)),
                groups=module.groups,
                bias=module.bias is not None,
            )
            made.weight.data.copy_(module.weight.data[:, :, None])
            if made.bias is not None and module.bias is not None:
                made.bias.data.copy_(module.bias.data)
            return _with_frames(made, frames) if frames > 1 else made
        case nn.BatchNorm2d():
            norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum)
            norm.load_state_dict(module.state_dict())
            return norm
        case nn.MaxPool2d():
            return nn.MaxPool3d((1, *_pair(module.kernel_size)), (1, *_pair(module.stride)), (0, *_pair(module.padding)))
        case nn.AvgPool2d():
            return nn.AvgPool3d(
                (1, *_pair(module.kernel_size)),
                (1, *_pair(module.stride)),
                (0, *_pair(module.padding)),
                module.ceil_mode,
                module.count_include_pad,
            )
        case nn.InstanceNorm2d():  # the halves of an InstanceBatchNorm too, which itself takes maps of any dimensions
            instance = nn.InstanceNorm3d(module.num_features, module.eps, affine=module.affine)
            instance.load_state_dict(module.state_dict())
            return instance
        case LinearSqueezeExcite():
            return _LinearSqueezeExcite3d(module)
        case SqueezeExcite():
            return _SqueezeExcite3d(module)
    return None


def _with_frames(layer: nn.Conv3d, frames: int) -> nn.Conv3d:
    """The same layer over several frames, of which only the middle one counts at first."""
    made: Any = nn.Conv3d(
        layer.in_channels,
        layer.out_channels,
        (frames, *_pair(layer.kernel_size[1:])),
        (1, *_pair(layer.stride[1:])),
        (frames // 2, *_pair(layer.padding[1:])),
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    with torch.no_grad():
        made.weight.zero_()
        made.weight[:, :, frames // 2 : frames // 2 + 1].copy_(layer.weight)
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
    return made


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)
