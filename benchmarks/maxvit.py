"""MaxViT-T against timm's with the same weights: inference on images of 224 pixels, and on 256 where timm needs other windows.

At 224 pixels both compute the same. At 256 timm's network must be built for 8x8 windows; ours keeps its 7x7 windows and pads
(another function of the image), or takes 8x8 ones too with `set_window` (the same function again).
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from benchmarks.harness import Row, compare
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

    plain, careful = _work(peer, images), _work(peer_last, last, bf16=True)
    reference = plain()
    for side, allowed in ((ours, 1e-4), (exact, 1e-3), (fast, 5e-2)):
        _agree(_work(side, images)(), reference, allowed)

    what = "T, 2 images of 224 pixels, inference"
    rows = [
        Row(what, "float32", "timm float32", compare(_work(ours, images), plain), target=1.0),
        Row(what, "prepared float32", "timm float32", compare(_work(exact, images), plain)),
        Row(what, "prepared float32", "timm channels-last", compare(_work(exact, images), _work(peer_last, last))),
        Row(what, "prepared bf16", "timm float32", compare(_work(fast, images), plain), note=str(fast.report)),
        Row(what, "prepared bf16", "timm autocast, channels-last", compare(_work(fast, images), careful), target=1.0),
    ]
    return rows + other_size(ours)


def other_size(ours: MaxViT) -> list[Row]:
    images = torch.rand(2, 3, 256, 256)
    peer = _lively(timm.create_model("maxvit_tiny_tf_224", img_size=256))
    padded = _work(ours, images)
    same = MaxViT.from_official(peer.state_dict(), window=8).eval()
    theirs = _work(peer, images)
    _agree(_work(same, images)(), theirs(), 1e-4)
    what = "T, 2 images of 256 pixels, inference"
    return [
        Row(what, "float32, 8x8 windows", "timm float32, 8x8 windows", compare(_work(same, images), theirs), target=1.0),
        Row(what, "float32, 7x7 windows, padded", "timm float32, 8x8 windows", compare(padded, theirs)),
    ]


def _work(model: nn.Module, images: Tensor, bf16: bool = False) -> Callable[[], Tensor]:
    def work() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(images)

    return work


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


def _agree(ours: Tensor, theirs: Tensor, allowed: float) -> None:
    difference = float((ours.float() - theirs.float()).abs().max() / theirs.abs().max())
    if difference > allowed:
        raise AssertionError(f"outputs differ by {difference:.3g} of the largest one; a timing would mean nothing")
