"""IBN-Net (1807.09441): instance and batch norm in one network, for accuracy and for unseen appearances.

paperworks run ibn-net                               digits, minutes on two cores; --kind b for the other form
paperworks run ibn-net --data FOLDER                 your own photos in class folders
paperworks run ibn-net --recipe released --weights resnet50_ibn_a-d9d0bb7b.pth
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones import densenet, resnet
from paperworks.backbones.densenet import DenseNet
from paperworks.backbones.registry import create
from paperworks.backbones.resnet import ResNet, ibn_from_plain
from paperworks.layers.instance_batch_norm import InstanceBatchNorm, InstanceNorm
from paperworks.paper import Bench, Measured, Recipe, at_least, at_most, equals
from paperworks.papers._classification import DIGITS, NetworkConfig
from paperworks.papers._recognition import check_variant, classic_imagenet, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import Budget, Shift, all_trained, giga_macs, lead, millions

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

parts = [InstanceBatchNorm, InstanceNorm, ResNet, DenseNet, ibn_from_plain]
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
    return Recipe(small_images(network, data, size, steps, seed), stages("IBN-Net"))


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


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.

BUDGET = Budget(epochs=5)


def _network(norms: str, classes: int) -> nn.Module:
    """The small ResNet with batch norm, IBN-a, IBN-b, or instance norm everywhere."""
    marks: Any = {"IBN-a": ("a", "a", "a", None), "IBN-b": ("b", "b", None, None)}.get(norms)
    model = ResNet(num_classes=classes, ibn=marks, **SMALL)
    if norms == "IN":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, InstanceNorm(module.num_features))
    return model


def _contrast(images: Tensor) -> Tensor:
    middle = images.mean((2, 3), keepdim=True)
    return (middle + 1.5 * (images - middle)).clamp(0, 1)


SHIFTS: Mapping[str, Shift] = {
    "brighter": lambda images: (images + 50 / 255).clamp(0, 1),
    "redder": lambda images: torch.cat((images[:, :1] + 50 / 255, images[:, 1:]), 1).clamp(0, 1),
    "contrast": _contrast,
    "colour cast": lambda images: images * images.new_tensor([0.6, 1.0, 0.8]).view(3, 1, 1),
    "gamma": lambda images: images.clamp(0, 1) ** 2,
}
"""the paper's photometric shifts (its table 5) and two more"""


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
    found = _compared(bench, "IBN-b", "IBN-a", "BN")
    note = "; mean over brighter, redder, contrast, colour cast and gamma; points that IBN-b is ahead of batch norm"
    return lead(bench, found, "IBN-b", "BN", BUDGET.words(bench), of="shifted", note=note)


@paper.claim("c4", rule=at_least(0.5), says="instance norm everywhere at least 0.5 points below IBN-a on every seed")
def batch_norm_is_needed(bench: Bench) -> Measured:
    found = _compared(bench, "IBN-a", "BN", "IN")
    return lead(bench, found, "IBN-a", "IN", BUDGET.words(bench), note="; points that instance norm alone loses")


@paper.claim(
    "c3", rule=at_most(1e-3), says="instance-normalised channels move by at most 0.001 under gains and shifts per channel"
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
    marks = ("a", "a", "a", None)
    small: dict[str, Any] = {
        "layers": (1, 1, 1, 1),
        "channels": (8, 12, 16, 20),
        "stem_width": 8,
        "ibn": marks,
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
    """In percent; instance norm has weights where batch norm has them, and no statistics."""
    extra = {}
    for name, entry in ENTRIES.items():
        if not name.endswith("_ibn_a"):
            continue
        without = {"ibn": False} if entry.network is DenseNet else {"ibn": None}
        plain, mixed = partial(entry.build, **without), partial(create, name)
        more_macs = giga_macs(mixed) / giga_macs(plain) - 1
        extra[name] = 100 * max(abs(more_macs), abs(millions(mixed) / millions(plain) - 1))
    return Measured(max(extra.values()), "any", f"largest difference over {len(extra)} networks", numbers=extra)
