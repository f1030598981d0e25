"""Small detectors on any backbone: its last three maps as a pyramid under torchvision's one-stage and two-stage heads."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import create

STEPS = 20
LEVELS = 3

Kind = Literal["one-stage", "two-stage"]


class Pyramid(nn.Module):
    """The last three maps of a network as a feature pyramid of `channels` channels."""

    def __init__(self, body: Backbone, channels: int = 64):
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.body = body
        self.fpn = FeaturePyramidNetwork([info["num_chs"] for info in body.feature_info[-LEVELS:]], channels)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(images, indices=LEVELS, intermediates_only=True)
        return self.fpn({str(number): value for number, value in enumerate(maps)})


def make_detector(
    body: Backbone, kind: Kind, classes: int, size: int, anchors: tuple[tuple[int, ...], ...], channels: int = 64
) -> nn.Module:
    """RetinaNet (one stage) or Faster R-CNN (two stages) for images of `size` pixels that are normalised already.

    anchors: square roots of their areas in pixels, for each of the three maps. Faster R-CNN's class 0 is the background.
    """
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    common = {"min_size": size, "max_size": size, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    generator = AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * LEVELS)
    if kind == "one-stage":
        return RetinaNet(Pyramid(body, channels), classes, anchor_generator=generator, **common)
    pool = MultiScaleRoIAlign([str(level) for level in range(LEVELS)], 7, 2)
    pyramid = Pyramid(body, channels)
    return FasterRCNN(pyramid, classes + 1, rpn_anchor_generator=generator, box_roi_pool=pool, **common)


def detector_losses(name: str, kind: Kind) -> tuple[float, float]:
    """Mean loss of the first two and of the last two steps on one batch; weights, images and samples come from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = create(name, num_classes=0)
        assert isinstance(body, Backbone)
        detector = make_detector(body, kind, 3, 96, ((16,), (32,), (64,))).train()
        images = list(torch.randn(2, 3, 96, 96))
        boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [40.0, 30.0, 90.0, 80.0]])
        targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
        optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
        losses = []
        for _ in range(STEPS):
            loss = sum(detector(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses[:2]) / 2, sum(losses[-2:]) / 2
