"""Detectors on any backbone: its last maps as a feature pyramid (1612.03144) under torchvision's heads of one or two stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from paperworks.backbones.protocol import Backbone
from paperworks.errors import InputError

Kind = Literal["one-stage", "two-stage"]


class Pyramid(nn.Module):
    """The last `levels` maps of a network as a pyramid: images -> {"0": [N, channels, h, w], "1": ...}, finest first."""

    def __init__(self, body: Backbone, channels: int = 256, levels: int = 3):
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        if not 1 <= levels <= len(body.feature_info):
            raise InputError(f"a pyramid of {levels} maps: {type(body).__name__} has 1 to {len(body.feature_info)}")
        self.body, self.levels = body, levels
        self.fpn = FeaturePyramidNetwork([info["num_chs"] for info in body.feature_info[-levels:]], channels)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(images, indices=self.levels, intermediates_only=True)
        return self.fpn({str(number): value for number, value in enumerate(maps)})


def make_detector(
    body: Backbone,
    kind: Kind,
    classes: int,
    size: int,
    anchors: Sequence[Sequence[int]] = ((32, 40, 50), (64, 80, 101), (128, 161, 203)),
    channels: int = 256,
) -> nn.Module:
    """torchvision's RetinaNet (one stage) or Faster R-CNN (two stages) for images of `size` pixels that are normalised already.

    anchors: square roots of their areas in pixels, a sequence for every map of the pyramid, the finest map first; each comes
    in the shapes 1:2, 1:1 and 2:1. Faster R-CNN's class 0 is the background: `classes` counts without it.
    Train it with `objectives.detect.Detect`.
    """
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    if kind not in ("one-stage", "two-stage"):
        raise InputError(f"no detector of kind {kind!r}; there are 'one-stage' and 'two-stage'")
    if classes < 1 or size < 1 or len({len(sizes) for sizes in anchors}) != 1 or not anchors[0]:
        raise InputError(
            f"classes={classes}, size={size}, anchors={anchors}: at least one each, and as many anchors on every map"
        )
    pyramid = Pyramid(body, channels, len(anchors))
    given: dict[str, Any] = {"min_size": size, "max_size": size, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    generator = AnchorGenerator(tuple(map(tuple, anchors)), ((0.5, 1.0, 2.0),) * len(anchors))
    if kind == "one-stage":
        return RetinaNet(pyramid, classes, anchor_generator=generator, **given)
    pool = MultiScaleRoIAlign([str(level) for level in range(len(anchors))], 7, 2)
    return FasterRCNN(pyramid, classes + 1, rpn_anchor_generator=generator, box_roi_pool=pool, **given)
