"""TiC (2310.04134): attention under a sliding kernel, so that one network takes images of any size.

paperworks run tic                               digits, minutes on two cores
paperworks run tic --data FOLDER                 your own photos in class folders
paperworks evaluate runs/tic --size 64           the same weights at another size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from paperworks.analysis.timing import seconds
from paperworks.backbones.tic import ENTRIES, TiC, TiCBlock
from paperworks.layers.msa_conv import MSAConv2d, MSAConvLayer, Pair, window_mix, window_scores
from paperworks.paper import Bench, Measured, Recipe, at_least, at_most, equals
from paperworks.papers._classification import DIGITS, AugmentConfig, NetworkConfig
from paperworks.papers._recognition import check_variant, modern_imagenet, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import Budget, all_trained, lead
from paperworks.training import OptimizerConfig, ScheduleConfig

MILLIONS: dict[str, float] = {}
"""the paper's sizes could not be verified, so none is claimed; `paperworks show tic` prints ours"""

paper = recognition_paper("tic", [MSAConv2d, MSAConvLayer, TiCBlock, TiC], ENTRIES, MILLIONS, "tic_tiny")

SMALL: dict[str, Any] = {
    "depths": [2, 3],
    "dims": [48, 96],
    "heads": [3, 6],
    "kernel_sizes": [3, 3],
    "dilations": [1, 1],
    "mlp_ratio": 2.0,
}


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small TiC in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 1800 for the digits, 3000 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("tic_tiny", {**SMALL, "patch_size": 4 if size <= 64 else 8})
    steps = steps or (1800 if data in DIGITS else 3000)
    return Recipe(small_images(network, data, size, steps, seed), stages("TiC"))


@paper.recipe("paper")
def published(variant: str = "tic_tiny", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """ImageNet training as hierarchical transformers are trained; the authors published no recipe, this one is ours.

    Args:
        variant: a network of ours
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    optimizer = OptimizerConfig("adamw", lr=1e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=20 / 300))
    augment = AugmentConfig("imagenet", magnitude=9.0, erase=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1)
    network = NetworkConfig(variant, {"drop_path_rate": 0.2})
    config = modern_imagenet(network, data, seed, micro_batch, optimizer, augment, epochs=300, batch=1024, clip=5.0)
    return Recipe(config, stages("TiC"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.

BUDGET = Budget(epochs=6, lr=2e-3)


def _network(classes: int, **changes: Any) -> TiC:
    return TiC(num_classes=classes, **{**SMALL, "patch_size": 4, **changes})


def _random(model: TiC, seed: int) -> TiC:
    """Weights large enough that differences show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * fan**-0.5)
    return model.eval()


@paper.claim(
    "c1", rule=at_most(1e-5), says="five sizes run; a crop and the image around it agree inside to 1e-5 of the largest"
)
def any_size(bench: Bench) -> Measured:
    """Without shifts and pooling, which see the whole map, away from the border that the kernels reach."""
    sizes = ((32, 32), (48, 64), (33, 71), (96, 32), (128, 160))
    model = _random(_network(5), 0)
    with torch.no_grad():
        shapes = [tuple(model(torch.rand(1, 3, *size)).shape) for size in sizes]
        plain = _random(_network(5, shift=0, pool=1), 0)
        generator = torch.Generator().manual_seed(0)
        large = torch.rand(1, 3, 192, 192, generator=generator)
        inside = plain.forward_features(large[:, :, 32:160, 32:160])
        around = plain.forward_features(large)[:, :, 4:20, 4:20]
        reach = 4  # cells of the last map: two blocks of 3x3 on maps of 4 pixels, three on maps of 8
        ours, theirs = (part[:, :, reach:-reach, reach:-reach] for part in (inside, around))
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    works = shapes == [(1, 5)] * len(sizes)
    detail = f"sizes {', '.join(f'{h}x{w}' for h, w in sizes)} with one set of weights; compared {tuple(ours.shape[2:])} cells"
    return Measured(difference if works else 1.0, "any", detail, numbers={"difference": difference})


@paper.claim("c2", rule=equals(1), says="a ViT with a table of positions refuses another size, ours takes it")
def fixed_sizes(bench: Bench) -> Measured:
    """SAM itself is not run."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    ours = _network(5).eval()
    refused = False
    with torch.no_grad():
        try:
            vit(torch.rand(1, 3, 256, 320))
        except AssertionError:
            refused = True
        takes = tuple(ours(torch.rand(1, 3, 256, 320)).shape) == (1, 5)
    return Measured(int(refused and takes), "any", "a 224-pixel ViT and our network, images of 256x320", unit="of 1")


class _Products(TorchDispatchMode):
    """Counts multiplications of whole maps and of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in ("mul", "addcmul"):
            self.count += out.numel()
        elif name in ("bmm", "mm"):
            self.count += out.numel() * args[0].shape[-1]
        return out


@contextmanager
def _counted() -> Iterator[_Products]:
    with _Products() as tally, torch.no_grad():
        yield tally


def _window_cost(channels: int, side: int, kernel: int) -> int:
    x = torch.zeros(1, channels, side, side)
    with _counted() as tally:
        window_mix(window_scores(x, x, (kernel, kernel)), x, (kernel, kernel))
    return tally.count


def _global_cost(channels: int, side: int) -> int:
    x = torch.zeros(1, side * side, channels)
    with _counted() as tally:
        torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)
    return tally.count


@paper.claim(
    "c3", rule=equals(1), says="counted products equal 2 C K^2 H W and 2 C (H W)^2; twice the side costs 4 and 16 times"
)
def linear_cost(bench: Bench) -> Measured:
    channels, kernel, sides = 8, 7, (14, 28, 56)
    windows = [_window_cost(channels, side, kernel) for side in sides]
    everything = [_global_cost(channels, side) for side in sides]
    exact = all(count == 2 * channels * kernel**2 * side**2 for count, side in zip(windows, sides))
    exact &= all(count == 2 * channels * side**4 for count, side in zip(everything, sides))
    grows = [b / a for a, b in pairwise(windows)], [b / a for a, b in pairwise(everything)]
    times = []
    for side in (56, 112):
        x = torch.rand(1, 64, side, side)
        work = partial(_forward, x, kernel)
        work()
        times.append(min(seconds(work) for _ in range(5)))
    numbers = {"windows": windows, "global": everything, "growth": grows, "time for twice the side": times[1] / times[0]}
    detail = (
        f"at 56x56, 7x7: 1/{everything[-1] / windows[-1]:.0f} of global attention; "
        f"twice the side takes {times[1] / times[0]:.1f} times as long here"
    )
    holds = exact and grows == ([4.0, 4.0], [16.0, 16.0])
    return Measured(int(holds), "any", detail, numbers=numbers)


@torch.no_grad()
def _forward(x: Tensor, kernel: int) -> Tensor:
    return window_mix(window_scores(x, x, (kernel, kernel)).softmax(1), x, (kernel, kernel))


def unfolded(query: Tensor, key: Tensor, value: Tensor, kernel: Pair, dilation: int) -> Tensor:
    """The same attention through im2col, with everything in memory: what ours is compared with."""
    batch, channels, height, width = query.shape
    padding = tuple(dilation * (size - 1) // 2 for size in kernel)

    def columns(x: Tensor) -> Tensor:
        return F.unfold(x, kernel, dilation, padding).view(batch, channels, kernel[0] * kernel[1], height, width)

    weights = (query[:, :, None] * columns(key)).sum(1).softmax(1)
    return (weights[:, None] * columns(value)).sum(2)


@paper.claim("c4", rule=at_most(1e-5), says="outputs and gradients of all forms within 1e-5 of an unfolded reference")
def one_operator(bench: Bench) -> Measured:
    forms: dict[str, tuple[Pair, int, int]] = {
        "standard 3x3": ((3, 3), 1, 6),
        "standard 7x3": ((7, 3), 1, 6),
        "dilated 3x3": ((3, 3), 3, 6),
        "dilated 5x1": ((5, 1), 2, 6),
        "depthwise 5x5": ((5, 5), 1, 1),
        "depthwise dilated 3x1": ((3, 1), 2, 1),
    }
    errors = {}
    for name, (kernel, dilation, channels) in forms.items():
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(4, channels, 11, 9, generator=generator, requires_grad=True) for _ in range(3)]
        found = []
        for work in (shifted_views, unfolded):
            out = work(given[0], given[1], given[2], kernel, dilation)
            parts = [out, *torch.autograd.grad(out.square().sum(), given)]
            found.append([part.detach() for part in parts])
        errors[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found))
    return Measured(max(errors.values()), "any", f"worst of {', '.join(forms)}", numbers=errors)


def shifted_views(query: Tensor, key: Tensor, value: Tensor, kernel: Pair, dilation: int) -> Tensor:
    return window_mix(window_scores(query, key, kernel, dilation).softmax(1), value, kernel, dilation)


def _ablation(bench: Bench, other: str, changes: dict[str, Any], note: str) -> Measured:
    builds: dict[str, Callable[[int], nn.Module]] = {"TiC": _network, other: partial(_network, **changes)}
    found = all_trained(bench, builds, BUDGET)
    return lead(bench, found, "TiC", other, BUDGET.words(bench), note=note)


@paper.claim("c5", rule=at_least(0.0), says="MSA-Conv above a depthwise convolution of the same kernel, more than the spread")
def attention_helps(bench: Bench) -> Measured:
    """Widths of the perceptrons make the parameters equal to within a few per cent."""
    changes: dict[str, Any] = {"mixing": "convolution", "mlp_ratio": 3.5, "shift": 0, "pool": 1}
    builds: dict[str, Callable[[int], nn.Module]] = {
        "MSA-Conv": partial(_network, shift=0, pool=1),
        "convolution": partial(_network, **changes),
    }
    found = all_trained(bench, builds, BUDGET)
    measured = lead(bench, found, "MSA-Conv", "convolution", BUDGET.words(bench), note="; neither shifts nor pools")
    points = list(measured.per_seed or [])
    spread = max(points) - min(points)
    return Measured(
        mean(points) - spread,
        measured.scale,
        f"{measured.detail}; mean lead {mean(points):.2f}, spread {spread:.2f} points: the number is their difference",
        (),
        list(bench.seeds),
        measured.numbers,
        "points",
    )


@paper.claim("c6", rule=at_least(0.5), says="with the cyclic shift at least 0.5 points above without, on every seed")
def shift_helps(bench: Bench) -> Measured:
    return _ablation(bench, "no shift", {"shift": 0}, "; points that shifts add")


@paper.claim("c7", rule=at_least(0.5), says="with inter-pooling at least 0.5 points above without, on every seed")
def pooling_helps(bench: Bench) -> Measured:
    return _ablation(bench, "no pooling", {"pool": 1}, "; points that pooling adds; its placing is our reading")


def _support(**changes: Any) -> int:
    """Pixels that move the middle cell of the first stage's map."""
    model = _random(TiC(num_classes=0, depths=(2,), dims=(16,), heads=(2,), kernel_sizes=(3,), dilations=(1,), patch_size=1,
                        **changes), 0)  # fmt: skip
    image = torch.rand(1, 3, 33, 33, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    features = model.forward_features(image)
    (gradient,) = torch.autograd.grad(features[0, :, 16, 16].square().sum(), image)
    return int((gradient.abs().sum(1) > 0).sum())


def _grows(measured: Measured) -> bool:
    found = measured.numbers
    single = found["shift"], found["pooling"]
    return found["neither"] < min(single) and max(single) < found["both"]


@paper.claim("c8", rule=_grows, says="shifts and pooling each widen what one position sees, and together most of all")
def wider_reach(bench: Bench) -> Measured:
    found = {
        "neither": _support(shift=0, pool=1),
        "shift": _support(shift=5, pool=1),
        "pooling": _support(shift=0, pool=2),
        "both": _support(shift=5, pool=2),
    }
    words = ", ".join(f"{name} {count}" for name, count in found.items())
    return Measured(found["both"], "two blocks of 3x3", f"positions reached: {words}", numbers=found)
