"""ResNet-RS's two scaling rules (2103.07579) in small: depth against width, and how fast resolution may grow."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import nn

from paperworks.analysis.counting import count_macs
from paperworks.backbones.resnet import RS, ResNet
from paperworks.paper import Bench, Measured
from paperworks.papers._resnet_rs_claims import RECIPE, top1

SMALL: dict[str, Any] = {"stem_width": 8, "stem_stride": 1, "stem_pool": "none"}

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "deep": ((2, 2, 2, 2), (12, 25, 50, 102)),
    "wide": ((1, 1, 1, 1), (16, 32, 64, 128)),
}
"""layers and channels; 26 and 14 layers of 29.7 million multiply-accumulates at 32 pixels"""
EPOCHS = {"short": 3, "long": 30}

RESOLUTIONS: dict[int, tuple[int, ...]] = {
    16: (24, 48, 97, 195),
    20: (18, 37, 74, 150),
    24: (16, 32, 64, 128),
    28: (13, 26, 53, 107),
}
"""channels by pixels, two blocks a stage; 27 million multiply-accumulates each"""
COMPOUND = 24
"""pixels that EfficientNet's rule (1905.11946, equation 3 and section 3.3) gives from 16 pixels, one block and channels 12, 24,
48, 96 at compound coefficient 3: resolution x 1.15^3, depth x 1.2^3, width x 1.1^3"""


def depth_or_width(bench: Bench) -> Measured:
    """Points by which the deep network leads the wide one after the long training, per seed. Few images, so that the long one
    can overfit."""
    budget = replace(RECIPE, images=1000)
    builds = {name: partial(_network, *shape) for name, shape in SHAPES.items()}
    sides = {
        f"{name}, {length}": (build, replace(budget, epochs=epochs))
        for length, epochs in EPOCHS.items()
        for name, build in builds.items()
    }
    found = top1(bench, sides)
    lead = {length: [a - b for a, b in zip(found[f"deep, {length}"], found[f"wide, {length}"])] for length in EPOCHS}
    macs = {name: _macs(build(10), 32) / 1e6 for name, build in builds.items()}
    words = "; ".join(
        f"{epochs} epochs: deep {mean(found[f'deep, {length}']):.2f} %, wide {mean(found[f'wide, {length}']):.2f} % "
        f"({mean(lead[length]):+.2f} points)"
        for length, epochs in EPOCHS.items()
    )
    numbers = {"accuracy": found, "lead of depth": lead, "million MACs": macs}
    scale = budget.words(bench).replace(f", {budget.epochs:g} epochs", "")
    return Measured(mean(lead["long"]), scale, words, lead["long"], list(bench.seeds), numbers, "points")


def resolutions(bench: Bench) -> Measured:
    """Pixels of the best network among those of equal operations; per seed too."""
    budget = replace(RECIPE, images=2000, epochs=10)
    sides = {
        f"{size} pixels": (partial(_network, (2, 2, 2, 2), channels), replace(budget, size=size))
        for size, channels in RESOLUTIONS.items()
    }
    found = top1(bench, sides)
    means = {size: mean(found[f"{size} pixels"]) for size in RESOLUTIONS}
    best = max(means, key=lambda size: means[size])
    per_seed = [max(RESOLUTIONS, key=lambda size, n=n: found[f"{size} pixels"][n]) for n in range(len(bench.seeds))]  # type: ignore[misc]
    macs = {str(size): _macs(_network((2, 2, 2, 2), channels, 10), size) / 1e6 for size, channels in RESOLUTIONS.items()}
    words = ", ".join(f"{size} pixels {value:.2f} %" for size, value in means.items())
    scale = budget.words(bench).replace("32 pixels", f"{min(means)} to {max(means)} pixels")
    detail = f"{words}; the compound rule gives {COMPOUND}"
    numbers = {"accuracy": found, "million MACs": macs}
    return Measured(best, scale, detail, per_seed, list(bench.seeds), numbers, "pixels")


def below_compound(measured: Measured) -> bool:
    return measured.value < COMPOUND


def _network(layers: tuple[int, ...], channels: tuple[int, ...], classes: int) -> nn.Module:
    options = {**RS, **SMALL, "layers": layers, "channels": channels, "drop_rate": 0.0, "drop_path_rate": 0.0}
    return ResNet(num_classes=classes, **options)


def _macs(network: nn.Module, size: int) -> int:
    return count_macs(network.eval(), torch.zeros(1, 3, size, size))
