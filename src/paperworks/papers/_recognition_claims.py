"""What claims of recognition networks are measured with: small networks trained under one budget, and times taken in turns.

Trained results stay in the claim's folder, so an interrupted check goes on with the next network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.analysis.timing import alternate
from paperworks.data import ImageSource, Mix, Transformed, open_images
from paperworks.data.transforms import to_float, train_shift
from paperworks.objectives.classify import Classify, score
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._classification import DIGITS, _some, evaluation_transform, in_order
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}

Build = Callable[[int], nn.Module]
"""number of classes -> a network for 32-pixel images of three channels"""
Shift = Callable[[Tensor], Tensor]
"""images [N, 3, H, W] in [0, 1] -> the same, as another domain shows them"""


# --- counted ----------------------------------------------------------------------------------------------------------


def millions(build: Callable[[], nn.Module]) -> float:
    """Parameters in millions; nothing is allocated."""
    with torch.device("meta"):
        return count_parameters(build()) / 1e6


def giga_macs(build: Callable[[], nn.Module], size: int = 224) -> float:
    """Multiply-accumulates of one image in 1e9; nothing is computed."""
    with torch.device("meta"):
        return count_macs(build(), torch.zeros(1, 3, size, size)) / 1e9


# --- trained ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What every side of a comparison gets."""

    images: int = 10_000
    """of training at most; the embedded digits are 4,000"""
    test_images: int = 5_000
    epochs: float = 8
    batch: int = 64
    lr: float = 3e-3
    decay: float = 0.05
    smoothing: float = 0.1
    drop_rates: float = 0.0

    def config(self, images: int, seed: int) -> TrainConfig:
        batch = min(self.batch, images)
        steps = max(1, round(self.epochs * images / batch))
        schedule = ScheduleConfig("cosine", warmup=0.1)
        optimizer = OptimizerConfig("adamw", lr=self.lr, weight_decay=self.decay, schedule=schedule)
        return TrainConfig(steps, batch, optimizers={"main": optimizer}, clip=5.0, seed=seed, channels_last=True)

    def words(self, bench: Bench) -> str:
        """The scale that is printed with the result."""
        count = min(self.images, len(training_images(bench, self)))
        return f"{count} images of {bench.data}, 32 pixels, {self.epochs:g} epochs, {len(bench.seeds)} seeds"


def training_images(bench: Bench, budget: Budget) -> ImageSource:
    return _some(open_images(bench.data, split="train", labels="required", channels=3), budget.images)


def test_images(bench: Bench, budget: Budget) -> ImageSource:
    return _some(open_images(bench.data, split="test", labels="required", channels=3), budget.test_images)


def some_images(bench: Bench, budget: Budget, count: int) -> Tensor:
    """Test images [count, 3, 32, 32] in [0, 1], evenly spread over the set."""
    batches = in_order(_some(test_images(bench, budget), count), evaluation_transform(32, 1.0, "shift"))
    return torch.cat([to_float(batch["image"]) for batch in batches])


def trained(
    bench: Bench, name: str, seed: int, build: Build, budget: Budget, shifts: Mapping[str, Shift] | None = None
) -> dict[str, float]:
    """Top-1 in percent on the test images ("top1") and on shifted ones (by their names), and "milliseconds" per step."""
    folder = bench.folder / f"{name}-{seed}"
    result = folder / "accuracy.json"
    if result.is_file():
        return json.loads(result.read_text())
    objective, milliseconds = fitted(bench, name, seed, build, budget)
    test, classes = test_images(bench, budget), len(training_images(bench, budget).classes or ())
    numbers = {"top1": _accuracy(objective, test, classes, None), "milliseconds": milliseconds}
    numbers |= {kind: _accuracy(objective, test, classes, shift) for kind, shift in (shifts or {}).items()}
    write_json(result, numbers)
    bench.say(f"{name}, seed {seed}: " + ", ".join(f"{kind} {value:.4g}" for kind, value in numbers.items()))
    return numbers


def fitted(bench: Bench, name: str, seed: int, build: Build, budget: Budget) -> tuple[Classify, float]:
    """The network in evaluation mode, trained or, where that was done before, read from its folder; milliseconds per step."""
    source = training_images(bench, budget)
    assert source.classes is not None
    classes = len(source.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = Classify(build(classes))
    data = Transformed(source, train_shift(32, pad=4, flip=bench.data not in DIGITS), seed=seed)
    mix = Mix(classes, mixup=0.0, cutmix=0.0, smoothing=budget.smoothing)
    config, folder = budget.config(len(source), seed), bench.folder / f"{name}-{seed}"
    found = fit(objective, data, config, folder, batch_transform=mix, label=f"{name}, seed {seed}")
    return objective, 1e3 * found.seconds / found.step


def _accuracy(objective: Classify, test: ImageSource, classes: int, shift: Shift | None) -> float:
    def logits(images: Tensor) -> Tensor:
        return objective.logits(images if shift is None else shift(images))

    objective.eval()
    return 100 * score(logits, in_order(test, evaluation_transform(32, 1.0, "shift")), classes).top1


def all_trained(
    bench: Bench, builds: Mapping[str, Build], budget: Budget, shifts: Mapping[str, Shift] | None = None
) -> dict[str, list[dict[str, float]]]:
    """Every network with one seed, then with the next: what slows the machine slows all of them."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
    for seed in bench.seeds:
        for name, build in builds.items():
            found[name].append(trained(bench, name, seed, build, budget, shifts))
    return found


def lead(
    bench: Bench,
    found: Mapping[str, Sequence[Mapping[str, float]]],
    better: str,
    worse: str,
    scale: str,
    *,
    of: str = "top1",
    note: str = "",
) -> Measured:
    """Points of accuracy by which `better` is ahead of `worse`, per seed."""
    points = [a[of] - b[of] for a, b in zip(found[better], found[worse])]
    means = {name: round(mean(run[of] for run in runs), 3) for name, runs in found.items()}
    times = {name: round(median([run["milliseconds"] for run in runs]), 1) for name, runs in found.items()}
    words = ", ".join(f"{name} {means[name]:.2f} %" for name in found)
    numbers = {"accuracy": means, "milliseconds a step": times, "runs": {name: list(runs) for name, runs in found.items()}}
    return Measured(mean(points), scale, f"{words}{note}", points, list(bench.seeds), numbers, "points")


# --- timed ------------------------------------------------------------------------------------------------------------


def training_step(model: nn.Module, layout: torch.memory_format, batch: int = 2, pixels: int = 224) -> Callable[[], None]:
    """Forward, backward and SGD on random images."""
    model = model.train().to(memory_format=layout)
    images = torch.rand(batch, 3, pixels, pixels).contiguous(memory_format=layout)
    labels = torch.arange(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def inference(
    model: nn.Module,
    layout: torch.memory_format,
    batch: int = 2,
    pixels: int = 224,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], Tensor]:
    model = model.eval().to(dtype).to(memory_format=layout)
    images = torch.rand(batch, 3, pixels, pixels, dtype=dtype).contiguous(memory_format=layout)

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def compared(
    bench: Bench, works: Mapping[str, Callable[[torch.memory_format], Callable[[], Any]]], rounds: int = 5
) -> list[dict[str, dict[str, float]]]:
    """Per repetition, name and layout: median seconds. All works of a repetition take turns."""
    found = []
    for seed in bench.seeds:
        torch.manual_seed(seed)
        ready = {(name, layout): make(LAYOUTS[layout]) for name, make in works.items() for layout in LAYOUTS}
        medians: dict[str, dict[str, float]] = {name: {} for name in works}
        for (name, layout), seconds in alternate(ready, rounds, warmup=1).items():
            medians[name][layout] = median(seconds)
        bench.say("  ".join(f"{name} {in_milliseconds(layouts)}" for name, layouts in medians.items()))
        found.append(medians)
    return found


def in_milliseconds(layouts: Mapping[str, float]) -> str:
    return " / ".join(f"{1e3 * seconds:.0f}" for seconds in layouts.values()) + " ms"


def timing_table(repetitions: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Median milliseconds over the repetitions."""
    return {
        name: {layout: round(1e3 * median([r[name][layout] for r in repetitions]), 1) for layout in LAYOUTS}
        for name in repetitions[0]
    }


def timing_words(table: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(f"{name} {in_milliseconds({k: v / 1e3 for k, v in row.items()})}" for name, row in table.items())
