"""IBN (1807.09441): one part of the channels instance-normalised (appearance), the other batch-normalised (content)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from paperworks.errors import InputError


class InstanceBatchNorm(nn.Module):
    """[N, C, H, W] -> the same. `ratio` of the channels belong to the norm that comes first.

    first "IN": IBN-a of ResNets, int(C ratio) channels instance-normalised, the rest batch-normalised; "BN": the DenseNet form,
    int(C ratio) channels batch-normalised first. Instance statistics are those of the image at hand in evaluation too.
    """

    def __init__(self, channels: int, ratio: float = 0.5, first: Literal["IN", "BN"] = "IN"):
        super().__init__()
        if not 0 < ratio < 1:
            raise InputError(f"ratio={ratio} is the share of one of the two norms: it lies between 0 and 1")
        self.split = int(channels * ratio)
        if not 0 < self.split < channels:
            raise InputError(f"ratio={ratio} of {channels} channels leaves one of the two norms without any")
        self.first = first
        instance, batch = (self.split, channels - self.split) if first == "IN" else (channels - self.split, self.split)
        self.IN = nn.InstanceNorm2d(instance, affine=True)
        self.BN = nn.BatchNorm2d(batch)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x)
        before, after = x[:, : self.split], x[:, self.split :]
        if self.first == "IN":
            return torch.cat((self.IN(before), self.BN(after)), 1)
        return torch.cat((self.BN(before), self.IN(after)), 1)


class InstanceNorm(nn.InstanceNorm2d):
    """With weights, without running statistics."""

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x)
        return super().forward(x)


def _check_size(x: Tensor) -> None:
    if not torch.compiler.is_compiling() and not torch.jit.is_tracing() and x.shape[2] * x.shape[3] == 1:
        raise InputError("instance norm of a 1 x 1 map has no statistics: use larger images or fewer stages with it")
