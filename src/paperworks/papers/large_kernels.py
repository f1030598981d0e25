"""Large kernels (2410.08049): RepLKNet, the receptive field and shape bias of any network, and what kernel sizes change.

The network of the headline results is that of `unireplknet`.

paperworks run large-kernels                             a small RepLKNet on digits, minutes on two cores
paperworks run large-kernels --recipe receptive --networks unireplknet_a resnet18    receptive fields on your photos
paperworks run large-kernels --recipe released --variant replknet_31b --weights RepLKNet-31B_ImageNet-1K_224.pth
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from paperworks.analysis.counting import count_macs
from paperworks.analysis.receptive_field import effective_receptive_field
from paperworks.analysis.shape_bias import shape_bias
from paperworks.backbones.replknet import ENTRIES, LargeKernelBlock, RepLKNet
from paperworks.backbones.unireplknet import ENTRIES as UNIVERSAL
from paperworks.backbones.unireplknet import UniRepLKNet, UniRepLKNetBlock
from paperworks.layers.large_kernel import ReparamDepthwise
from paperworks.paper import Bench, Measured, Recipe, Stage, at_least, equals
from paperworks.papers import _receptive_report as receptive_stages
from paperworks.papers._classification import DIGITS, AugmentConfig, NetworkConfig
from paperworks.papers._large_kernel_claims import (
    RIVALS,
    TWIN,
    TWIN_BUDGET,
    field_claim,
    latency_claim,
    shape_claim,
    with_guidelines,
)
from paperworks.papers._recognition import check_variant, modern_imagenet, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import Budget, Build, all_trained, giga_macs, lead, millions
from paperworks.papers.unireplknet import same_architecture
from paperworks.training import OptimizerConfig, ScheduleConfig

MILLIONS = {"replknet_31b": 79.864, "replknet_31l": 172.671, "replknet_xl": 335.436}
"""in the form of training; merged, 31B has the 79.5 M that its authors print"""

paper = recognition_paper(
    "large-kernels",
    [RepLKNet, LargeKernelBlock, ReparamDepthwise, UniRepLKNet, effective_receptive_field, shape_bias],
    ENTRIES,
    MILLIONS,
    "replknet_31b",
)

SMALL: dict[str, Any] = {
    "large_kernel_sizes": [13, 9, 5],
    "layers": [1, 2, 1],
    "channels": [32, 64, 128],
    "small_kernel": 3,
    "stem_stride": 2,
}


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small RepLKNet in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 600 for the digits, 2000 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("replknet_31b", {**SMALL, "stem_stride": 2 if size <= 48 else 4})
    steps = steps or (600 if data in DIGITS else 2000)
    return Recipe(small_images(network, data, size, steps, seed), stages("RepLKNet"))


@paper.recipe("receptive")
def receptive(
    networks: tuple[str, ...] = ("unireplknet_a", "replknet_31b", "inceptionnext_atto", "resnet18"),
    data: str = "photos",
    size: int = 384,
    count: int = 3,
    seed: int = 0,
) -> Recipe:
    """Effective receptive fields of any networks on your images.

    Args:
        networks: names known here or to timm; NAME=FILE loads weights, others are random
        data: photos by default; a folder, a file or a name
        size: pixels of the squares cut from them
        count: of squares
        seed: of the squares and of random weights
    """
    config = receptive_stages.ReceptiveConfig(networks, data, size, count, seed)
    return Recipe(config, (Stage("measure", receptive_stages.measure), Stage("report", receptive_stages.write_report)))


@paper.recipe("paper")
def published(variant: str = "replknet_31b", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """RepLKNet's ImageNet training: 300 epochs of batch 2048.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    optimizer = OptimizerConfig("adamw", lr=4e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=10 / 300))
    augment = AugmentConfig("imagenet", magnitude=9.0, erase=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1)
    network = NetworkConfig(variant, {"drop_path_rate": 0.5})
    config = modern_imagenet(network, data, seed, micro_batch, optimizer, augment, epochs=300, batch=2048)
    return Recipe(config, stages("RepLKNet"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.

BUDGET = Budget(epochs=4)


def _few_large(classes: int, deploy: bool = False) -> nn.Module:
    return UniRepLKNet(num_classes=classes, kernel_sizes=(3, 13, 13), deploy=deploy, **TWIN)


def _more_small(classes: int, deploy: bool = False) -> nn.Module:
    """3x3 kernels only, and a block more."""
    return UniRepLKNet(num_classes=classes, kernel_sizes=(3, 3, 3), deploy=deploy, **{**TWIN, "depths": (1, 3, 1)})


@paper.claim("c1", rule=at_least(0.0), says="three 13x13 layers not below a deeper stack of 3x3 ones on every seed")
def few_large_kernels(bench: Bench) -> Measured:
    builds = {"few 13x13": _few_large, "more 3x3": _more_small}
    found = all_trained(bench, builds, TWIN_BUDGET)
    costs = []
    for name, build in builds.items():
        folded = partial(build, 10, deploy=True)
        costs.append(f"{name} {millions(folded):.3f} M parameters and {1e3 * giga_macs(folded, 32):.1f} M operations folded")
    return lead(bench, found, "few 13x13", "more 3x3", TWIN_BUDGET.words(bench), note=f"; {', '.join(costs)}")


class _WithoutShortcut(LargeKernelBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pw2(torch.relu(self.large_kernel(self.pw1(self.prelkb_bn(x)))))


def _small(classes: int, **changed: Any) -> nn.Module:
    return RepLKNet(num_classes=classes, **{**SMALL, **changed})


def _no_shortcut(classes: int) -> nn.Module:
    model = _small(classes)
    for module in model.modules():
        if isinstance(module, LargeKernelBlock):
            module.__class__ = _WithoutShortcut
    return model


@paper.claim("c2", rule=at_least(0.5), says="the identity shortcut is worth at least 0.5 points on every seed (guideline 2)")
def shortcut_is_vital(bench: Bench, budget: Budget = BUDGET) -> Measured:
    """Also counted: the share of the 13x13 depthwise layers in UniRepLKNet-T's operations (guideline 1). The points of
    guidelines 3 and 5 are among the numbers; the fourth, on tasks after classification, cannot be measured here."""
    builds: dict[str, Build] = {
        "shortcut": _small,
        "none": _no_shortcut,
        "no small kernel": partial(_small, small_kernel=None),
        "3x3 on small maps": partial(_small, large_kernel_sizes=[13, 9, 3]),
    }
    found = all_trained(bench, builds, budget)
    share = depthwise_share()
    note = f"; the 13x13 layers are {100 * share:.1f} % of UniRepLKNet-T's operations; points that the shortcut is ahead"
    measured = lead(bench, found, "shortcut", "none", budget.words(bench), note=note)
    pairs = {
        "2: identity shortcut over none": ("shortcut", "none"),
        "3: parallel small kernel over none": ("shortcut", "no small kernel"),
        "5: a kernel larger than the last map over 3x3": ("shortcut", "3x3 on small maps"),
    }
    return with_guidelines(measured, found, pairs)


def depthwise_share(name: str = "unireplknet_t") -> float:
    """Operations of the 13x13 depthwise layers over all, folded form at 224 pixels."""
    with torch.device("meta"):
        model = UNIVERSAL[name].build(deploy=True)
        image = torch.zeros(1, 3, 224, 224)
        total = count_macs(model, image)
        for module in model.modules():
            if isinstance(module, UniRepLKNetBlock) and getattr(module.dwconv, "kernel_size", None) == (13, 13):
                module.dwconv = nn.Identity()
        return 1 - count_macs(model, image) / total


@paper.claim("c6", rule=at_least(5.0), says="the area grows from 3 over 7 to 13 on every seed, at least five times in all")
def larger_fields(bench: Bench) -> Measured:
    return field_claim(bench)


def _above_zero(measured: Measured) -> bool:
    return all(points > 0 for points in measured.per_seed or [measured.value])


@paper.claim("c7", rule=_above_zero, says="shape bias with 13x13 kernels above that with 3x3 on every seed")
def more_shape_bias(bench: Bench) -> Measured:
    return shape_claim(bench)


@paper.claim("c8", rule=at_least(1.0), says="not slower than DeiT-S and Swin-T, each in its better layout")
def faster_than_transformers(bench: Bench) -> Measured:
    return latency_claim(bench, {name: RIVALS[name] for name in ("Swin-T", "DeiT-S")})


@paper.claim(
    "c9",
    rule=equals(1),
    says="one list of layers behind the first one for images, series, sound, points and video, and a step of training that "
    "lowers the loss on each",
)
def universal(bench: Bench) -> Measured:
    return same_architecture(bench)
