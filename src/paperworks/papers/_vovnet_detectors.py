"""Small detectors on a VoVNet: its maps as a feature pyramid under torchvision's one-stage and two-stage heads."""

from __future__ import annotations

import torch
from torch import nn

from paperworks.backbones.registry import create
from paperworks.backbones.vovnet import VoVNet

STEPS = 20


class Pyramid(nn.Module):
    """The network's maps at 1/8, 1/16 and 1/32 as a feature pyramid."""

    def __init__(self, name: str):
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        body = create(name, num_classes=0)
        assert isinstance(body, VoVNet)
        self.body = body
        channels = [info["num_chs"] for info in self.body.feature_info[2:]]
        self.fpn = FeaturePyramidNetwork(channels, 64)
        self.out_channels = 64

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body.forward_intermediates(images, indices=3, intermediates_only=True)
        return self.fpn({str(number): value for number, value in enumerate(maps)})


def detector_losses(name: str, kind: str) -> tuple[float, float]:
    """Mean loss of the first two and of the last two steps on one batch; weights, images and samples come from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = _detector(name, kind).train()
        images = list(torch.rand(2, 3, 96, 96))
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


def _detector(name: str, kind: str) -> nn.Module:
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    common = {"min_size": 96, "max_size": 96}
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)
    if kind == "one-stage":
        return RetinaNet(Pyramid(name), 3, anchor_generator=anchors, **common)
    pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    return FasterRCNN(Pyramid(name), 3, rpn_anchor_generator=anchors, box_roi_pool=pool, **common)
