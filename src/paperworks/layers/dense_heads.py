"""Small decoders for dense prediction: one map of features -> scores for every pixel."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.convolution import ConvNorm


class LinearDecoder(nn.Module):
    """Scores where the features are, enlarged: [N, inputs, h, w] -> [N, classes, reduction * h, reduction * w]."""

    def __init__(self, inputs: int, classes: int, reduction: int):
        super().__init__()
        self.reduction = _checked(reduction)
        self.scores = nn.Conv2d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.scores(x), scale_factor=self.reduction, mode="bilinear")


class ConvolutionalDecoder(nn.Module):
    """A 3x3 convolution where the features are and one after every doubling of the map, then the scores. Shapes as above."""

    def __init__(self, inputs: int, classes: int, reduction: int, width: int = 32):
        super().__init__()
        doublings = int(math.log2(_checked(reduction)))
        if 2**doublings != reduction:
            raise InputError(f"a map at 1/{reduction} of the image cannot be doubled up to it: reduction is a power of two")
        self.first = ConvNorm(inputs, width, 3)
        self.convs = nn.ModuleList(ConvNorm(width, width, 3) for _ in range(doublings))
        self.scores = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv in self.convs:
            x = conv(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return self.scores(x)


def _checked(reduction: int) -> int:
    if reduction < 1:
        raise InputError(f"reduction={reduction}: by how much the map is smaller than the image, at least 1")
    return reduction
