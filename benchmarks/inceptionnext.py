"""InceptionNeXt-T against timm's, inference (batch 8) and a training step (batch 4), 224 pixels, same weights and images.

Peers: timm as it comes (float32), and what a careful user does (channels-last under bfloat16 autocast), eager and compiled.
Training is also compared with ConvNeXt-T, the paper's own comparison, in both memory layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paperworks  # noqa: F401  (registers its networks with timm)
from benchmarks.harness import Row, agree, compare, quietly
from paperworks.backbones.inference import prepare_for_inference

CHANNELS_LAST = torch.channels_last


def run() -> list[Row]:
    torch.manual_seed(0)
    images = torch.rand(8, 3, 224, 224)
    return inference(images) + training(images[:4])


def inference(images: Tensor) -> list[Row]:
    peer = _lively(timm.create_model("inception_next_tiny"))
    ours = timm.create_model("inceptionnext_tiny").eval()
    ours.load_state_dict(peer.state_dict())
    fast, exact = (prepare_for_inference(ours, precision=precision, example=images) for precision in ("bf16", "32"))

    last = images.contiguous(memory_format=CHANNELS_LAST)
    peer_last = timm.create_model("inception_next_tiny").eval().to(memory_format=CHANNELS_LAST)
    peer_last.load_state_dict(peer.state_dict())
    compiled, compiled_last = torch.compile(peer), torch.compile(peer_last)

    plain = quietly(peer, images)
    careful = quietly(peer_last, last, bf16=True)
    reference = plain()
    for side, allowed in ((ours, 1e-4), (exact, 1e-4), (fast, 5e-2)):
        agree(quietly(side, images)(), reference, allowed)

    what = "T, batch 8, inference"
    return [
        Row(what, "float32", "timm float32", compare(quietly(ours, images), plain), target=1.0),
        Row(
            what, "float32, channels-last", "timm the same", compare(quietly(ours, last), quietly(peer_last, last)), target=1.0
        ),
        Row(what, "prepared float32", "timm float32", compare(quietly(exact, images), plain)),
        Row(what, "prepared bf16", "timm float32", compare(quietly(fast, images), plain), target=3.0, note=str(fast.report)),
        Row(what, "prepared bf16", "timm autocast, channels-last", compare(quietly(fast, images), careful), target=1.2),
        Row(what, "prepared float32", "timm float32 compiled", compare(quietly(exact, images), quietly(compiled, images))),
        Row(what, "prepared bf16", "timm float32 compiled", compare(quietly(fast, images), quietly(compiled, images))),
        Row(
            what,
            "prepared bf16",
            "timm autocast, channels-last, compiled",
            compare(quietly(fast, images), quietly(compiled_last, last, bf16=True)),
        ),
    ]


def training(images: Tensor) -> list[Row]:
    """Forward, backward and SGD step. The paper reports the better of both layouts for each network."""
    rows = []
    best: dict[str, tuple[float, Callable[[], Any]]] = {}
    for layout, name in ((torch.contiguous_format, "NCHW"), (CHANNELS_LAST, "channels-last")):
        ours, theirs, convnext = (
            training_step(timm.create_model(model), images, layout)
            for model in ("inceptionnext_tiny", "inception_next_tiny", "convnext_tiny")
        )
        what = f"T, batch {len(images)}, training step, {name}"
        against_convnext = compare(ours, convnext, rounds=9, warmup=1)
        rows.append(Row(what, "InceptionNeXt float32", "timm ConvNeXt-T", against_convnext))
        rows.append(Row(what, "InceptionNeXt float32", "timm InceptionNeXt-T", compare(ours, theirs, rounds=9, warmup=1)))
        for side, seconds, work in (
            ("ours", against_convnext.ours_seconds, ours),
            ("peer", against_convnext.peer_seconds, convnext),
        ):
            if side not in best or seconds < best[side][0]:
                best[side] = (seconds, work)
    ratio = compare(best["ours"][1], best["peer"][1], rounds=9, warmup=1)
    rows.append(Row("T, training step, better layout of each", "InceptionNeXt float32", "timm ConvNeXt-T", ratio))
    return rows


def training_step(model: nn.Module, images: Tensor, layout: torch.memory_format) -> Callable[[], Any]:
    model = model.train().to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    labels = torch.arange(len(images))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _lively(model: nn.Module) -> nn.Module:
    """Weights with which every branch shows in the output: a fresh network's layer scale of 1e-6 would hide errors."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, 0.5, 0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 2.0)):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return model.eval()
