"""Gates per channel from the mean of each map: squeeze-and-excitation and lighter relatives. All [N, C, H, W] -> the same."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))) (1709.01507, equations 2 to 4), 1x1 convolutions with bias named as in timm.

    Networks after EfficientNet have SiLU in place of the ReLU.
    """

    def __init__(self, channels: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        if hidden < 1:
            raise InputError(f"squeeze-and-excitation of {channels} channels needs a hidden width of at least 1, not {hidden}")
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))  # two matrix-vector products; 1x1 convolutions of a 1x1 map cost more to launch
        hidden = self.activation(F.linear(pooled, self.fc1.weight.flatten(1), self.fc1.bias))
        gate = F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias).sigmoid()
        return x * gate[:, :, None, None]


class LinearSqueezeExcite(nn.Module):
    """The same without biases, as SE-ResNets with instance norm were released (keys fc.0 and fc.2)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class EffectiveSqueezeExcite(nn.Module):
    """One C -> C product and a hard sigmoid: no bottleneck that loses channel information (1911.06667, section 3.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(F.linear(x.mean((2, 3)), self.fc.weight.flatten(1), self.fc.bias))
        return x * gate[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """A 1-D convolution over neighbouring channels (1910.03151); its length is the odd number next to (log2(C) + 1) / 2."""

    def __init__(self, channels: int):
        super().__init__()
        length = int(abs(math.log2(channels) + 1) / 2)
        length = max(length if length % 2 else length + 1, 3)
        self.conv = nn.Conv1d(1, 1, length, padding=length // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        return x * gate[:, :, None, None]
