"""VoVNet (1904.09730): dense features aggregated once, because memory traffic costs more than operations.

paperworks run vovnet                                digits, minutes on two cores
paperworks run vovnet --data FOLDER                  your own photos in class folders
paperworks run vovnet --recipe released --weights vovnet39_torchvision.pth
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import timm
import torch
from torch import nn

from paperworks.analysis.memory_traffic import activation_traffic, convolution_traffic
from paperworks.backbones.densenet import SIZES, DenseNet
from paperworks.backbones.registry import create
from paperworks.backbones.vovnet import ENTRIES, OneShotAggregation, VoVNet
from paperworks.paper import Bench, Measured, Recipe, at_least, equals
from paperworks.papers._classification import DIGITS, NetworkConfig
from paperworks.papers._recognition import check_variant, classic_imagenet, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import compared, inference, timing_table, timing_words

MILLIONS = {
    "vovnet27_slim": 3.526,
    "vovnet39": 22.600,
    "vovnet57": 36.640,
    "ese_vovnet19b_slim_dw": 1.898,
    "ese_vovnet19b_dw": 6.543,
    "ese_vovnet19b_slim": 3.166,
    "ese_vovnet39b": 24.569,
    "ese_vovnet57b": 38.609,
    "ese_vovnet99b": 63.199,
}

paper = recognition_paper("vovnet", [OneShotAggregation, VoVNet, convolution_traffic], ENTRIES, MILLIONS, "vovnet39")

SMALL: dict[str, Any] = {
    "stem_chs": [16, 16, 32],
    "stage_conv_chs": [16, 20, 24, 28],
    "stage_out_chs": [32, 64, 96, 128],
    "layer_per_block": 3,
    "stem_stride": 1,
}


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A narrow VoVNet in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 900 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("vovnet39", {**SMALL, "stem_stride": 1 if size <= 48 else 4})
    steps = steps or (900 if data in DIGITS else 2500)
    return Recipe(small_images(network, data, size, steps, seed), stages("VoVNet"))


@paper.recipe("paper")
def published(variant: str = "vovnet39", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """The published ImageNet training: 90 epochs of batch 256, steps at 30 and 60.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    config = classic_imagenet(variant, data, seed, micro_batch, epochs=90, milestones=(1 / 3, 2 / 3))
    return Recipe(config, stages("VoVNet"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


def _dense(depth: int) -> DenseNet:
    return DenseNet(**SIZES[depth])


def _traffic(build: Callable[[], nn.Module]) -> int:
    """Elements that the convolutions read and write besides weights, for one image of 224 pixels."""
    with torch.device("meta"):
        return activation_traffic(convolution_traffic(build(), torch.zeros(1, 3, 224, 224)))


@paper.claim(
    "c1",
    rule=at_least(2.4),
    says="DenseNet-161's inputs grow by the same number in every layer, and it moves 2.4 times VoVNet-39's activations",
)
def dense_traffic(bench: Bench) -> Measured:
    with torch.device("meta"):
        rows = convolution_traffic(_dense(161), torch.zeros(1, 3, 224, 224))
    inputs = [row.c_in for row in rows if row.kernel == 1][:6]
    growth = {after - before for before, after in pairwise(inputs)}
    ratio = _traffic(partial(_dense, 161)) / _traffic(partial(create, "vovnet39"))
    builds: dict[str, Callable[[], nn.Module]] = {
        "VoVNet-39": partial(create, "vovnet39"),
        "VoVNet-57": partial(create, "vovnet57"),
        "DenseNet-121": partial(_dense, 121),
        "DenseNet-161": partial(_dense, 161),
        "DenseNet-201": partial(_dense, 201),
        "ResNet-50": partial(timm.create_model, "resnet50"),
    }
    numbers = {name: _traffic(build) / 1e6 for name, build in builds.items()}
    words = ", ".join(f"{name} {value:.1f} M" for name, value in numbers.items())
    linear = len(growth) == 1
    detail = f"activations moved per image: {words}; growth of the first block's inputs {sorted(growth)} per layer"
    return Measured(ratio if linear else 0.0, "any", detail, numbers=numbers)


@paper.claim("c2", rule=equals(1), says="3x3 convolutions of a module after its first all have one number of input channels")
def constant_inputs(bench: Bench) -> Measured:
    with torch.device("meta"):
        model = VoVNet()
    widths: list[int] = []
    concatenations = 0
    for module in model.modules():
        if isinstance(module, OneShotAggregation):
            convs = [layer for layer in module.conv_mid.modules() if isinstance(layer, nn.Conv2d)]
            widths.append(len({conv.in_channels for conv in convs[1:]}))
            concatenations += 1
    traffic = _traffic(VoVNet) / 1e6
    detail = f"{concatenations} modules with one concatenation each; {traffic:.1f} M activations moved per image"
    return Measured(max(widths), "any", detail, numbers={"modules": concatenations, "activations (M)": traffic})


def _both(measured: Measured) -> bool:
    return at_least(1.4)(measured) and measured.numbers["against DenseNet-161"] >= 1.0


@paper.claim("c3", rule=_both, says="at least 1.4 times as fast as DenseNet-201, and not slower than DenseNet-161")
def faster(bench: Bench) -> Measured:
    """One image, inference, float32, the better memory layout of each network."""
    builds: dict[str, Callable[[], nn.Module]] = {
        "VoVNet-39": partial(create, "vovnet39"),
        "DenseNet-161": partial(timm.create_model, "densenet161"),
        "DenseNet-201": partial(timm.create_model, "densenet201"),
        "ResNet-50": partial(timm.create_model, "resnet50"),
    }
    works = {name: lambda layout, build=build: inference(build(), layout, batch=1) for name, build in builds.items()}
    repetitions = compared(bench, works)
    ratios = {
        name: [min(r[name].values()) / min(r["VoVNet-39"].values()) for r in repetitions]
        for name in builds
        if name != "VoVNet-39"
    }
    table = timing_table(repetitions)
    numbers: dict[str, Any] = {**table, **{f"against {name}": median(values) for name, values in ratios.items()}}
    scale = f"backbones on a CPU, {torch.get_num_threads()} threads, float32, one image of 224 pixels"
    detail = f"NCHW / channels-last: {timing_words(table)}; detectors on a GPU were not measured"
    return Measured(median(ratios["DenseNet-201"]), scale, detail, ratios["DenseNet-201"], list(bench.seeds), numbers)


@paper.claim(
    "c9", rule=equals(4), says="a slim and a large network, each under a one-stage and a two-stage detector, learn a batch"
)
def in_detectors(bench: Bench) -> Measured:
    learned = {}
    for name in ("vovnet27_slim", "vovnet57"):
        for kind in ("one-stage", "two-stage"):
            before, after = _detector_losses(name, kind)
            learned[f"{name}, {kind}"] = (round(before, 3), round(after, 3))
            bench.say(f"  {name} in a {kind} detector: loss {before:.3f} to {after:.3f}")
    works = sum(after < before for before, after in learned.values())
    words = ", ".join(f"{name} {before:.2f} to {after:.2f}" for name, (before, after) in learned.items())
    return Measured(works, "torchvision's RetinaNet and Faster R-CNN, two images, 6 steps", f"loss {words}", numbers=learned)


class _Pyramid(nn.Module):
    """The network's maps at 1/8, 1/16 and 1/32 as a feature pyramid."""

    def __init__(self, name: str):
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        body = create(name, num_classes=0)
        assert isinstance(body, VoVNet)
        self.body = body
        channels = [info["num_chs"] for info in self.body.feature_info[2:]]
        self.fpn = FeaturePyramidNetwork(channels, 64)
        self.out_channels = 64

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body.forward_intermediates(images, indices=3, intermediates_only=True)
        return self.fpn({str(number): value for number, value in enumerate(maps)})


def _detector_losses(name: str, kind: str) -> tuple[float, float]:
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes, ratios = ((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        common = {"min_size": 96, "max_size": 96}
        anchors = AnchorGenerator(sizes, ratios)
        if kind == "one-stage":
            detector: nn.Module = RetinaNet(_Pyramid(name), 3, anchor_generator=anchors, **common)
        else:
            from torchvision.ops import MultiScaleRoIAlign

            pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
            detector = FasterRCNN(_Pyramid(name), 3, rpn_anchor_generator=anchors, box_roi_pool=pool, **common)
        images = list(torch.rand(2, 3, 96, 96))
        boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [40.0, 30.0, 90.0, 80.0]])
        targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
        optimizer = torch.optim.SGD(detector.parameters(), lr=2e-3, momentum=0.9)
        losses = []
        for _ in range(6):
            loss = sum(detector.train()(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses[0], losses[-1]
