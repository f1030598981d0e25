"""PatchGAN (1611.07004, section 3.2.2): a convolutional classifier that judges overlapping patches as real or made."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Images [B, C, H, W] in [-1, 1] -> one logit per patch [B, 1, h, w].

    `layers` stride-2 convolutions of 4x4, widths doubling up to 8x. Group norm instead of the original's batch norm, so that
    real and made images need not share a batch and every process sees the same function.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, groups: int = 8):
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        current = width
        for number in range(1, layers + 1):
            following = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            steps += [
                nn.Conv2d(current, following, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(groups, following),
                nn.LeakyReLU(0.2),
            ]
            current = following
        steps.append(nn.Conv2d(current, 1, 4, padding=1))
        self.steps = nn.Sequential(*steps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.steps(images)
