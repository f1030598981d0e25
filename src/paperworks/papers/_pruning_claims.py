"""What RD-prune's claims are measured on: random knapsacks, and small networks trained once per seed and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paperworks.compression.iterative import CurveConfig, measure
from paperworks.compression.knapsack import Solution, solve
from paperworks.compression.knapsack_reference import brute_force
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Bench, write_json
from paperworks.papers._pruning_problem import Evaluation, NetworkConfig, Problem, PruningConfig
from paperworks.papers._pruning_stages import compare
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

SCHEMES = ("rd", "rd-worst", "lamp", "erk", "uniform", "global")
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.8)
MODERATE = ("0.1", "0.2", "0.3")
"""where distortions should add up; fixed on other seeds than those the claim is measured on"""
RIVALS = ("lamp", "erk", "uniform", "global")


def trained_and_compared(bench: Bench, network: NetworkConfig, seed: int) -> dict[str, Any]:
    """One network trained from scratch, pruned by every scheme in one shot. Kept in the bench's folder."""
    folder = bench.folder / f"{network.name}-seed{seed}"
    path = folder / "compared.json"
    if path.is_file():
        return json.loads(path.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(bench.data, network, seed)
    problem = Problem.open(config)
    training = replace(_training(seed), steps=400 if len(problem.train) < 10_000 else 1200)
    dense = problem.network()
    objective = Classify(dense, mean=problem.mean, std=problem.std)
    fit(objective, problem.training_data(), problem.fitting(training), folder / "training", label=f"{network.name} seed {seed}")
    calibration = problem.calibration()
    curves = measure(dense, calibration, config.curves)
    found = compare(dense, curves, calibration, Evaluation(dense, problem), config)
    found |= {"classes": len(problem.classes), "steps": training.steps, "train_images": len(problem.train)}
    write_json(path, found)
    bench.say(f"  {network.name} seed {seed}: dense {found['dense']['accuracy']:.1f} %")
    return found


def _training(seed: int) -> TrainConfig:
    adamw = OptimizerConfig("adamw", lr=3e-3, weight_decay=0.02, schedule=ScheduleConfig("cosine", warmup=0.1))
    return TrainConfig(steps=400, batch_size=128, seed=seed, optimizers={"main": adamw})


def _config(data: str, network: NetworkConfig, seed: int) -> PruningConfig:
    return PruningConfig(
        data=data,
        seed=seed,
        network=network,
        training=_training(seed),
        curves=CurveConfig(measure="mean", images=128, every=5),
        schemes=SCHEMES,
        sparsities=SPARSITIES,
    )


def knee(compared: dict[str, Any]) -> str:
    """The sparsity where pruning bites: the mean accuracy over the schemes lies nearest to halfway between dense and chance."""
    halfway = (compared["dense"]["accuracy"] + 100 / compared["classes"]) / 2

    def distance(sparsity: str) -> float:
        values = [compared["schemes"][scheme][sparsity]["accuracy"] for scheme in ("rd", *RIVALS)]
        return abs(float(np.mean(values)) - halfway)

    return min(compared["schemes"]["rd"], key=distance)


def additivity_by_sparsity(compared: dict[str, Any]) -> dict[str, float]:
    """Joint over summed distortion (means over samples) of this paper's allocations."""
    return {str(row["sparsity"]): row["mean"]["joint"] / row["mean"]["summed"] for row in compared["additivity"]}


def additivity_at_moderate(compared: dict[str, Any]) -> float:
    """Geometric mean over the moderate sparsities: one ratio rests on few weights and is noisy."""
    ratios = additivity_by_sparsity(compared)
    return float(np.exp(np.mean([np.log(ratios[sparsity]) for sparsity in MODERATE])))


def margin_at_knee(compared: dict[str, Any], method: str = "rd") -> tuple[float, str, str]:
    """(points above the best other scheme, that scheme, the sparsity)."""
    sparsity = knee(compared)
    rivals = {scheme: compared["schemes"][scheme][sparsity]["accuracy"] for scheme in RIVALS}
    best = max(rivals, key=lambda scheme: rivals[scheme])
    return compared["schemes"][method][sparsity]["accuracy"] - rivals[best], best, sparsity


# --- the solver -----------------------------------------------------------------------------------------------------------


def small_instance(seed: int) -> tuple[list[np.ndarray], list[np.ndarray], int, list[int]]:
    """Up to five layers of up to six ratios, with ties, non-monotone curves and layers that are pruned already."""
    rng = np.random.default_rng(seed)
    choices = rng.integers(1, 7, rng.integers(1, 6))
    distortions = [rng.random(k).round(rng.integers(1, 6)) for k in choices]
    costs = [np.sort(rng.integers(0, 500, k))[::-1] for k in choices]
    lower = [int(rng.integers(0, k)) for k in choices]
    return distortions, costs, int(sum(c.max() for c in costs) * rng.random()), lower


def pruning_instance(
    layers: int, weights: int, levels: int = 101, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Curves as steep and ragged as measured ones, layer sizes as uneven as a ResNet-50's; the budget is a fifth."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 1.2, layers)
    sizes = np.maximum(levels, share / share.sum() * weights).astype(np.int64)
    ratio = np.arange(levels) / (levels - 1)
    distortions = [
        np.expm1(rng.uniform(3, 9) * ratio ** rng.uniform(1, 3)) * rng.lognormal(-3, 1) * rng.lognormal(0, 0.1, levels)
        for _ in sizes
    ]
    return distortions, [size - np.floor(ratio * size).astype(np.int64) for size in sizes], int(0.2 * sizes.sum())


def largest_deviation(instances: int) -> tuple[float, int, int]:
    """(largest difference from the optimum by enumeration, instances solved, answers over budget), every solver mode tried."""
    worst, solved, overspent = 0.0, 0, 0
    for seed in range(instances):
        distortions, costs, budget, lower = small_instance(seed)
        try:
            _, best = brute_force(distortions, costs, budget, lower=lower)
        except InputError:
            continue
        solved += 1
        for found in (
            solve(distortions, costs, budget, lower=lower),
            solve(distortions, costs, budget, lower=lower, method="bucketed", cells=16),
        ):
            worst = max(worst, abs(found.objective - best))
            overspent += sum(int(c[i]) for c, i in zip(costs, found.choices)) > budget
        rough = solve(distortions, costs, budget, lower=lower, method="bucketed", cells=16, close=False)
        overspent += rough.cost > budget
    return worst, solved, overspent


def fitted_exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of log value against log size."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def scaling(layers: Sequence[int], cells: Sequence[int], repeats: int = 5) -> dict[str, float]:
    """Exponents of additions and of seconds in the number of layers and of budget cells."""

    def run(count: int, width: int) -> tuple[Solution, float]:
        # choices that none dominates and that fall into different cells, so that all work is done at every size
        curve, cost = np.linspace(0, 1, 60) ** 2, np.arange(60)[::-1] * 1000
        budget = 1000 * 59 * count // 2
        best = np.inf
        for _ in range(repeats):
            started = time.perf_counter()
            found = solve([curve] * count, [cost] * count, budget, method="bucketed", cells=width, close=False)
            best = min(best, time.perf_counter() - started)
        return found, float(best)

    by_layers = [run(count, min(cells)) for count in layers]
    by_cells = [run(min(layers), width) for width in cells]
    return {
        "additions in layers": fitted_exponent(layers, [found.operations for found, _ in by_layers]),
        "additions in cells": fitted_exponent(cells, [found.operations for found, _ in by_cells]),
        "seconds in layers": fitted_exponent(layers, [seconds for _, seconds in by_layers]),
        "seconds in cells": fitted_exponent(cells, [seconds for _, seconds in by_cells]),
    }
