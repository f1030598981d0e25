"""What the two papers on large kernels measure: guidelines on small twins, receptive fields, pictures whose cues conflict,
forecasts, latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.analysis.counting import count_parameters
from paperworks.analysis.receptive_field import effective_receptive_field
from paperworks.analysis.shape_bias import shape_bias
from paperworks.backbones.protocol import initialise
from paperworks.backbones.registry import create
from paperworks.backbones.series import SeriesForecaster
from paperworks.backbones.unireplknet import UniRepLKNet, UniRepLKNetBlock
from paperworks.data import ImageSource, open_images
from paperworks.data.photos import random_crops
from paperworks.errors import InputError
from paperworks.layers.large_kernel import DILATED_BRANCHES, ReparamDepthwise
from paperworks.objectives.classify import Classify
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._recognition_claims import (
    Budget,
    Build,
    all_trained,
    compared,
    giga_macs,
    inference,
    lead,
    timing_table,
    timing_words,
)
from paperworks.papers._universal import Answer, Samples, real_series, seeded, series_error, series_windows, train_config
from paperworks.training import fit

TWIN: dict[str, Any] = {"dims": (32, 64, 128), "depths": (1, 2, 1), "stem_stride": 1, "layer_scale": 1.0}
"""three stages with maps of 32, 16 and 8 pixels for images of 32"""

TWIN_BUDGET = Budget(epochs=2, batch=32)
"""small batches: a step on maps of 32 pixels costs four times one at half the resolution"""


def twin(
    classes: int, kernel: int, branches: str = "dilated", *, first: int = 3, gates: bool = True, added: int | None = None
) -> UniRepLKNet:
    """A small network whose second and third stage have kernels of one size, with dilated, undilated or no branches.

    first: kernel of the first stage. gates: squeeze-and-excitation. added: kernel of two more blocks in the second stage.
    """
    second = [kernel] * 2 if added is None else [kernel, added] * 2
    model = UniRepLKNet(num_classes=classes, kernel_sizes=(first, second, kernel), **{**TWIN, "depths": (1, len(second), 1)})
    for block in model.modules():
        if not isinstance(block, UniRepLKNetBlock):
            continue
        if not gates:
            block.se = nn.Identity()
        if branches != "dilated" and isinstance(block.dwconv, ReparamDepthwise):
            large = block.dwconv
            sizes = [size for size, _ in DILATED_BRANCHES[large.kernel_size]] if branches == "undilated" else []
            block.dwconv = ReparamDepthwise(large.channels, large.kernel_size, [(size, 1) for size in sizes])
            block.dwconv.apply(initialise)  # as the rest of the network
    return model


# --- guidelines -------------------------------------------------------------------------------------------------------


def guidelines_claim(bench: Bench, budget: Budget = TWIN_BUDGET) -> Measured:
    """Dilated branches against the plain large kernel; every guideline's points are among the numbers."""
    builds: dict[str, Build] = {
        "dilated": lambda classes: twin(classes, 13),
        "plain 13x13": lambda classes: twin(classes, 13, "none"),
        "undilated": lambda classes: twin(classes, 13, "undilated"),
        "3x3": lambda classes: twin(classes, 3),
        "no gates": lambda classes: twin(classes, 13, gates=False),
        "13x13 at once": lambda classes: twin(classes, 13, first=13),
        "deeper by 3x3": lambda classes: twin(classes, 13, added=3),
        "deeper by 13x13": lambda classes: twin(classes, 13, added=13),
    }
    found = all_trained(bench, builds, budget)
    note = "; points ahead of the plain large kernel"
    measured = lead(bench, found, "dilated", "plain 13x13", budget.words(bench), note=note)
    pairs = {
        "1: squeeze-and-excitation over none": ("dilated", "no gates"),
        "2: dilated branches over the plain large kernel": ("dilated", "plain 13x13"),
        "2: dilated branches over undilated ones": ("dilated", "undilated"),
        "3: 3x3 in the first stage over 13x13": ("dilated", "13x13 at once"),
        "3: 13x13 in later stages over 3x3": ("dilated", "3x3"),
        "4: two more 3x3 blocks over two more 13x13 ones": ("deeper by 3x3", "deeper by 13x13"),
    }
    return with_guidelines(measured, found, pairs)


def with_guidelines(
    measured: Measured, found: Mapping[str, Sequence[Mapping[str, float]]], pairs: Mapping[str, tuple[str, str]]
) -> Measured:
    """Adds to the numbers by how many points, per seed, the first network of each pair is ahead of the second."""
    points = {
        name: [round(a["top1"] - b["top1"], 3) for a, b in zip(found[better], found[worse])]
        for name, (better, worse) in pairs.items()
    }
    return replace(measured, numbers={**measured.numbers, "points by guideline": points})


# --- receptive fields -------------------------------------------------------------------------------------------------


def field_areas(bench: Bench, kernels: Sequence[int], pixels: int = 512) -> dict[int, list[float]]:
    """Per kernel size and seed: share of the image that holds half of the contributions, networks with random weights."""
    cut = random_crops(open_images("photos", labels="none", channels=3), pixels, 1, seed=0)
    photo = cut[0]["image"][None].float() / 255
    found: dict[int, list[float]] = {kernel: [] for kernel in kernels}
    for seed in bench.seeds:
        for kernel in kernels:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = UniRepLKNet(
                    num_classes=0, depths=(1, 1, 3, 1), dims=(16, 32, 64, 128), kernel_sizes=(3, *[kernel] * 3), layer_scale=1.0
                )
                for module in model.modules():
                    if isinstance(module, nn.Conv2d | nn.Linear):
                        nn.init.kaiming_normal_(module.weight)
            field = effective_receptive_field(model.eval(), photo)
            area = next(square.area for square in field.squares if square.share == 0.5)
            found[kernel].append(area if area is not None else 1.0)
            bench.say(f"  kernel {kernel}, seed {seed}: half of the contributions in {found[kernel][-1]:.1%} of the image")
    return found


def field_claim(bench: Bench) -> Measured:
    areas = field_areas(bench, (3, 7, 13))
    # a seed on which the area does not grow at every step counts as no growth at all
    ratios = [large / small if small < middle < large else 0.0 for small, middle, large in zip(*areas.values())]
    words = ", ".join(f"{kernel}x{kernel} {mean(values):.1%}" for kernel, values in areas.items())
    detail = f"share of a 512-pixel photo that holds half of the contributions: {words}; random weights, depth 6"
    numbers = {f"{kernel}x{kernel}": values for kernel, values in areas.items()}
    return Measured(mean(ratios), "one photo, random weights", detail, ratios, list(bench.seeds), numbers, "x")


# --- shape against texture --------------------------------------------------------------------------------------------


def texture(kind: int, size: int, generator: torch.Generator) -> Tensor:
    """[size, size] in [0, 1]: one of ten gratings, five directions in two spacings, with a random phase."""
    angle, period = math.pi * (kind % 5) / 5, (4.0, 8.0)[kind // 5]
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    phase = float(torch.rand((), generator=generator)) * 2 * math.pi
    wave = torch.sin(2 * math.pi / period * (rows * math.cos(angle) + columns * math.sin(angle)) + phase)
    return 0.5 + 0.5 * wave


def cue_pictures(bench: Bench, split: str, count: int, conflict: bool, seed: int) -> dict[str, Tensor]:
    """Digits as outlines filled with a grating on a grey, noisy ground: image uint8 [N, 3, 32, 32], label (the outline's class)
    and texture, equal to the label or, with `conflict`, another class."""
    source = open_images("default", split="train" if split == "train" else "test", labels="required", channels=3)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(source), generator=generator)[:count]
    images, labels, textures = [], [], []
    for index in chosen.tolist():
        sample = source[index]
        digit = F.interpolate(sample["image"][None, :1].float() / 255, size=(32, 32), mode="bilinear")[0, 0]
        outline = F.max_pool2d(digit[None, None], 3, 1, 1)[0, 0] > 0.35  # thick enough to show a surface
        label = int(sample["label"])
        other = (label + 1 + int(torch.randint(9, (), generator=generator))) % 10
        kind = other if conflict else label
        ground = 0.5 + 0.1 * torch.randn(32, 32, generator=generator)
        picture = torch.where(outline, texture(kind, 32, generator), ground).clamp(0, 1)
        images.append((255 * picture).round().to(torch.uint8).expand(3, -1, -1))
        labels.append(label)
        textures.append(kind)
    return {"image": torch.stack(images), "label": torch.tensor(labels), "texture": torch.tensor(textures)}


SHAPE_BUDGET = Budget(epochs=4, batch=32)


def shape_claim(bench: Bench, pictures: int = 3000, budget: Budget = SHAPE_BUDGET) -> Measured:
    """Twins with kernels of 3 and 13 learn pictures whose outline and surface agree; then both cues conflict."""
    found: dict[int, list[float]] = {3: [], 13: []}
    accuracies: dict[int, list[float]] = {3: [], 13: []}
    for seed in bench.seeds:
        train = cue_pictures(bench, "train", pictures, False, seed)
        test = cue_pictures(bench, "test", pictures // 3, True, 1000 + seed)
        same = cue_pictures(bench, "test", pictures // 3, False, 2000 + seed)
        for kernel in found:
            folder = bench.folder / f"kernel-{kernel}-{seed}"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                objective = Classify(twin(10, kernel), smoothing=0.1)
            source = ImageSource.from_tensor(train["image"], train["label"], name="filled digits")
            fit(objective, source, budget.config(pictures, seed), folder, label=f"kernel {kernel}, seed {seed}")
            objective.eval()
            answer, agreeing = _answers(objective, test["image"]), _answers(objective, same["image"])
            result = shape_bias(answer, test["label"], test["texture"], 10)
            if result.bias < 0:
                raise InputError(f"kernel {kernel}, seed {seed}: no picture was decided for its shape or its texture")
            found[kernel].append(result.bias)
            accuracies[kernel].append(float((agreeing == same["label"]).float().mean()))
            bench.say(
                f"  kernel {kernel}, seed {seed}: shape bias {result.bias:.3f}, agreeing cues {accuracies[kernel][-1]:.1%}"
            )
    points = [100 * (large - small) for small, large in zip(found[3], found[13])]
    words = ", ".join(f"{kernel}x{kernel} {mean(values):.3f}" for kernel, values in found.items())
    numbers = {
        "shape bias": {str(k): v for k, v in found.items()},
        "accuracy, cues agree": {str(k): v for k, v in accuracies.items()},
    }
    write_json(bench.folder / "shape_bias.json", numbers)
    scale = f"{pictures} digits filled with gratings, 32 pixels, {budget.epochs:g} epochs, {len(bench.seeds)} seeds"
    return Measured(mean(points), scale, f"share of decisions for shape: {words}", points, list(bench.seeds), numbers, "points")


@torch.no_grad()
def _answers(objective: Classify, images: Tensor) -> Tensor:
    return torch.cat([objective.logits(part.float() / 255).argmax(1) for part in images.split(250)])


# --- series -----------------------------------------------------------------------------------------------------------

FORECASTERS = {3: (24, 58, 48), 13: (24, 48, 48)}
"""widths by kernel: folded, the network with 3x3 kernels has no fewer parameters"""


def kernel_comparison(bench: Bench, steps: int = 400) -> Measured:
    """Forecast error with 3x3 kernels over the error with 13x13; widths make up for the parameters of the larger kernels."""
    train, test = series_windows("train"), series_windows("test")
    sizes = {kernel: _folded_parameters(_forecaster(kernel)) for kernel in FORECASTERS}
    assert sizes[3] >= sizes[13], f"the baseline has fewer parameters: {sizes}"
    ratios: list[float] = []
    errors: dict[int, list[float]] = {3: [], 13: []}
    for seed in bench.seeds:
        for kernel in errors:
            folder = bench.folder / f"series-{kernel}-{seed}"
            objective = Answer(seeded(seed, partial(_forecaster, kernel)))
            fit(objective, Samples(**train), train_config(steps, seed), folder, label=f"kernel {kernel}, seed {seed}")
            objective.eval()
            with torch.no_grad():
                errors[kernel].append(series_error(objective.network(test["input"]), test))
            bench.say(f"  kernel {kernel}, seed {seed}: error {errors[kernel][-1]:.3f}")
        ratios.append(errors[3][-1] / errors[13][-1])
    last = series_error(test["input"][:, -1:].expand_as(test["answer"]), test)
    words = ", ".join(
        f"{kernel}x{kernel} {mean(values):.3f} ({sizes[kernel]} parameters folded)" for kernel, values in errors.items()
    )
    detail = f"squared error: {words}; the last value going on {last:.3f}"
    numbers = {
        "errors": {str(kernel): values for kernel, values in errors.items()},
        "last value": last,
        "parameters, folded": {str(kernel): count for kernel, count in sizes.items()},
    }
    scale = f"{len(real_series())} real series, 48 steps to 24, {steps} steps of training, {len(bench.seeds)} seeds"
    return Measured(mean(ratios), scale, detail, ratios, list(bench.seeds), numbers, "x")


def _forecaster(kernel: int) -> SeriesForecaster:
    return SeriesForecaster(kernel_size=kernel, dims=FORECASTERS[kernel])


def _folded_parameters(model: SeriesForecaster) -> int:
    model.encoder.reparameterize()
    return count_parameters(model)


# --- latency ----------------------------------------------------------------------------------------------------------


def latency_claim(bench: Bench, rivals: Mapping[str, Callable[[], nn.Module]]) -> Measured:
    """UniRepLKNet-T, folded and otherwise as it is, against networks of similar cost: float32, one image, the better layout of
    each."""
    works: dict[str, Callable[[torch.memory_format], Callable[[], Any]]] = {
        name: partial(_in_layout, build) for name, build in {"UniRepLKNet-T": _folded, **rivals}.items()
    }
    repetitions = compared(bench, works)
    ratios = {name: [min(r[name].values()) / min(r["UniRepLKNet-T"].values()) for r in repetitions] for name in rivals}
    worst = [min(values) for values in zip(*ratios.values())]
    table = timing_table(repetitions)
    numbers: dict[str, Any] = {**table, **{f"against {name}": median(values) for name, values in ratios.items()}}
    costs = {name: round(giga_macs(build), 2) for name, build in rivals.items()} | {
        "UniRepLKNet-T": round(giga_macs(partial(create, "unireplknet_t", deploy=True)), 2)
    }
    numbers["G multiply-accumulates"] = costs
    scale = f"a CPU, {torch.get_num_threads()} threads, float32, one image of 224 pixels"
    words = ", ".join(f"{name} {median(values):.2f}x" for name, values in ratios.items())
    detail = (
        f"their time over ours: {words}; NCHW / channels-last: {timing_words(table)}; ours folded, theirs as timm builds them"
    )
    return Measured(median(worst), scale, detail, worst, list(bench.seeds), numbers, "x")


def _folded() -> nn.Module:
    model = create("unireplknet_t").eval()
    assert isinstance(model, UniRepLKNet)
    return model.reparameterize()


def _in_layout(build: Callable[[], nn.Module], layout: torch.memory_format) -> Callable[[], Any]:
    return inference(build(), layout, batch=1)


RIVALS: dict[str, Callable[[], nn.Module]] = {
    "ConvNeXt-T": partial(timm.create_model, "convnext_tiny"),
    "Swin-T": partial(timm.create_model, "swin_tiny_patch4_window7_224"),
    "DeiT-S": partial(timm.create_model, "deit_small_patch16_224"),
}
