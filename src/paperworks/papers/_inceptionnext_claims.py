"""What InceptionNeXt's claims are measured on: exact counts, operator and step times, micro networks side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.analysis.counting import count_macs, macs_by_kind
from paperworks.backbones.registry import create
from paperworks.layers.convolution import InceptionDWConv2d
from paperworks.objectives.classify import Classify, score
from paperworks.paper import Bench, write_json
from paperworks.papers._inceptionnext_recipe import (
    InceptionNeXtConfig,
    NetworkConfig,
    batches,
    fit_network,
    open_split,
    training_config,
)

STEPS, BATCH = 300, 64
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
MICRO = "four stages of 2 layers, 24 to 192 wide, 32 px MNIST-5k, 300 steps of 64"


def giga_macs(name: str, size: int = 224) -> float:
    """Multiply-accumulates of a network by timm's or our name, counted without computing."""
    with torch.device("meta"):
        model = timm.create_model(name) if timm.is_model(name) else create(name)
        return count_macs(model.eval(), torch.empty(1, 3, size, size)) / 1e9


def depthwise_share() -> float:
    """Percent of ConvNeXt-T's multiply-accumulates that its 7x7 depthwise convolutions take."""
    with torch.device("meta"):
        kinds = macs_by_kind(timm.create_model("convnext_tiny").eval(), torch.empty(1, 3, 224, 224))
    return 100 * kinds["depthwise"] / sum(kinds.values())


def mixer_branches(channels: int = 96) -> int:
    """The number of branches of the paper's mixer, after checking on real numbers that each does what it should: identity
    first and bit for bit, then 3x3, 1x11 and 11x1, each on an eighth of the channels; -1 when one does not."""
    torch.manual_seed(0)
    mixer, width = InceptionDWConv2d(channels), channels // 8
    images = torch.randn(2, channels, 14, 14)
    with torch.no_grad():
        mixed = mixer(images)
        parts = images.split((channels - 3 * width, width, width, width), 1)
        convolved = [
            F.conv2d(part, conv.weight, conv.bias, padding=tuple(k // 2 for k in conv.kernel_size), groups=width)
            for part, conv in zip(parts[1:], (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h))
        ]
    shapes = [tuple(conv.kernel_size) for conv in (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h)]
    exact = torch.equal(mixed[:, : channels - 3 * width], parts[0])
    equal = torch.allclose(mixed[:, channels - 3 * width :], torch.cat(convolved, 1), atol=1e-5)
    weights = sum(p.numel() for p in mixer.parameters()) == width * (9 + 11 + 11 + 3)
    return 1 + len(shapes) if exact and equal and weights and shapes == [(3, 3), (1, 11), (11, 1)] else -1


# --- times ------------------------------------------------------------------------------------------------------------


def seconds_per_mac(rounds: int = 9) -> tuple[float, float]:
    """(depthwise 7x7, pointwise) seconds per multiply-accumulate on 96 channels of 56 x 56, each in its better layout."""
    depthwise, pointwise = nn.Conv2d(96, 96, 7, padding=3, groups=96), nn.Conv2d(96, 96, 1)
    images = torch.randn(4, 96, 56, 56)
    found = []
    for conv in (depthwise, pointwise):
        macs = images[:, 0].numel() * conv.weight.numel()
        times = []
        for layout in LAYOUTS.values():
            layer, given = conv.to(memory_format=layout), images.contiguous(memory_format=layout)
            with torch.inference_mode():
                times.append(_median_seconds(lambda layer=layer, given=given: layer(given), rounds))  # type: ignore[misc]
        found.append(min(times) / macs)
    return found[0], found[1]


def step_seconds(names: Sequence[str], batch: int = 4, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Median training-step time (forward, backward, SGD) of networks at 224 pixels, per layout, run alternately."""
    images, labels = torch.rand(batch, 3, 224, 224), torch.arange(batch)
    steps = {}
    for name in names:
        for layout, form in LAYOUTS.items():
            model = timm.create_model(name) if timm.is_model(name) else create(name)
            steps[name, layout] = _step(model.train().to(memory_format=form), images.contiguous(memory_format=form), labels)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for number in range(rounds + 1):
        for key, step in steps.items():
            started = time.perf_counter()
            step()
            if number:  # the first round warms up
                times[key].append(time.perf_counter() - started)
    return {name: {layout: median(times[name, layout]) for layout in LAYOUTS} for name in names}


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _median_seconds(work: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times[2:])


# --- micro networks ---------------------------------------------------------------------------------------------------


def micro(bench: Bench, mixer: str, seed: int) -> dict[str, float]:
    """Accuracy in percent and seconds per step of one micro network; the same data order and budget for every mixer."""
    folder = bench.folder / f"{mixer}-seed{seed}"
    path = folder / "measured.json"
    if path.is_file():
        return json.loads(path.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    config = InceptionNeXtConfig(
        data=bench.data,
        channels=1 if bench.data in ("default", "mnist5k", "digits") else 3,
        seed=seed,
        network=NetworkConfig(mixer=mixer),  # type: ignore[arg-type]
    )
    budget = training_config(STEPS, BATCH, 4e-3, seed=seed, eval_every=None, checkpoint_every=10**9)
    config = replace(config, training=budget)
    fitted, train = fit_network(config, folder, label=f"{mixer}, seed {seed}")
    best = fitted.averaged
    assert isinstance(best, Classify)
    scores = score(best.logits, batches(config, open_split(config, "test")), len(train.classes or []))
    found = {"accuracy": 100 * scores.top1, "seconds_per_step": fitted.seconds / STEPS}
    write_json(path, found)
    bench.say(f"  {mixer}, seed {seed}: {found['accuracy']:.2f} %, {1e3 * found['seconds_per_step']:.0f} ms a step")
    return found
