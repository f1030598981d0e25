"""RD-prune's two costs: solving the allocation (against HiGHS, enumeration and the released programme) and measuring the
curves by suffix runs (against full runs).

Paper: layer-adaptive-pruning.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Row, compare
from paperworks.backbones.cifar import CifarResNet
from paperworks.compression.distortion import measure_curves, ratio_grid
from paperworks.compression.knapsack import solve
from paperworks.compression.knapsack_reference import brute_force, integer_programme
from paperworks.compression.released_solver import released_choices
from paperworks.compression.sparsity import effective_weight, prunable_layers

Instance = tuple[list[np.ndarray], list[np.ndarray], int, list[int]]


def instance(sizes: list[int], levels: int, sparsity: float, seed: int = 0) -> Instance:
    """(distortions, costs, budget, sizes) with curves as steep and as ragged as measured ones."""
    rng = np.random.default_rng(seed)
    ratio = np.arange(levels) / (levels - 1)
    distortions = [
        np.expm1(rng.uniform(3, 9) * ratio ** rng.uniform(1, 3)) * rng.lognormal(-3, 1) * rng.lognormal(0, 0.1, levels)
        for _ in sizes
    ]
    costs = [size - np.floor(ratio * size).astype(np.int64) for size in sizes]
    return distortions, costs, int((1 - sparsity) * sum(sizes)), sizes


def spread_sizes(layers: int, weights: int, seed: int = 0) -> list[int]:
    """Layer sizes as uneven as a ResNet-50's."""
    share = np.random.default_rng(seed).lognormal(0, 1.2, layers)
    return [max(100, int(s)) for s in share / share.sum() * weights]


def curves_by_full_runs(model: nn.Module, images: Tensor, ratios: tuple[float, ...]) -> list[list[float]]:
    """One whole forward pass per layer and ratio."""
    found = []
    with torch.no_grad():
        reference = model(images)
        for layer in prunable_layers(model):
            weight = effective_weight(model, layer)
            dense, order = weight.clone(), weight.abs().flatten().argsort()
            row = []
            for ratio in ratios:
                weight.copy_(dense)
                weight.view(-1)[order[: int(ratio * layer.numel)]] = 0
                row.append(float((model(images) - reference).square().mean(1).max()))
            weight.copy_(dense)
            found.append(row)
    return found


def run() -> list[Row]:
    rows = []
    distortions, costs, budget, sizes = instance(spread_sizes(54, 25_500_000), 101, 0.8)
    ours, (_, highs) = solve(distortions, costs, budget), integer_programme(distortions, costs, budget)
    assert ours.exact and ours.cost <= budget and ours.objective <= highs * (1 + 1e-9)
    ratio = compare(lambda: solve(distortions, costs, budget), lambda: integer_programme(distortions, costs, budget), rounds=7)
    note = f"objective {ours.objective:.6g} (proven optimal), HiGHS {highs:.6g}"
    rows.append(Row("54 layers x 101 ratios, 25.5 M weights, 80 %", "knapsack", "scipy milp", ratio, target=1.0, note=note))

    rough = solve(distortions, costs, budget, close=False)
    ratio = compare(lambda: solve(distortions, costs, budget, close=False), lambda: solve(distortions, costs, budget))
    note = f"rounding costs up alone leaves the objective {rough.objective / ours.objective - 1:.2%} above the optimum"
    rows.append(Row("the same", "without closing the gap", "with", ratio, note=note))

    small = instance([108, 288, 64, 40], 21, 0.8)
    assert solve(*small[:3]).choices == brute_force(*small[:3])[0]
    ratio = compare(lambda: solve(*small[:3]), lambda: brute_force(*small[:3]), rounds=5, warmup=1)
    rows.append(Row("4 layers x 21 ratios", "knapsack", "enumeration", ratio, target=1.0))

    sizes = [layer.numel for layer in prunable_layers(CifarResNet(32))]
    distortions, costs, budget, _ = instance(sizes, 101, 0.8)
    ratios, previous = ratio_grid(101), [0.0] * len(sizes)
    ratio = compare(
        lambda: solve(distortions, costs, budget),
        lambda: released_choices(sizes, ratios, distortions, previous, 0.8),
        rounds=5,
        warmup=1,
    )
    rows.append(Row("ResNet-32 x 101 ratios, 80 %", "knapsack", "one cell per weight, as released", ratio, target=1.0))

    torch.manual_seed(0)
    model, images, grid = CifarResNet(20, width=8).eval(), torch.randn(16, 3, 32, 32), ratio_grid(21)
    short, whole = measure_curves(model, images, ratios=grid), curves_by_full_runs(copy.deepcopy(model), images, grid)
    np.testing.assert_allclose([curve.worst for curve in short], whole, rtol=1e-4, atol=1e-9)
    ratio = compare(
        lambda: measure_curves(model, images, ratios=grid), lambda: curves_by_full_runs(model, images, grid), rounds=3, warmup=0
    )
    rows.append(Row("curves of a narrow ResNet-20, 21 ratios, 16 images", "suffix runs", "full runs", ratio, target=1.0))
    return rows
