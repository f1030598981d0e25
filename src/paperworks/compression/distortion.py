"""How much the network's OUTPUT changes when one layer alone is pruned: the curves that the allocation is computed from.

RD-prune (arXiv 2308.10438, section 3): for each layer and ratio, prune that layer by magnitude, leave every other layer as
it is now, and record the squared change of the logits; either its mean over samples, or (all published runs) the largest
per-sample mean. The finding that makes the method work is that these single-layer distortions add up: `additivity` measures
the joint distortion of an allocation beside the sum of its parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from paperworks.compression.patterns import Pattern, SingleWeights, count
from paperworks.compression.sparsity import (
    Masks,
    PrunableLayer,
    baked_copy,
    current_masks,
    effective_weight,
    prunable_layers,
)
from paperworks.compression.suffix import SuffixRunner, first_tensor
from paperworks.errors import InputError

Measure = Literal["worst", "mean"]
Readout = Callable[[Any], Tensor]


def ratio_grid(levels: int = 101) -> tuple[float, ...]:
    """0, 1/(levels-1), ..., 1."""
    if levels < 2:
        raise InputError(f"a grid of {levels} ratios; it needs at least 0 and 1")
    return tuple(d / (levels - 1) for d in range(levels))


@dataclass(frozen=True)
class Curve:
    """Distortion of the logits against how much of one layer is removed. The first entry is the layer as it is now."""

    layer: PrunableLayer
    ratios: tuple[float, ...]
    """share of the layer removed"""
    removed: tuple[int, ...]
    """the same in units of the pattern (single weights by default): exact, where a ratio would have to be rounded"""
    kept: tuple[int, ...]
    """weights left"""
    mean: tuple[float, ...]
    """squared logit change, mean over samples and logits"""
    worst: tuple[float, ...]
    """largest over samples of the per-sample mean squared logit change"""
    measured: tuple[bool, ...]
    """False where the value was filled in between two measured ratios"""

    def values(self, measure: Measure) -> tuple[float, ...]:
        return self.worst if measure == "worst" else self.mean

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Curve:
        layer = plain["layer"]
        lists = {name: tuple(plain[name]) for name in ("ratios", "removed", "kept", "mean", "worst", "measured")}
        return cls(PrunableLayer(layer["name"], tuple(layer["owners"]), tuple(layer["shape"])), **lists)


def measure_curves(
    model: nn.Module,
    images: Tensor,
    *,
    layers: Sequence[PrunableLayer] | None = None,
    ratios: Sequence[float] | None = None,
    every: int = 1,
    pattern: Pattern | None = None,
    batch_size: int = 64,
    readout: Readout | None = None,
) -> list[Curve]:
    """One curve per layer, the others in their current (possibly masked) state. The model is copied, never touched.

    images: calibration batch [N, C, H, W] as the model takes them. ratios: ascending from 0 to 1, default 101 of them.
    every: measure each n-th ratio and the whole last interval, and fill the rest in (log-linear): about n times faster.
    Raises InputError for an empty batch, a grid without 0 or 1, or logits that are not finite.
    """
    grid = tuple(ratios) if ratios is not None else ratio_grid()
    _check_grid(grid)
    if every < 1:
        raise InputError(f"every={every}: measure every ratio (1) or each n-th (2, 3, ...)")
    if len(images) == 0:
        raise InputError("the calibration batch is empty; give at least one image")
    layers = list(layers or prunable_layers(model))
    pattern = pattern or SingleWeights()
    masks = current_masks(model, layers)
    plans = {layer.name: _plan(layer, masks[layer.name], grid, pattern, every) for layer in layers}
    found = _measure(model, images, layers, plans, masks, pattern, batch_size, readout)
    return [_curve(layer, plans[layer.name], mean, worst) for layer, (mean, worst) in zip(layers, found)]


def _measure(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[PrunableLayer],
    plans: Mapping[str, Sequence[_Point]],
    masks: Masks,
    pattern: Pattern,
    batch_size: int,
    readout: Readout | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mean, worst) at the points to measure of each layer's plan, zeros at the others."""
    images = images.to(next(model.parameters()).device)
    runner = SuffixRunner(baked_copy(model), images[:1], readout)
    sums = {name: np.zeros(len(plan)) for name, plan in plans.items()}
    largest = {name: np.zeros(len(plan)) for name, plan in plans.items()}
    ordered = runner.in_call_order(layers)
    full_only = {layer.name for layer in ordered if not runner.agrees(layer, images[:1])}
    batches = images.split(batch_size)
    for batch, layer in _with_progress([(b, layer) for b in batches for layer in ordered], "distortion curves"):
        changes = _sweep(runner, layer, batch, masks, plans[layer.name], pattern, full=layer.name in full_only)
        for i, change in changes:
            sums[layer.name][i] += float(change.sum())
            largest[layer.name][i] = max(largest[layer.name][i], float(change.max()))
    return [(sums[layer.name] / len(images), largest[layer.name]) for layer in layers]


def joint_distortion(
    model: nn.Module, changed: nn.Module, images: Tensor, *, batch_size: int = 64, readout: Readout | None = None
) -> tuple[float, float]:
    """(mean, worst) squared change of the logits between two networks on the same images."""
    readout = readout or first_tensor
    total, worst = 0.0, 0.0
    with torch.no_grad(), eval_mode(model), eval_mode(changed):
        for batch in images.to(next(model.parameters()).device).split(batch_size):
            change = _squared_change(readout(changed(batch)), readout(model(batch)))
            total += float(change.sum())
            worst = max(worst, float(change.max()))
    return total / len(images), worst


@dataclass(frozen=True)
class Additivity:
    """Does pruning all layers at once cost what the single layers cost together?"""

    joint: float
    """distortion with all layers pruned"""
    summed: float
    """sum over layers of the distortion with that one alone pruned"""

    @property
    def ratio(self) -> float:
        return self.joint / self.summed if self.summed else math.nan


def additivity(
    model: nn.Module,
    layers: Sequence[PrunableLayer],
    removed: Sequence[int],
    images: Tensor,
    *,
    pattern: Pattern | None = None,
    batch_size: int = 64,
    readout: Readout | None = None,
) -> dict[Measure, Additivity]:
    """Both sides measured on the same images, for removing `removed[l]` units of layer l. The model is never touched."""
    pattern = pattern or SingleWeights()
    masks = current_masks(model, layers)
    plans = {}
    for layer, units in zip(layers, removed, strict=True):
        kept = layer.numel - units * (layer.numel // pattern.units(layer.shape))
        now = int(torch.count_nonzero(masks[layer.name]))
        plans[layer.name] = [_Point(0.0, 0, now, False), _Point(1.0, units, kept, True)]
    alone = _measure(model, images, layers, plans, masks, pattern, batch_size, readout)
    pruned = baked_copy(model)
    for layer, units in zip(layers, removed):
        weight = effective_weight(pruned, layer)
        weight.mul_(pattern.rank(weight.abs().masked_fill(~masks[layer.name], -1.0)) >= units)
    mean, worst = joint_distortion(model, pruned, images, batch_size=batch_size, readout=readout)
    return {
        "mean": Additivity(mean, sum(float(found[0][1]) for found in alone)),
        "worst": Additivity(worst, sum(float(found[1][1]) for found in alone)),
    }


def gaussian_images(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Standard-normal calibration inputs [count, C, H, W] ("zero-data" pruning): for the network after normalisation."""
    return torch.randn(count, *shape, generator=generator)


# --- one layer -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    ratio: float
    removed: int
    kept: int
    measured: bool


def _plan(layer: PrunableLayer, keep: Tensor, grid: Sequence[float], pattern: Pattern, every: int) -> list[_Point]:
    """What to try on a layer: as it is, then every grid ratio that removes more."""
    units = pattern.units(layer.shape)
    per_unit = layer.numel // units
    gone = layer.numel - int(torch.count_nonzero(keep))
    points = [_Point(gone / layer.numel, gone // per_unit, layer.numel - gone, True)]
    last_interval = (len(grid) - 2) // every * every
    for d, ratio in enumerate(grid):
        removed = count(ratio, units)
        if d > 0 and (ratio > points[0].ratio) and (removed * per_unit > gone or gone == 0):
            measured = d % every == 0 or d >= last_interval
            points.append(_Point(ratio, removed, layer.numel - removed * per_unit, measured))
    return points


def _sweep(
    runner: SuffixRunner,
    layer: PrunableLayer,
    batch: Tensor,
    masks: Masks,
    plan: Sequence[_Point],
    pattern: Pattern,
    *,
    full: bool,
) -> Iterator[tuple[int, Tensor]]:
    """(index in the plan, squared change per sample) for every point to measure."""
    reference = runner.enter(layer, batch)
    if not torch.isfinite(reference).all():
        raise InputError("the network's logits are not finite on the calibration images; check the weights and the input range")
    weight = effective_weight(runner.model, layer)
    dense = weight.clone()
    rank = pattern.rank(dense.abs().masked_fill(~masks[layer.name], -1.0))
    unchanged = layer.numel - int(torch.count_nonzero(masks[layer.name]))
    per_unit = layer.numel // pattern.units(layer.shape)
    done: dict[int, Tensor] = {unchanged // per_unit: torch.zeros(len(batch), dtype=torch.float64)}
    for i, point in enumerate(plan):
        if not point.measured:
            continue
        if point.removed not in done:
            torch.mul(dense, rank >= point.removed, out=weight)
            with torch.no_grad():
                logits = runner.full(batch) if full else runner(batch)
            done = {point.removed: _squared_change(logits, reference)}
        yield i, done[point.removed]
    weight.copy_(dense)


def _curve(layer: PrunableLayer, plan: Sequence[_Point], mean: np.ndarray, worst: np.ndarray) -> Curve:
    measured = np.array([point.measured for point in plan])
    removed = np.array([point.removed for point in plan])
    return Curve(
        layer,
        tuple(point.ratio for point in plan),
        tuple(point.removed for point in plan),
        tuple(point.kept for point in plan),
        tuple(_filled(removed, mean, measured)),
        tuple(_filled(removed, worst, measured)),
        tuple(bool(m) for m in measured),
    )


def _filled(removed: np.ndarray, values: np.ndarray, measured: np.ndarray) -> list[float]:
    """Values in between, log-linear in the number removed (linear next to a zero): distortion grows roughly exponentially."""
    x, y = removed[measured], values[measured]
    straight = np.interp(removed, x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        curved = np.exp(np.interp(removed, x, np.log(y)))
    filled = np.where(np.isfinite(curved) & (curved > 0), curved, straight)
    return np.where(measured, values, filled).tolist()


def _squared_change(logits: Tensor, reference: Tensor) -> Tensor:
    """float64 [N]: mean squared difference per sample; infinite where the pruned network's output is not finite."""
    change = (logits - reference).double().square().flatten(1).mean(1)
    return torch.nan_to_num(change, nan=math.inf, posinf=math.inf)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Everything in eval mode inside the block, each module back to what it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_grid(grid: Sequence[float]) -> None:
    if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or any(b <= a for a, b in itertools.pairwise(grid)):
        raise InputError(f"pruning ratios must rise from 0 to 1; got {list(grid)[:4]} ... {list(grid)[-1:]}")


def _with_progress(items: Sequence[Any], what: str) -> Iterator[Any]:
    yield from track(items, description=what, transient=True, disable=not Console().is_terminal)
