"""What the claims of GroupMamba are measured with: counted mixers and rivals, scans timed over map sizes, small networks
trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.analysis.timing import alternate
from paperworks.backbones.cifar import CifarResNet
from paperworks.backbones.groupmamba import Block, ClassBlock, GroupMamba, GroupMambaLayer
from paperworks.backbones.registry import create
from paperworks.data import Mix, Transformed
from paperworks.data.transforms import train_shift
from paperworks.layers.cross_scan import CrossScan, GroupScan
from paperworks.objectives.classify import Classify
from paperworks.objectives.distillation import Distilled
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._classification import DIGITS
from paperworks.papers._recognition_claims import (
    Budget,
    _accuracy,
    all_trained,
    lead,
    millions,
    test_images,
    trained,
    training_images,
)
from paperworks.training import fit

# --- counted ----------------------------------------------------------------------------------------------------------------

RIVALS = {"VMamba-T (2, 2, 5, 2)": ((2, 2, 5, 2), 2), "VMamba-T (2, 2, 8, 2)": ((2, 2, 8, 2), 1)}
"""depths and expansion of the public four-direction network of that class, in its two published forms"""


def vmamba_parameters(depths: Sequence[int], expand: int, dims: Sequence[int] = (96, 192, 384, 768)) -> int:
    """Of VMamba's second version (2401.10166): two 3x3 convolutions as stem, 3x3 convolutions between stages, SS2D without gate
    and with one number of state, MLPs of four times the width, a classifier of 1000 classes."""
    total = (9 * 3 + 3) * 48 + (9 * 48 + 3) * dims[0]
    for index, (depth, dim) in enumerate(zip(depths, dims)):
        inner, rank = expand * dim, math.ceil(dim / 16)
        # projections, depthwise convolution, four directions of (token, step, step bias, A, D), norm
        mixer = 2 * dim * inner + 9 * inner + 4 * ((rank + 2) * inner + rank * inner + 3 * inner) + 2 * inner
        total += depth * (mixer + 8 * dim * dim + 5 * dim + 4 * dim)
        if index + 1 < len(dims):
            total += (9 * dim + 3) * dims[index + 1]
    return total + 2 * dims[-1] + (dims[-1] + 1) * 1000


def saving(bench: Bench) -> Measured:
    """Parameters of GroupMamba-Tiny against the larger VMamba-T, one classifier each."""
    ours = millions(lambda: create("groupmamba_tiny", distillation=False))
    rivals = {name: vmamba_parameters(*arguments) / 1e6 for name, arguments in RIVALS.items()}
    savings = {name: 100 * (1 - ours / value) for name, value in rivals.items()}
    first = next(iter(rivals))
    words = ", ".join(f"{name} {value:.2f} M ({savings[name]:.1f} % saved)" for name, value in rivals.items())
    detail = f"{ours:.2f} M with one classifier against {words}; the abstract does not name its rival"
    return Measured(savings[first], "any", detail, numbers={"ours": ours, "rivals": rivals, "savings": savings})


def mixers(bench: Bench) -> Measured:
    """The four groups of every layer of Tiny against all channels in four directions: parameters, and channels x directions
    scanned per token."""
    rows: dict[str, dict[str, float]] = {}
    with torch.device("meta"):
        network = create("groupmamba_tiny")
        layers = [module for module in network.modules() if isinstance(module, GroupMambaLayer)]
        dims = [layer.proj.in_features for layer in layers]
        for dim in sorted(set(dims)):
            rows[str(dim)] = {
                "layers": dims.count(dim),
                "grouped parameters": count_parameters(GroupScan(dim)),
                "four-direction parameters": count_parameters(CrossScan(dim)),
                "grouped MACs a token": count_macs(GroupScan(dim), torch.zeros(1, 1, 1, dim)),
                "four-direction MACs a token": count_macs(CrossScan(dim), torch.zeros(1, 1, 1, dim)),
                "grouped scans": dim,
                "four-direction scans": 4 * dim,
            }
    totals = {
        kind: sum(row["layers"] * row[f"four-direction {kind}"] for row in rows.values())
        / sum(row["layers"] * row[f"grouped {kind}"] for row in rows.values())
        for kind in ("parameters", "MACs a token", "scans")
    }
    words = ", ".join(f"{kind} {ratio:.2f} times" for kind, ratio in totals.items())
    detail = f"scanning parts of Tiny's mixers, with all channels in four directions instead: {words}"
    return Measured(totals["parameters"], "any", detail, numbers={"by width": rows, "ratios": totals}, unit="x")


def growth(bench: Bench) -> Measured:
    """Time of a group scan of 64 channels over maps of 196, 784 and 3136 positions; operations are counted."""
    sides = (14, 28, 56)
    layer = GroupScan(64).eval()
    works: dict[int, Callable[[], Tensor]] = {side * side: _work(layer, torch.rand(1, side, side, 64)) for side in sides}
    times = {length: median(values) for length, values in alternate(works, rounds=9, warmup=2).items()}
    with torch.device("meta"):
        macs = {side * side: count_macs(GroupScan(64), torch.zeros(1, side, side, 64)) for side in sides}
    lengths = list(works)
    steps = [times[longer] / times[shorter] for shorter, longer in pairwise(lengths)]
    counted = [macs[longer] / macs[shorter] for shorter, longer in pairwise(lengths)]
    words = ", ".join(f"{length} positions {1e3 * seconds:.2f} ms" for length, seconds in times.items())
    numbers = {"milliseconds": {str(k): 1e3 * v for k, v in times.items()}, "time": steps, "operations": counted}
    detail = f"{words}; the value is the largest growth of time when the length grows four times (a square would be 16)"
    return Measured(max(steps), f"one layer, float32, {torch.get_num_threads()} threads", detail, numbers=numbers, unit="x")


def _work(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return run


# --- trained ----------------------------------------------------------------------------------------------------------------

BUDGET = Budget(images=4000, test_images=1000, epochs=5, lr=2e-3)
FEW = Budget(images=1000, test_images=1000, epochs=10, lr=2e-3)
"""for distillation: so few that the teacher has something to add"""

SMALL: dict[str, Any] = {
    "stem_hidden_dim": 16,
    "embed_dims": (32, 64),
    "mlp_ratios": (4, 4),
    "depths": (2, 2),
    "stem_strides": (2, 1),
    "distillation": False,
}


def grouped(classes: int) -> nn.Module:
    return GroupMamba(**SMALL, num_classes=classes)


def one_direction(classes: int) -> nn.Module:
    return GroupMamba(**SMALL, directions=(1, 1, 1, 1), num_classes=classes)


def without_affinity(classes: int) -> nn.Module:
    return GroupMamba(**SMALL, affinity=False, num_classes=classes)


class CrossLayer(nn.Module):
    """Norm and all channels in four directions: the mixer of a VSS block."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scan = CrossScan(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.scan(self.norm(x))


def four_directions(classes: int) -> nn.Module:
    """Every mixer with all channels in all directions; narrower, so that parameters are equal."""
    network = GroupMamba(**{**SMALL, "embed_dims": (28, 60)}, num_classes=classes)
    for module in network.modules():
        attn = getattr(module, "attn", None)
        if isinstance(attn, GroupMambaLayer) and isinstance(module, Block | ClassBlock):
            module.attn = CrossLayer(attn.proj.in_features)
    return network


def keeps_accuracy(bench: Bench) -> Measured:
    builds = {"four grouped directions": grouped, "one direction": one_direction, "all in four directions": four_directions}
    found = all_trained(bench, builds, BUDGET)
    sizes = ", ".join(f"{name} {1e3 * millions(partial(build, 10)):.0f} thousand" for name, build in builds.items())
    note = f"; parameters: {sizes}; points ahead of one direction"
    measured = lead(bench, found, "four grouped directions", "one direction", BUDGET.words(bench), note=note)
    behind = [b["top1"] - a["top1"] for a, b in zip(found["four grouped directions"], found["all in four directions"])]
    measured.numbers = {**measured.numbers, "points behind all in four directions": mean(behind)}
    return measured


def modulation_helps(bench: Bench) -> Measured:
    found = all_trained(bench, {"four grouped directions": grouped, "without affinity": without_affinity}, BUDGET)
    return lead(bench, found, "four grouped directions", "without affinity", BUDGET.words(bench), note="; points of affinity")


def distillation_gains(bench: Bench) -> Measured:
    """A student with two classifiers, taught by a small residual network that learned from the same images, or by labels
    alone."""
    found: dict[str, list[dict[str, float]]] = {"distilled": [], "labels alone": [], "teacher": []}
    for seed in bench.seeds:
        found["teacher"].append(trained(bench, "few, teacher", seed, teacher, FEW))
        found["labels alone"].append(trained(bench, "few, labels alone", seed, grouped, FEW))
        found["distilled"].append(_distilled(bench, seed))
    return lead(bench, found, "distilled", "labels alone", FEW.words(bench), note="; points gained by distillation")


def teacher(classes: int) -> nn.Module:
    return CifarResNet(20, classes)


def _distilled(bench: Bench, seed: int) -> dict[str, float]:
    """As `trained`, with the teacher of the same seed."""
    folder = bench.folder / f"few, distilled-{seed}"
    result = folder / "accuracy.json"
    if result.is_file():
        return json.loads(result.read_text())
    source, test = training_images(bench, FEW), test_images(bench, FEW)
    assert source.classes is not None
    classes = len(source.classes)
    data = Transformed(source, train_shift(32, pad=4, flip=bench.data not in DIGITS), seed=seed)
    mix = Mix(classes, mixup=0.0, cutmix=0.0, smoothing=FEW.smoothing)
    config = FEW.config(len(source), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        knows = Classify(teacher(classes))
        torch.manual_seed(seed)
        student = GroupMamba(**{**SMALL, "distillation": True}, num_classes=classes)
    # trained before under the same name, so this only reads it
    fit(knows, data, config, bench.folder / f"few, teacher-{seed}", batch_transform=mix, label=f"teacher, seed {seed}")
    objective = Distilled(student, knows.model)
    fitted = fit(objective, data, config, folder, batch_transform=mix, label=f"distilled, seed {seed}")
    numbers = {"top1": _accuracy(objective, test, classes, None), "milliseconds": 1e3 * fitted.seconds / fitted.step}
    write_json(result, numbers)
    bench.say(f"distilled, seed {seed}: top1 {numbers['top1']:.4g}")
    return numbers
