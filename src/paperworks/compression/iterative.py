"""Prune a step, fine-tune, measure again, prune further: RD-prune's loop (algorithm of section 4), for any network.

The network may sit anywhere inside the objective that trains it. Every iteration leaves a folder
`iteration-01/` with its allocation and curves, its training run, the weights it ended with and a record; a killed run
continues inside the iteration it was in.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from paperworks.compression.allocation import Allocation, allocate, allocate_rd, apply_allocation
from paperworks.compression.distortion import Measure, Readout, joint_distortion, measure_curves, ratio_grid
from paperworks.compression.layer_report import report_layers
from paperworks.compression.schedule import iterative_targets
from paperworks.compression.sparsity import (
    PrunableLayer,
    baked_copy,
    current_masks,
    prunable_layers,
    set_masks,
    sparsity,
)
from paperworks.training import Objective, TrainConfig, fit
from paperworks.training.batches import BatchTransform

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""network (in the state it is in) -> numbers"""


@dataclass(frozen=True)
class CurveConfig:
    """How distortion curves are measured."""

    measure: Measure = "worst"
    """"worst": the largest per-sample change (all published runs); "mean": the mean over samples"""
    levels: int = 101
    every: int = 1
    """measure each n-th ratio and fill in between"""
    images: int = 256
    """calibration images"""
    source: Literal["train", "gaussian"] = "train"
    """"gaussian": standard-normal inputs instead of images ("zero-data")"""
    batch_size: int = 64


@dataclass(frozen=True)
class IterativeConfig:
    target: float = 0.9
    """share of the prunable weights to remove in the end"""
    rate: float = 0.2
    """share of the remaining weights removed per iteration; 1 prunes in one shot"""
    scheme: str = "rd"
    """rd, lamp, erk, uniform, unif+ or global"""
    skip: tuple[str, ...] = ()
    """regular expressions on layer names that stay dense"""
    curves: CurveConfig = CurveConfig()
    finetune: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000, batch_size=100))


@dataclass(frozen=True)
class Iteration:
    """What one iteration did. JSON-ready by `asdict`."""

    number: int
    target: float
    sparsity: float
    flops_left: float
    predicted: float | None
    """summed single-layer distortion of the step"""
    joint: float
    """distortion of the whole step, by the same measure"""
    pruned: dict[str, float]
    """evaluation right after pruning"""
    tuned: dict[str, float]
    """evaluation after fine-tuning"""
    ratios: dict[str, float]
    """layer -> share removed"""
    seconds: float


def prune_iteratively(
    objective: Objective,
    network: nn.Module,
    train_data: Any,
    calibration: Tensor,
    config: IterativeConfig,
    folder: Path,
    *,
    evaluate: Evaluate,
    batch_transform: BatchTransform | None = None,
    readout: Readout | None = None,
    say: Callable[[str], None] = print,
) -> list[Iteration]:
    """Prune `network` (a module inside `objective`, trained, in place) to `config.target` and return what each step did.

    calibration: images [N, C, H, W] as the network takes them. Masks stay on afterwards (`sparsity.bake` makes them
    permanent). Called again with the same arguments after a kill, it goes on where it was.
    """
    layers = prunable_layers(network, config.skip)
    targets = iterative_targets(config.target, config.rate, start=sparsity(network, layers))
    set_masks(network, current_masks(network, layers), layers)  # every layer carries a mask from now on: one layout of states
    done: list[Iteration] = []
    for number, target in enumerate(targets, 1):
        place = folder / f"iteration-{number:02d}"
        record, weights = place / "record.json", place / "weights.safetensors"
        if record.is_file():
            done.append(Iteration(**_read(record)))
            if number == len(targets) or not (folder / f"iteration-{number + 1:02d}" / "record.json").is_file():
                load_model(objective, str(weights))
            continue
        place.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        before = baked_copy(network)
        allocation = _allocation(network, layers, target, calibration, config, place, readout)
        apply_allocation(network, allocation)
        mean, worst = joint_distortion(before, network, calibration, batch_size=config.curves.batch_size, readout=readout)
        del before
        pruned = dict(evaluate(network))
        fit(
            objective,
            train_data,
            config.finetune,
            place / "training",
            batch_transform=batch_transform,
            label=f"iteration {number}/{len(targets)}, {target:.1%} sparse",
        )
        tuned = dict(evaluate(network))
        counted = report_layers(network, calibration[:1], layers)
        iteration = Iteration(
            number,
            target,
            counted.sparsity,
            counted.flops_left,
            allocation.predicted,
            worst if config.curves.measure == "worst" else mean,
            pruned,
            tuned,
            {row.layer.name: row.ratio for row in counted.rows},
            round(time.monotonic() - started, 1),
        )
        aside = weights.with_suffix(".part")
        save_model(objective, str(aside))
        aside.replace(weights)
        _write(record, asdict(iteration))
        say(f"iteration {number}/{len(targets)}: {_shown(iteration)}")
        done.append(iteration)
    return done


def measure(
    network: nn.Module,
    calibration: Tensor,
    config: CurveConfig,
    layers: list[PrunableLayer] | None = None,
    readout: Readout | None = None,
) -> list[Any]:
    """`measure_curves` as configured."""
    return measure_curves(
        network,
        calibration,
        layers=layers,
        ratios=ratio_grid(config.levels),
        every=config.every,
        batch_size=config.batch_size,
        readout=readout,
    )


def _allocation(
    network: nn.Module,
    layers: list[PrunableLayer],
    target: float,
    calibration: Tensor,
    config: IterativeConfig,
    place: Path,
    readout: Readout | None,
) -> Allocation:
    """Measured once per iteration, then read back from its file."""
    path = place / "allocation.json"
    if path.is_file():
        stored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in _read(path).items()}
        return Allocation(layers=tuple(layers), **stored)
    if config.scheme == "rd":
        curves = measure(network, calibration, config.curves, layers, readout)
        _write(place / "curves.json", [curve.to_plain() for curve in curves])
        allocation = allocate_rd(curves, target, measure=config.curves.measure)
    else:
        allocation = allocate(network, config.scheme, target, layers)
    _write(path, {name: value for name, value in asdict(allocation).items() if name != "layers"})
    return allocation


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, value: Any) -> None:
    """Aside, then renamed: a killed run never leaves half a file."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


def _shown(iteration: Iteration) -> str:
    numbers = ", ".join(f"{name} {iteration.pruned[name]:.4g} -> {value:.4g}" for name, value in iteration.tuned.items())
    return f"{iteration.sparsity:.2%} sparse, {iteration.flops_left:.1%} of the multiply-adds left, {numbers}"
