"""How InceptionNeXt's claims are measured. Speeds: alternately in one process, in both memory layouts, the better one of each
network counts, as in the paper. Accuracies: small networks that differ in the token mixer alone, equal epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import geometric_mean, median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from paperworks.analysis.counting import count_parameters, macs_by_kind
from paperworks.analysis.timing import alternate
from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.metanext import MetaNeXt
from paperworks.backbones.registry import create
from paperworks.layers.convolution import DepthwiseConv2d, InceptionDWConv2d
from paperworks.paper import Bench, Measured
from paperworks.papers._recognition_claims import (
    LAYOUTS,
    Budget,
    all_trained,
    compared,
    inference,
    lead,
    timing_table,
    timing_words,
    training_step,
)

BATCH = 2
"""images per step in timings"""


# --- counted ----------------------------------------------------------------------------------------------------------------


def _macs(build: Callable[[], nn.Module]) -> Mapping[str, int]:
    with torch.device("meta"):
        return {str(kind): number for kind, number in macs_by_kind(build(), torch.zeros(1, 3, 224, 224)).items()}


def depthwise_share() -> Measured:
    kinds = _macs(ConvNeXt)
    total = sum(kinds.values())
    return Measured(
        100 * kinds["depthwise"] / total,
        "any",
        f"{kinds['depthwise'] / 1e6:.0f} M of {total / 1e9:.3f} G multiply-accumulates of ConvNeXt-T are in its 7x7 kernels",
        numbers=dict(kinds),
    )


def similar_operations() -> Measured:
    convnext = sum(_macs(ConvNeXt).values()) / 1e9
    resnet = sum(_macs(lambda: timm.create_model("resnet50")).values()) / 1e9
    return Measured(
        convnext,
        "any",
        f"ConvNeXt-T {convnext:.3f} G, ResNet-50 {resnet:.3f} G: {convnext / resnet:.3f} times as many",
        numbers={"ConvNeXt-T": convnext, "ResNet-50": resnet, "ratio": convnext / resnet},
    )


def four_branches() -> Measured:
    """The support of every output channel is found by sending an impulse through the mixer."""
    kinds, unchanged, parameters, formula, shares = set(), True, 0, 0, {}
    for channels, square, band, ratio in ((96, 3, 11, 0.125), (40, 3, 9, 0.25), (20, 5, 7, 0.25), (768, 3, 11, 0.125)):
        mixer = InceptionDWConv2d(channels, square, band, ratio)
        for parameter in mixer.parameters():
            nn.init.constant_(parameter, 1.0 if parameter.ndim == 4 else 0.0)
        group = int(channels * ratio)
        impulse = torch.zeros(1, channels, 25, 25)
        impulse[:, :, 12, 12] = 1
        with torch.no_grad():
            response = mixer(impulse)[0] != 0
            images = torch.randn(2, channels, 14, 14)
            unchanged &= torch.equal(mixer(images)[:, : channels - 3 * group], images[:, : channels - 3 * group])
        supports = [(int(r.any(1).sum()), int(r.any(0).sum())) for r in response]
        expected = [(1, 1)] * (channels - 3 * group)
        for support in ((square, square), (1, band), (band, 1)):
            expected += [support] * group
        unchanged &= supports == expected
        kinds.add(len(set(supports)))
        parameters += count_parameters(mixer)
        formula += group * (square * square + 2 * band + 3)
        shares[f"C={channels}"] = {
            "taps per channel": group * (square**2 + 2 * band) / channels,
            "touched": 3 * group / channels,
        }
    count = kinds.pop() if len(kinds) == 1 else 0
    return Measured(
        float(count),
        "any",
        "C = 96: 3.9 taps per channel and 3/8 of the channels touched, against 49 and all of them for 7x7",
        numbers={"identity_unchanged": unchanged, "parameters": parameters, "formula": formula, "shares": shares},
    )


# --- timed ------------------------------------------------------------------------------------------------------------------


def _scale(what: str) -> str:
    return f"CPU, {torch.get_num_threads()} threads, float32, batch {BATCH}, 224 pixels, {what}"


def _step(build: Callable[[], nn.Module], layout: torch.memory_format) -> Callable[[], None]:
    return training_step(build(), layout, BATCH)


def _pass(build: Callable[[], nn.Module], layout: torch.memory_format) -> Callable[[], Tensor]:
    return inference(build(), layout, BATCH)


def convnext_against_resnet(bench: Bench) -> Measured:
    builds = {"ConvNeXt-T": lambda: timm.create_model("convnext_tiny"), "ResNet-50": lambda: timm.create_model("resnet50")}
    repetitions = compared(bench, {name: partial(_step, build) for name, build in builds.items()})
    shares = [100 * min(r["ResNet-50"].values()) / min(r["ConvNeXt-T"].values()) for r in repetitions]
    table = timing_table(repetitions)
    detail = f"training step, NCHW / channels-last: {timing_words(table)}; timm's networks; the paper's number is an A100's"
    return Measured(median(shares), _scale("better layout of each"), detail, shares, list(bench.seeds), table)


def faster_training(bench: Bench) -> Measured:
    builds = {"ConvNeXt-T": lambda: timm.create_model("convnext_tiny"), "InceptionNeXt-T": lambda: create("inceptionnext_tiny")}
    repetitions = compared(bench, {name: partial(_step, build) for name, build in builds.items()})
    best = [min(r["ConvNeXt-T"].values()) / min(r["InceptionNeXt-T"].values()) for r in repetitions]
    by_layout = {k: median([r["ConvNeXt-T"][k] / r["InceptionNeXt-T"][k] for r in repetitions]) for k in LAYOUTS}
    table = timing_table(repetitions)
    ratios = ", ".join(f"{ratio:.2f}x in {layout}" for layout, ratio in by_layout.items())
    detail = f"training step, NCHW / channels-last: {timing_words(table)}; {ratios}; the paper's number is an A100's"
    return Measured(
        median(best), _scale("better layout of each"), detail, best, list(bench.seeds), table | {"ratios": by_layout}
    )


def series_throughput(bench: Bench) -> Measured:
    pairs = {
        "inceptionnext_atto": "convnext_atto",
        "inceptionnext_tiny": "convnext_tiny",
        "inceptionnext_small": "convnext_small",
        "inceptionnext_base": "convnext_base",
    }
    builds: dict[str, Callable[[], nn.Module]] = {}
    for ours, theirs in pairs.items():
        builds[ours] = partial(create, ours)
        builds[theirs] = partial(timm.create_model, theirs)
    works = {name: partial(_pass, build) for name, build in builds.items()}
    repetitions = compared(bench, works, rounds=3)
    means = [
        geometric_mean(min(r[theirs].values()) / min(r[ours].values()) for ours, theirs in pairs.items()) for r in repetitions
    ]
    table = timing_table(repetitions)
    images = {name: round(1e3 * BATCH / min(row.values()), 1) for name, row in table.items()}
    detail = "images a second, better layout: " + ", ".join(f"{name} {number:g}" for name, number in images.items())
    return Measured(median(means), _scale("untrained networks, inference"), detail, means, list(bench.seeds), table)


def time_per_operation(bench: Bench) -> Measured:
    """ConvNeXt-T's depthwise and pointwise layers at the sizes they have in the network, each kind in its better layout."""
    shapes = ((96, 56, 3), (192, 28, 3), (384, 14, 9), (768, 7, 3))
    repetitions: list[dict[str, dict[str, float]]] = []
    macs = {
        "depthwise": sum(n * 49 * c * s * s for c, s, n in shapes),
        "pointwise": sum(n * 8 * c * c * s * s for c, s, n in shapes),
    }
    for seed in bench.seeds:
        torch.manual_seed(seed)
        found: dict[str, dict[str, float]] = {}
        for backward in (False, True):
            phase = "training" if backward else "inference"
            totals: dict[tuple[str, str], float] = {}
            for channels, side, count in shapes:
                works = {
                    (kind, layout): _layer_work(kind, channels, side, LAYOUTS[layout], backward)
                    for kind in macs
                    for layout in LAYOUTS
                }
                for key, seconds in alternate(works, rounds=5, warmup=2).items():
                    totals[key] = totals.get(key, 0.0) + count * median(seconds)
            for kind in macs:
                least = min(totals[kind, layout] for layout in LAYOUTS)
                found.setdefault(kind, {})[phase] = 1e12 * least / (BATCH * macs[kind])
        repetitions.append(found)
        bench.say(
            "  ".join(f"{kind}: {ps['inference']:.0f} ps, in training {ps['training']:.0f} ps" for kind, ps in found.items())
        )
    phases = ("inference", "training")
    ratios = {phase: [r["depthwise"][phase] / r["pointwise"][phase] for r in repetitions] for phase in phases}
    middle = {kind: {phase: round(median([r[kind][phase] for r in repetitions]), 1) for phase in phases} for kind in macs}
    detail = (
        f"picoseconds per multiply-accumulate of the forward pass: 7x7 depthwise {middle['depthwise']['training']}, 1x1 "
        f"{middle['pointwise']['training']} in training (forward and backward); {middle['depthwise']['inference']} and "
        f"{middle['pointwise']['inference']} forward alone ({median(ratios['inference']):.1f}x)"
    )
    return Measured(
        median(ratios["training"]), _scale("better layout of each"), detail, ratios["training"], list(bench.seeds), middle
    )


def _layer_work(kind: str, channels: int, side: int, layout: torch.memory_format, backward: bool) -> Callable[[], None]:
    layer: nn.Module = (
        DepthwiseConv2d(channels, 7)
        if kind == "depthwise"
        else nn.Sequential(nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1))
    )
    layer = layer.to(memory_format=layout)
    x = torch.randn(BATCH, channels, side, side).contiguous(memory_format=layout).requires_grad_(backward)
    gradient = torch.randn_like(x)

    def work() -> None:
        with torch.set_grad_enabled(backward):
            y = layer(x)
        if backward:
            y.backward(gradient)

    return work


# --- trained ----------------------------------------------------------------------------------------------------------------

MIXERS: dict[str, tuple[str, dict[str, Any]]] = {
    "7x7": ("depthwise", {"kernel_size": 7}),
    "3x3": ("depthwise", {"kernel_size": 3}),
    "inception": ("inception", {}),
}
BUDGET = Budget(epochs=12)


def micro_network(mixer: str, classes: int) -> MetaNeXt:
    """Four stages of 24 to 192 channels, two blocks each, patches of 2 pixels: everything but the mixer is equal."""
    name, arguments = MIXERS[mixer]
    return MetaNeXt(
        num_classes=classes,
        depths=(2, 2, 2, 2),
        dims=(24, 48, 96, 192),
        patch_size=2,
        token_mixers=name,
        mixer=arguments,
    )


def _trained(bench: Bench, *mixers: str) -> dict[str, list[dict[str, float]]]:
    return all_trained(bench, {mixer: partial(micro_network, mixer) for mixer in mixers}, BUDGET)


def _scale_of_training(bench: Bench) -> str:
    return f"four stages of 24 to 192 channels, {BUDGET.words(bench)}"


def smaller_kernels(bench: Bench) -> Measured:
    found = _trained(bench, "7x7", "3x3")
    speed = median([run["milliseconds"] for run in found["7x7"]]) / median([run["milliseconds"] for run in found["3x3"]])
    note = f"; points that 3x3 loses; 3x3 is {speed:.2f}x as fast"
    return lead(bench, found, "7x7", "3x3", _scale_of_training(bench), note=note)


def accuracy_of_the_mixer(bench: Bench) -> Measured:
    found = _trained(bench, "inception", "7x7")
    note = "; points that the Inception mixer is ahead of 7x7 in the same network; 0.2 cannot be told apart here"
    return lead(bench, found, "inception", "7x7", _scale_of_training(bench), note=note)
