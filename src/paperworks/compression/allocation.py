"""How much of each layer to remove: RD-prune's knapsack and the five schemes it is compared with.

Every function answers for the whole prunable weight count: `target` is the share that shall be gone in total afterwards.
Weights that are zero already count as gone and stay gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from paperworks.compression import knapsack
from paperworks.compression.distortion import Curve, Measure
from paperworks.compression.patterns import Pattern
from paperworks.compression.released_solver import released_choices
from paperworks.compression.sparsity import (
    PrunableLayer,
    current_masks,
    effective_weight,
    kept_counts,
    prunable_layers,
    set_masks,
    smallest_removed,
)
from paperworks.errors import InputError


@dataclass(frozen=True)
class Allocation:
    scheme: str
    layers: tuple[PrunableLayer, ...]
    amounts: tuple[float, ...]
    """share of each layer that is gone"""
    removed: tuple[int, ...]
    """the same in units of the pattern (single weights by default)"""
    kept: tuple[int, ...]
    """weights left per layer"""
    predicted: float | None = None
    """summed distortion, where the scheme knows one"""
    gap: float | None = None
    """proven distance of `predicted` from the optimum"""

    @property
    def sparsity(self) -> float:
        return 1.0 - sum(self.kept) / sum(layer.numel for layer in self.layers)


def apply_allocation(model: nn.Module, allocation: Allocation, pattern: Pattern | None = None) -> None:
    """Mask the smallest weights of each layer, on top of the masks that are on."""
    masks = current_masks(model, allocation.layers)
    for layer, units in zip(allocation.layers, allocation.removed):
        masks[layer.name] = smallest_removed(effective_weight(model, layer), masks[layer.name], units, pattern)
    set_masks(model, masks, allocation.layers)


def allocate(model: nn.Module, scheme: str, target: float, layers: Sequence[PrunableLayer] | None = None) -> Allocation:
    """By one of `SCHEMES` (those that look at weights and shapes only)."""
    if scheme not in SCHEMES:
        raise InputError(f"no allocation scheme {scheme!r}; there are rd, {', '.join(SCHEMES)}")
    layers = tuple(layers or prunable_layers(model))
    _check_target(target, sum(kept_counts(model, layers)), sum(layer.numel for layer in layers))
    amounts = SCHEMES[scheme]([effective_weight(model, layer) for layer in layers], target)
    removed = tuple(round(amount * layer.numel) for amount, layer in zip(amounts, layers))
    kept = tuple(layer.numel - gone for layer, gone in zip(layers, removed))
    return Allocation(scheme, layers, tuple(amounts), removed, kept)


def allocate_rd(
    curves: Sequence[Curve],
    target: float,
    *,
    measure: Measure = "worst",
    solver: Literal["exact", "released"] = "exact",
) -> Allocation:
    """RD-prune: the least summed distortion with at most int((1 - target) * N) weights kept, no layer growing back.

    solver "released" reproduces the authors' programme with its deviations (see released_solver.py).
    Raises InputError when the target lies below the present sparsity.
    """
    total = sum(curve.layer.numel for curve in curves)
    _check_target(target, sum(curve.kept[0] for curve in curves), total)
    values = [curve.values(measure) for curve in curves]
    gap = None
    if solver == "released":
        if len({curve.ratios for curve in curves}) > 1:
            raise InputError("the released solver needs one grid of ratios for all layers; prune with it from a dense network")
        sizes = [curve.layer.numel for curve in curves]
        choices: Sequence[int] = released_choices(sizes, curves[0].ratios, values, [0.0] * len(curves), target)
    else:
        solution = knapsack.solve(values, [curve.kept for curve in curves], weight_budget(total, target))
        choices, gap = solution.choices, solution.gap
    return Allocation(
        "rd",
        tuple(curve.layer for curve in curves),
        tuple(curve.ratios[c] for curve, c in zip(curves, choices)),
        tuple(curve.removed[c] for curve, c in zip(curves, choices)),
        tuple(curve.kept[c] for curve, c in zip(curves, choices)),
        sum(value[c] for value, c in zip(values, choices)),
        gap,
    )


def weight_budget(total: int, target: float) -> int:
    """Weights that may be kept: int((1 - target) * total), as the paper's code counts."""
    return int((1 - target) * total)


# --- schemes that look at weights and shapes only -------------------------------------------------------------------------


def uniform_amounts(weights: Sequence[Tensor], target: float) -> list[float]:
    """The same share of what every layer has left."""
    alive = _alive(weights)
    return _of_whole(weights, alive, [_share_to_go(weights, alive, target)] * len(weights))


def unif_plus_amounts(weights: Sequence[Tensor], target: float) -> list[float]:
    """Uniform, but a first convolution stays dense and the last layer keeps at least a fifth of its weights (Gale et al.)."""
    alive = _alive(weights)
    to_prune = float(np.round(sum(alive) * _share_to_go(weights, alive, target)))
    first = 1 if weights[0].ndim == 4 else 0
    share = to_prune / sum(alive[first:])
    least_last = float(np.round(weights[-1].numel() * 0.2))
    if np.round((1 - share) * alive[-1]) >= least_last:
        relative = [0.0] * first + [share] * (len(weights) - first)
    else:
        last = alive[-1] - least_last
        middle = sum(alive[first:-1])
        share = (to_prune - last) / middle if middle else np.inf
        relative = [0.0] * first + [share] * (len(weights) - first - 1) + [last / alive[-1]]
    if share > 1:
        raise InputError(f"Unif+ cannot reach a sparsity of {target:.4g}: the first and last layer's exceptions keep too much")
    return _of_whole(weights, alive, relative)


def erk_amounts(weights: Sequence[Tensor], target: float) -> list[float]:
    """Erdos-Renyi kernel: density in proportion to the sum of a weight's dimensions over its size; a layer that would get
    more than all its weights stays dense and the others share the rest anew."""
    alive = np.array(_alive(weights), dtype=np.float64)
    score = np.array([float(sum(w.shape)) for w in weights])
    keep_total = (1 - _share_to_go(weights, alive.tolist(), target)) * alive.sum()
    dense = np.zeros(len(weights), dtype=bool)
    while True:
        left = keep_total - alive[dense].sum()
        share = np.where(dense, 0.0, score)
        kept = np.round(left * share / max(share.sum(), 1e-300))
        over = np.where(dense, 0.0, kept / np.maximum(alive, 1))
        if over.max() <= 1:
            break
        dense[int(over.argmax())] = True
    relative = np.where(dense, 0.0, 1 - np.maximum(kept, 0) / np.maximum(alive, 1))
    return _of_whole(weights, alive.tolist(), relative.tolist())


def lamp_amounts(weights: Sequence[Tensor], target: float) -> list[float]:
    """The weights with the largest LAMP scores over all layers survive (Lee et al., 2021)."""
    return _best_scores(weights, [lamp_scores(weight) for weight in weights], target)


def lamp_scores(weight: Tensor) -> Tensor:
    """w^2 over the sum of the squares of the same layer's weights that are not smaller. Shape of the weight."""
    square = weight.detach().flatten().double().square()
    ascending, order = square.sort(stable=True)
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(square)
    scores[order] = ascending / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)
    return scores.to(weight.dtype).view(weight.shape)


def global_amounts(weights: Sequence[Tensor], target: float) -> list[float]:
    """The largest magnitudes over all layers survive."""
    return _best_scores(weights, [weight.detach().abs() for weight in weights], target)


SCHEMES: dict[str, Callable[[Sequence[Tensor], float], list[float]]] = {
    "lamp": lamp_amounts,
    "erk": erk_amounts,
    "uniform": uniform_amounts,
    "unif+": unif_plus_amounts,
    "global": global_amounts,
}


def _best_scores(weights: Sequence[Tensor], scores: Sequence[Tensor], target: float) -> list[float]:
    everything = torch.cat([score.flatten() for score in scores])
    keep = round((1 - target) * everything.numel())
    if keep == 0:
        return [1.0] * len(weights)
    threshold = everything.kthvalue(everything.numel() - keep + 1).values
    return [1 - int((score >= threshold).sum()) / weight.numel() for weight, score in zip(weights, scores)]


def _alive(weights: Sequence[Tensor]) -> list[int]:
    return [int(torch.count_nonzero(weight)) for weight in weights]


def _share_to_go(weights: Sequence[Tensor], alive: Sequence[float], target: float) -> float:
    """Share of the weights still alive that has to go so that `target` of all are gone."""
    return 1 - (1 - target) * sum(weight.numel() for weight in weights) / sum(alive)


def _of_whole(weights: Sequence[Tensor], alive: Sequence[float], relative: Sequence[float]) -> list[float]:
    """Shares of what is alive as shares of the layer."""
    return [1 - (1 - share) * left / weight.numel() for weight, left, share in zip(weights, alive, relative)]


def _check_target(target: float, kept: int, total: int) -> None:
    if not 0 <= target < 1:
        raise InputError(f"a target sparsity of {target}; give the share of weights to remove, from 0 up to below 1")
    now = 1 - kept / total
    if target < now - 1e-9:
        raise InputError(f"the network is already at a sparsity of {now:.4g}, asked for {target:.4g}; ask for more than it has")
