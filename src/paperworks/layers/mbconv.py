"""MBConv as MaxViT has it (2204.01697): a norm, widening, a depthwise 3x3, squeeze-and-excitation, narrowing.

Paddings are TensorFlow's "SAME", module names timm's.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.channel_attention import SqueezeExcite
from paperworks.layers.convolution import SameConv2d
from paperworks.layers.drop_path import DropPath
from paperworks.layers.same_padding import SameAvgPool2d
from paperworks.layers.transformer import ACTIVATIONS, ActivationKind


class Shortcut(nn.Module):
    """Mean of 2x2 where the block strides, a 1x1 convolution where it changes the width."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.pool = SameAvgPool2d(2, 2) if stride == 2 else nn.Identity()
        self.expand = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.pool(x))


class MBConv(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)].

    Widened to expand x outputs; squeeze-and-excitation narrows to se_ratio x outputs (0 for none). The last convolution has a
    bias and no norm, the first norm no activation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        expand: float = 4.0,
        se_ratio: float = 0.25,
        eps: float = 1e-3,
        momentum: float = 0.01,
        activation: ActivationKind = "gelu_tanh",
        drop_path: float = 0.0,
    ):
        super().__init__()
        if stride not in (1, 2):
            raise InputError(f"an MBConv with stride {stride}: 1 or 2")
        hidden = int(expand * outputs)
        self.shortcut = Shortcut(inputs, outputs, stride)
        self.pre_norm = nn.BatchNorm2d(inputs, eps, momentum)
        self.conv1_1x1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden, eps, momentum)
        self.conv2_kxk = SameConv2d(hidden, hidden, 3, stride, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden, eps, momentum)
        self.se = SqueezeExcite(hidden, int(se_ratio * outputs), F.silu) if se_ratio else nn.Identity()
        self.conv3_1x1 = nn.Conv2d(hidden, outputs, 1)
        self.activation = activation
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.activation]
        hidden = act(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        hidden = self.se(act(self.norm2(self.conv2_kxk(hidden))))
        return self.shortcut(x) + self.drop_path(self.conv3_1x1(hidden))
