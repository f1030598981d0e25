"""MaxViT-T against timm's with the same weights: inference on images of 224 pixels, and on 256 where timm needs other windows.

At 224 pixels both compute the same. At 256 timm's network must be built for 8x8 windows; ours keeps its 7x7 windows and pads
(another function of the image), or takes 8x8 ones too with `set_window` (the same function again).
"""

from __future__ import annotations

import timm
import torch
from torch import nn

from benchmarks.harness import Row, agree, compare, quietly
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.maxvit import MaxViT

CHANNELS_LAST = torch.channels_last


def run() -> list[Row]:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 224, 224)
    peer = _lively(timm.create_model("maxvit_tiny_tf_224"))
    ours = MaxViT.from_official(peer.state_dict()).eval()
    fast, exact = (prepare_for_inference(ours, precision=precision, example=images) for precision in ("bf16", "32"))
    last = images.contiguous(memory_format=CHANNELS_LAST)
    peer_last = timm.create_model("maxvit_tiny_tf_224").eval().to(memory_format=CHANNELS_LAST)
    peer_last.load_state_dict(peer.state_dict())

    plain, careful = quietly(peer, images), quietly(peer_last, last, bf16=True)
    reference = plain()
    for side, allowed in ((ours, 1e-4), (exact, 1e-3), (fast, 5e-2)):
        agree(quietly(side, images)(), reference, allowed)

    what = "T, 2 images of 224 pixels, inference"
    rows = [
        Row(what, "float32", "timm float32", compare(quietly(ours, images), plain), target=1.0),
        Row(what, "prepared float32", "timm float32", compare(quietly(exact, images), plain)),
        Row(what, "prepared float32", "timm channels-last", compare(quietly(exact, images), quietly(peer_last, last))),
        Row(what, "prepared bf16", "timm float32", compare(quietly(fast, images), plain), note=str(fast.report)),
        Row(what, "prepared bf16", "timm autocast, channels-last", compare(quietly(fast, images), careful), target=1.0),
    ]
    return rows + other_size(ours)


def other_size(ours: MaxViT) -> list[Row]:
    images = torch.rand(2, 3, 256, 256)
    peer = _lively(timm.create_model("maxvit_tiny_tf_224", img_size=256))
    padded = quietly(ours, images)
    same = MaxViT.from_official(peer.state_dict(), window=8).eval()
    theirs = quietly(peer, images)
    agree(quietly(same, images)(), theirs(), 1e-4)
    what = "T, 2 images of 256 pixels, inference"
    return [
        Row(what, "float32, 8x8 windows", "timm float32, 8x8 windows", compare(quietly(same, images), theirs), target=1.0),
        Row(what, "float32, 7x7 windows, padded", "timm float32, 8x8 windows", compare(padded, theirs)),
    ]


def _lively(model: nn.Module) -> nn.Module:
    """Statistics and biases that show in the output."""
    for name, parameter in model.named_parameters():
        if "relative_position" in name:
            nn.init.normal_(parameter, 0.0, 0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 2.0)):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return model.eval()
