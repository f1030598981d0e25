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
from typing import Any, get_args

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from paperworks.analysis.memory_traffic import ConvolutionTraffic, activation_traffic, convolution_traffic
from paperworks.backbones.densenet import SIZES, DenseNet
from paperworks.backbones.detectors import Kind, make_detector
from paperworks.backbones.registry import create
from paperworks.backbones.vovnet import ENTRIES, OneShotAggregation, VoVNet
from paperworks.paper import Bench, Measured, Recipe, at_least, equals, value_above
from paperworks.papers._classification import DIGITS, NetworkConfig
from paperworks.papers._recognition import check_variant, classic_imagenet, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import compared, inference, timing_table, timing_words
from paperworks.papers._vovnet_detection_claims import STEPS_ON_A_BATCH, against, losses_on_a_batch

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

paper = recognition_paper(
    "vovnet", [OneShotAggregation, VoVNet, convolution_traffic, make_detector], ENTRIES, MILLIONS, "vovnet39"
)

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
    blocks: dict[int, list[int]] = {}
    for row, following in pairwise(rows):
        if (row.kernel, following.kernel) == (1, 3):  # the two convolutions of a layer; a transition has the first alone
            blocks.setdefault(row.h_in, []).append(row.c_in)
    growth = {after - before for inputs in blocks.values() for before, after in pairwise(inputs)}
    layers = sum(map(len, blocks.values()))
    ratio = _traffic(partial(_dense, 161)) / _traffic(partial(create, "vovnet39"))
    builds: dict[str, Callable[[], nn.Module]] = {
        "VoVNet-39": partial(create, "vovnet39"),
        "VoVNet-57": partial(create, "vovnet57"),
        "DenseNet-121": partial(_dense, 121),
        "DenseNet-161": partial(_dense, 161),
        "DenseNet-201": partial(_dense, 201),
        "ResNet-50": partial(timm.create_model, "resnet50"),
    }
    numbers: dict[str, Any] = {name: _traffic(build) / 1e6 for name, build in builds.items()}
    words = ", ".join(f"{name} {value:.1f} M" for name, value in numbers.items())
    numbers["input channels of DenseNet-161's layers"] = list(blocks.values())
    linear = len(growth) == 1 and [len(inputs) for inputs in blocks.values()] == list(SIZES[161]["block_config"])
    detail = f"activations moved per image: {words}; inputs of all {layers} layers grow by {sorted(growth)} channels"
    return Measured(ratio if linear else 0.0, "any", detail, numbers=numbers)


def _aggregates_once(measured: Measured) -> bool:
    numbers = measured.numbers
    once = numbers["concatenations"] == numbers["modules"] and numbers["parts of a concatenation"] == [6]
    return measured.value == 1 and once and numbers["difference from timm"] <= 1e-4


@paper.claim(
    "c2",
    rule=_aggregates_once,
    says="3x3 convolutions of a VoVNet-39 module after its first read one number of channels, each module concatenates once, "
    "six parts, and outputs differ from timm's class by at most 0.0001 of the largest",
)
def constant_inputs(bench: Bench) -> Measured:
    """Everything is counted in a forward pass; nothing is read from the modules but where the stem ends."""
    with torch.device("meta"):
        model = VoVNet().eval()
        image = torch.zeros(1, 3, 224, 224)
        with Concatenations() as seen, torch.no_grad():
            model(image)
        rows = convolution_traffic(model, image)
        dense = _dense(121).eval()
        with Concatenations() as dense_seen, torch.no_grad():
            dense(image)
    modules: list[list[ConvolutionTraffic]] = [[]]
    for row in rows[len(model.stem) :]:
        modules[-1].append(row)
        if row.kernel == 1:  # reads what was concatenated, and ends the module
            modules.append([])
    modules.pop()
    widths = max(len({row.c_in for row in module[1:-1]}) for module in modules)
    whole = all(module[-1].c_in == module[0].c_in + sum(row.c_out for row in module[:-1]) for module in modules)
    difference = max(_difference_from_timm(seed) for seed in bench.seeds)
    numbers: dict[str, Any] = {
        "modules": len(modules),
        "concatenations": len(seen.parts),
        "parts of a concatenation": sorted(set(seen.parts)),
        "concatenations of DenseNet-121": len(dense_seen.parts),
        "activations (M)": activation_traffic(rows) / 1e6,
        "channels, in and out": [[(row.c_in, row.c_out) for row in module] for module in modules],
        "difference from timm": difference,
    }
    detail = (
        f"{len(modules)} modules and {len(seen.parts)} concatenations (DenseNet-121: {len(dense_seen.parts)}), "
        f"{numbers['activations (M)']:.1f} M activations moved per image; from timm's class outputs differ by {difference:.1e}"
    )
    return Measured(widths if whole else 0, "any", detail, numbers=numbers)


class Concatenations(TorchDispatchMode):
    """Notes of every torch.cat that runs how many tensors it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.cat:
            self.parts.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def _difference_from_timm(seed: int) -> float:
    """Largest difference of logits, as a share of the largest, between a narrow network here and timm's with its weights."""
    from timm.models.vovnet import VovNet

    shape = {key: value for key, value in SMALL.items() if key != "stem_stride"} | {"block_per_stage": [1, 1, 2, 2]}
    options = {**shape, "residual": True, "depthwise": False, "attn": ""}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        theirs = VovNet(cfg=options, num_classes=10).eval()
        for name, tensor in theirs.state_dict().items():
            if name.endswith(("bn.weight", "running_var")):
                tensor.uniform_(0.8, 1.2)
            elif name.endswith(("bn.bias", "running_mean")):
                tensor.normal_(std=0.1)
        ours = VoVNet(**shape, num_classes=10).eval()
        ours.load_state_dict(theirs.state_dict())
        images = torch.rand(2, 3, 75, 61)
        expected = theirs(images)
        return float((ours(images) - expected).abs().max() / expected.abs().max())


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
    "c7", rule=at_least(-1), says="on every seed average precision at most a point below that of a DenseNet of equal parameters"
)
def better_detector(bench: Bench) -> Measured:
    return against(bench, "all", ("DenseNet",))


@paper.claim(
    "c8", rule=value_above(0), says="on small objects average precision above that of a DenseNet and of a ResNet, mean of seeds"
)
def small_objects(bench: Bench) -> Measured:
    return against(bench, "small", ("DenseNet", "ResNet"))


@paper.claim(
    "c9",
    rule=equals(4),
    says="a slim and a large network, each under a one-stage and a two-stage detector, lower the loss on a batch by a fifth",
)
def in_detectors(bench: Bench) -> Measured:
    learned = {}
    for name in ("vovnet27_slim", "vovnet57"):
        for kind in get_args(Kind):
            before, after = losses_on_a_batch(name, kind)
            learned[f"{name}, {kind}"] = (round(before, 3), round(after, 3))
            bench.say(f"  {name} in a {kind} detector: loss {before:.3f} to {after:.3f}")
    works = sum(after <= 0.8 * before for before, after in learned.values())
    words = ", ".join(f"{name} {before:.2f} to {after:.2f}" for name, (before, after) in learned.items())
    scale = f"torchvision's RetinaNet and Faster R-CNN, two images, {STEPS_ON_A_BATCH} steps"
    return Measured(works, scale, f"loss {words}", numbers=learned)
