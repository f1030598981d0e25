"""IBN-Net (1807.09441): instance and batch norm in one network, for accuracy and for unseen appearances.

paperworks run ibn-net                               digits, minutes on two cores; --kind b for the other form
paperworks run ibn-net --data FOLDER                 your own photos in class folders
paperworks run ibn-net --recipe released --weights resnet50_ibn_a-d9d0bb7b.pth
paperworks evaluate RUN --data FOLDER --shifts       also brighter, redder, with more contrast, ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from paperworks.analysis.feature_divergence import feature_divergence
from paperworks.analysis.timing import alternate
from paperworks.backbones import densenet, resnet
from paperworks.backbones.densenet import DenseNet
from paperworks.backbones.registry import create
from paperworks.backbones.resnet import ResNet
from paperworks.data import open_images
from paperworks.errors import InputError
from paperworks.layers.instance_batch_norm import InstanceBatchNorm, InstanceNorm, InstancePart, ibn_from_plain, to_ibn
from paperworks.paper import Bench, Measured, Recipe, Run, Stage, at_least, at_most, equals
from paperworks.papers import _classification_use as use
from paperworks.papers._classification import DIGITS, NetworkConfig, Trained, _some
from paperworks.papers._ibn_domains import SHIFTS, scores_by_domain, write_domains
from paperworks.papers._recognition import check_variant, classic_imagenet, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import Budget, all_trained, giga_macs, lead, millions

ENTRIES = {name: entry for name, entry in {**resnet.ENTRIES, **densenet.ENTRIES}.items() if "_ibn_" in name}
MILLIONS = {
    "resnet18_ibn_a": 11.690,
    "resnet34_ibn_a": 21.798,
    "resnet50_ibn_a": 25.557,
    "resnet101_ibn_a": 44.549,
    "resnet152_ibn_a": 60.193,
    "resnet50_ibn_b": 25.559,
    "resnet101_ibn_b": 44.551,
    "resnext101_ibn_a": 44.178,
    "se_resnet101_ibn_a": 49.292,
    "densenet121_ibn_a": 7.979,
    "densenet169_ibn_a": 14.149,
    "densenet201_ibn_a": 20.014,
    "densenet161_ibn_a": 28.681,
}

parts = [InstanceBatchNorm, InstanceNorm, to_ibn, ibn_from_plain, ResNet, DenseNet, feature_divergence]
paper = recognition_paper("ibn-net", parts, ENTRIES, MILLIONS, "resnet50_ibn_a")

SMALL: dict[str, Any] = {
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "channels": [16, 32, 64, 128],
    "stem_width": 16,
    "stem_stride": 1,
    "stem_pool": "none",
}
"""of a network for images of 32 pixels"""


@paper.recipe("laptop")
def laptop(
    data: str = "default", kind: Literal["a", "b"] = "a", size: int = 32, steps: int | None = None, seed: int = 0
) -> Recipe:
    """A small ResNet with IBN in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        kind: "a" for accuracy, "b" for unseen appearances
        size: pixels; images are cut or resized to it
        steps: of training; 900 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    stem = {} if size <= 64 else {"stem_stride": 2, "stem_pool": "max"}
    network = NetworkConfig(f"resnet18_ibn_{kind}", {**SMALL, **stem})
    steps = steps or (900 if data in DIGITS else 2500)
    *before, page = stages("IBN-Net")
    return Recipe(small_images(network, data, size, steps, seed), (*before, Stage("domains", write_domains), page))


@paper.recipe("paper")
def published(variant: str = "resnet50_ibn_a", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """The published ImageNet training: 100 epochs of batch 256 with steps at 30, 60 and 90.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    config = classic_imagenet(variant, data, seed, micro_batch, epochs=100, milestones=(0.3, 0.6, 0.9))
    return Recipe(config, stages("IBN-Net"))


@paper.verb("evaluate")
def evaluate_on(
    run: Run,
    *,
    data: str | None = None,
    split: Literal["train", "test", "all"] = "test",
    size: int | None = None,
    crop_pct: float | None = None,
    limit: int | None = None,
    shifts: bool = False,
) -> dict[str, Any]:
    """Top-1 and top-5 on labelled images, and with --shifts top-1 in domains that look different.

    Args:
        data: a folder with a sub-folder per class, parquet, shards or a name; the run's own data by default
        split: which part of it
        size: pixels, as in training by default
        crop_pct: share of the resized shorter side that the centre crop takes
        limit: this many images, evenly spread over the source
        shifts: also on the images made brighter, redder, richer in contrast, with a colour cast and with another gamma
    """
    data = data or run.record["config"]["data"]
    if not data:
        raise InputError("this run has no data of its own: name labelled images with --data")
    trained = Trained.of(run)
    row = use.evaluate(trained, data, split, size, crop_pct, limit)
    if shifts:
        source = open_images(data, split=split, labels="required", channels=3)
        found = scores_by_domain(trained, source if limit is None else _some(source, limit), size, crop_pct)
        shifted = {name: found[name].top1 for name in SHIFTS}
        row |= {f"{name}, top-1 %": round(100 * value, 2) for name, value in shifted.items()}
        row["mean of the shifts, top-1 %"] = round(100 * mean(shifted.values()), 2)
    return row


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.

BUDGET = Budget(epochs=5)


def _network(norms: str, classes: int) -> nn.Module:
    """The small ResNet with batch norm, IBN-a, IBN-b, or instance norm everywhere."""
    marks: Any = {"IBN-a": "a", "IBN-b": "b"}.get(norms)
    model = ResNet(num_classes=classes, ibn=marks, **SMALL)
    if norms == "IN":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, InstanceNorm(module.num_features))
    return model


def _compared(bench: Bench, *norms: str) -> dict[str, list[dict[str, float]]]:
    found = all_trained(bench, {name: partial(_network, name) for name in norms}, BUDGET, SHIFTS)
    for runs in found.values():
        for run in runs:
            run["shifted"] = sum(run[name] for name in SHIFTS) / len(SHIFTS)
    return found


@paper.claim(
    "c1", rule=at_least(-0.5), says="IBN-a at most 0.5 points below batch norm on unchanged test images, on every seed"
)
def accuracy_at_home(bench: Bench) -> Measured:
    found = _compared(bench, "IBN-a", "BN")
    return lead(bench, found, "IBN-a", "BN", BUDGET.words(bench), note="; points ahead of batch norm")


@paper.claim("c2", rule=at_least(3.0), says="IBN-b at least 3 points above batch norm, mean over five shifts, on every seed")
def accuracy_abroad(bench: Bench) -> Measured:
    """The rule judges the form that the paper recommends for unseen domains; IBN-a's lead stands beside it."""
    found = _compared(bench, "IBN-b", "IBN-a", "BN")
    plain = [run["shifted"] for run in found["BN"]]
    ahead = {name: [run["shifted"] - base for run, base in zip(found[name], plain)] for name in ("IBN-a", "IBN-b")}
    note = (
        "; mean over brighter, redder, contrast, colour cast and gamma; ahead of batch norm by "
        f"{mean(ahead['IBN-b']):+.2f} points with IBN-b and {mean(ahead['IBN-a']):+.2f} with IBN-a"
    )
    measured = lead(bench, found, "IBN-b", "BN", BUDGET.words(bench), of="shifted", note=note)
    shifted = {name: mean(run["shifted"] for run in runs) for name, runs in found.items()}
    return replace(measured, numbers={**measured.numbers, "shifted accuracy": shifted, "points ahead of BN": ahead})


@paper.claim(
    "c4", rule=at_least(0.5), says="instance norm everywhere at least 0.5 points below IBN-a and below batch norm on every seed"
)
def batch_norm_is_needed(bench: Bench) -> Measured:
    found = _compared(bench, "IBN-a", "BN", "IN")
    points = [min(a["top1"], plain["top1"]) - all_in["top1"] for a, plain, all_in in zip(*found.values())]
    note = "; points that instance norm alone loses against the lower of the other two"
    measured = lead(bench, found, "IBN-a", "IN", BUDGET.words(bench), note=note)
    return replace(measured, value=mean(points), per_seed=points)


def _only_instance_channels_stay(measured: Measured) -> bool:
    return at_most(1e-4)(measured) and measured.numbers["batch norm"] > 0.1


@paper.claim(
    "c3",
    rule=_only_instance_channels_stay,
    says="under gains and shifts per channel instance-normalised channels move by at most 0.0001, others by more than 0.1",
)
def invariance(bench: Bench) -> Measured:
    """Unit-scale maps, gains from 0.5 to 2 and shifts from -1 to 1 per image and channel."""
    worst, batch = 0.0, 0.0
    for seed in bench.seeds:
        generator = torch.Generator().manual_seed(seed)
        layer = InstanceBatchNorm(32).eval()
        x = torch.randn(8, 32, 16, 16, generator=generator)
        gain = 0.5 + 1.5 * torch.rand(8, 32, 1, 1, generator=generator)
        shift = 2 * torch.rand(8, 32, 1, 1, generator=generator) - 1
        with torch.no_grad():
            change = (layer(x) - layer(gain * x + shift)).abs().amax((0, 2, 3))
        worst, batch = max(worst, float(change[:16].max())), max(batch, float(change[16:].max()))
    return Measured(worst, "any", f"the batch-normalised channels move by up to {batch:.2f}", numbers={"batch norm": batch})


@paper.claim("c5", rule=equals(4), says="a small network of each of the four kinds learns a batch by heart")
def four_architectures(bench: Bench) -> Measured:
    small: dict[str, Any] = {
        "layers": (1, 1, 1, 1),
        "channels": (8, 12, 16, 20),
        "stem_width": 8,
        "ibn": "a",
        "num_classes": 4,
    }
    kinds: dict[str, Callable[[], nn.Module]] = {
        "ResNet": lambda: ResNet(**small),
        "ResNeXt": lambda: ResNet(**small, groups=4, base_width=16),
        "SENet": lambda: ResNet(**small, attention="se_linear"),
        "DenseNet": lambda: DenseNet(6, (3, 3, 3, 2), 12, num_classes=4, ibn=True),
    }
    losses = {name: _by_heart(build) for name, build in kinds.items()}
    learned = sum(after < 0.2 * before for before, after in losses.values())
    words = ", ".join(f"{name} {before:.2f} to {after:.2f}" for name, (before, after) in losses.items())
    return Measured(learned, "networks of 8 to 80 channels, 16 images", f"loss {words}", numbers=losses)


def _by_heart(build: Callable[[], nn.Module]) -> tuple[float, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = build().train(), torch.rand(16, 3, 64, 64)
    labels = torch.arange(16) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@paper.claim("c6", rule=equals(0.0), says="parameters and multiply-accumulates of all IBN-a networks equal the plain ones'")
def no_cost(bench: Bench) -> Measured:
    """In percent; instance norm has weights where batch norm has them, and no statistics. Time is not in the rule: at
    inference batch norm is a mere scale and shift, or nothing at all where a convolution takes it over."""
    extra = {}
    for name, entry in ENTRIES.items():
        if not name.endswith("_ibn_a"):
            continue
        without = {"ibn": False} if entry.network is DenseNet else {"ibn": None}
        plain, mixed = partial(entry.build, **without), partial(create, name)
        more_macs = giga_macs(mixed) / giga_macs(plain) - 1
        extra[name] = 100 * max(abs(more_macs), abs(millions(mixed) / millions(plain) - 1))
    times = _layer_milliseconds()
    words = ", ".join(f"{name} {value:.2f} ms" for name, value in times.items())
    detail = f"largest difference over {len(extra)} networks; time of the layer on a map of 64 x 56 x 56: {words}"
    return Measured(max(extra.values()), "any", detail, numbers={**extra, "milliseconds of the layer": times})


def _layer_milliseconds() -> dict[str, float]:
    x = torch.randn(1, 64, 56, 56, generator=torch.Generator().manual_seed(0))
    mixed = InstanceBatchNorm(64).eval()
    layers = {"batch norm": nn.BatchNorm2d(64).eval(), "IBN-a": mixed, "IBN-a prepared for inference": InstancePart(mixed)}
    with torch.inference_mode():
        times = alternate({name: partial(layer, x.clone()) for name, layer in layers.items()})
    return {name: round(1e3 * median(seconds), 3) for name, seconds in times.items()}
