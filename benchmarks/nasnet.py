"""NASNet-A large against timm's, one image of 331 pixels, same weights.

Peers: timm as it comes (NCHW, float32), and what a careful user does: channels-last, and channels-last under bfloat16 autocast.
Ours are built with `count_padding=True`, so that both compute the same.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from benchmarks.harness import Row, agree, compare, quietly
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.nasnet import NASNet


def run() -> list[Row]:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 331, 331)
    last = images.contiguous(memory_format=torch.channels_last)
    peer = _lively(timm.create_model("nasnetalarge"))
    ours = NASNet.from_official(peer.state_dict(), stem_size=96, skip_reduction_input=True, count_padding=True).eval()
    plain = quietly(peer, images)
    reference = plain()
    exact = prepare_for_inference(ours, precision="32", example=images)
    fast = prepare_for_inference(ours, precision="bf16", example=images, tolerance=0.5)
    for side in (ours, exact):
        agree(quietly(side, images)(), reference, 1e-3)
    # random weights multiply bfloat16's rounding through 20 cells: ours may move as far as timm's under autocast does
    agree(quietly(fast, images)(), reference, 1.2 * _difference(quietly(peer, images, bf16=True)(), reference))

    what, rounds = "large, 331 pixels, batch 1, inference", 7
    rows = [
        Row(what, "float32", "timm float32", compare(quietly(ours, images), plain, rounds), target=1.5),
        Row(what, "prepared float32", "timm float32", compare(quietly(exact, images), plain, rounds), target=2.0),
    ]
    peer_last = peer.to(memory_format=torch.channels_last)
    careful, casted = quietly(peer_last, last), quietly(peer_last, last, bf16=True)
    rows += [
        Row(what, "prepared float32", "timm channels-last", compare(quietly(exact, images), careful, rounds), target=1.0),
        Row(what, "prepared bf16", "timm autocast, channels-last", compare(quietly(fast, images), casted, rounds), target=1.0),
    ]
    return rows


def _lively(model: nn.Module) -> nn.Module:
    """Statistics of a trained network's kind: with the initial ones activations vanish or explode over the cells."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 331, 331))
    return model.eval()


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())
