"""RD-prune's recipes, stage by stage: train, measure curves, compare schemes in one shot, prune iteratively."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import Tensor, nn

from paperworks.compression.allocation import Allocation, allocate, allocate_rd, apply_allocation
from paperworks.compression.distortion import Curve, Measure, additivity
from paperworks.compression.iterative import CurveConfig, measure, prune_iteratively
from paperworks.compression.layer_report import report_layers
from paperworks.compression.sparse_file import load_sparse, save_sparse
from paperworks.compression.sparsity import prunable_layers, remove_masks
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Run, write_json
from paperworks.papers._pruning_problem import Evaluation, Problem, PruningConfig
from paperworks.training import fit

DENSE, PRUNED, CURVES = "dense.safetensors", "pruned.safetensors", "curves.json"


def train_dense(config: PruningConfig, run: Run) -> Mapping[str, Any]:
    """Train the dense network, or take the weights it comes with."""
    problem = Problem.open(config)
    network = problem.network()
    seconds = 0.0
    if config.training is not None:
        objective = Classify(network, mean=problem.mean, std=problem.std)
        training = problem.fitting(config.training)
        fitted = fit(objective, problem.training_data(), training, run.stage_folder("train"), label="dense network")
        seconds = fitted.seconds
    save_model(network.eval(), str(run.folder / DENSE))
    evaluation = Evaluation(network, problem)
    layers = prunable_layers(network)
    return {
        "evaluation": evaluation(network),
        "train_images": len(problem.train),
        "test_images": len(evaluation.reference),
        "skipped": list(dict.fromkeys(problem.train.skipped + problem.test.skipped)),  # both splits list all of a folder
        "classes": problem.classes,
        "parameters": sum(p.numel() for p in network.parameters()),
        "prunable": sum(layer.numel for layer in layers),
        "layers": len(layers),
        "seconds": seconds,
    }


def measure_stage(config: PruningConfig, run: Run) -> Mapping[str, Any]:
    """Distortion curves of every layer of the dense network."""
    problem = Problem.open(config)
    calibration = problem.calibration()
    curves = measure(problem.network(run.folder / DENSE), calibration, config.curves)
    write_json(run.folder / CURVES, [curve.to_plain() for curve in curves])
    return {"images": len(calibration), "forward_passes": len(calibration) * sum(sum(c.measured) for c in curves)}


def compare_stage(config: PruningConfig, run: Run) -> Mapping[str, Any]:
    """Every scheme at every sparsity, one shot, no fine-tuning; and whether distortions add up."""
    problem = Problem.open(config)
    network = problem.network(run.folder / DENSE)
    evaluation = Evaluation(network, problem)
    return compare(network, read_curves(run.folder), problem.calibration(), evaluation, config)


def iterative_stage(config: PruningConfig, run: Run) -> Mapping[str, Any]:
    """Prune and fine-tune up to the target, or in one shot where the recipe does not train; leave the pruned network."""
    problem = Problem.open(config)
    dense = problem.network(run.folder / DENSE)
    evaluation = Evaluation(dense, problem)
    network = copy.deepcopy(dense)
    iterations: list[Any] = []
    if config.iterative is not None:
        objective = Classify(network, mean=problem.mean, std=problem.std)
        iterations = prune_iteratively(
            objective,
            network,
            problem.training_data(),
            problem.calibration(),
            replace(config.iterative, finetune=problem.fitting(config.iterative.finetune)),
            run.stage_folder("iterative"),
            evaluate=evaluation,
        )
    else:
        allocation = allocate_rd(read_curves(run.folder), config.keep, measure=config.curves.measure)
        apply_allocation(network, allocation)
    counted = report_layers(network, next(problem.test_batches())[:1])
    numbers = evaluation(network)
    dense_bytes = sum(value.numel() * value.element_size() for value in dense.state_dict().values())
    columns, rows = counted.table()
    return {
        "iterations": [vars(iteration) for iteration in iterations],
        "evaluation": numbers,
        "sparsity": counted.sparsity,
        "flops_left": counted.flops_left,
        "bytes": save_sparse(network, run.folder / PRUNED),
        "dense_bytes": dense_bytes,
        "columns": columns,
        "rows": rows,
    }


# --- pieces shared with the claims ------------------------------------------------------------------------------------------


def compare(
    network: nn.Module, curves: Sequence[Curve], calibration: Tensor, evaluation: Evaluation, config: PruningConfig
) -> dict[str, Any]:
    """{"dense": numbers, "schemes": {scheme: {sparsity: numbers}}, "additivity": [...], "ratios": {scheme: {sparsity: [...]}}}.

    The network is masked and unmasked again.
    """
    reached: dict[str, dict[str, Any]] = {}
    ratios: dict[str, dict[str, list[float]]] = {}
    added: list[dict[str, Any]] = []
    for scheme in config.schemes:
        reached[scheme], ratios[scheme] = {}, {}
        for sparsity in config.sparsities:
            try:
                allocation = allocation_by(scheme, network, curves, sparsity, config.curves)
            except InputError as error:  # Unif+ has sparsities that it cannot reach
                reached[scheme][str(sparsity)] = {"error": str(error)}
                continue
            if scheme == "rd":
                both = additivity(
                    network, allocation.layers, allocation.removed, calibration, batch_size=config.curves.batch_size
                )
                added.append({"sparsity": sparsity} | {name: vars(each) for name, each in both.items()})
            apply_allocation(network, allocation)
            reached[scheme][str(sparsity)] = evaluation(network) | {"sparsity": allocation.sparsity}
            ratios[scheme][str(sparsity)] = list(allocation.amounts)
            remove_masks(network)
    return {"dense": evaluation(network), "schemes": reached, "ratios": ratios, "additivity": added}


def allocation_by(scheme: str, network: nn.Module, curves: Sequence[Curve], sparsity: float, config: CurveConfig) -> Allocation:
    """ "rd" as the configuration says, "rd-worst" and "rd-mean" by that measure, or a scheme by name."""
    if scheme == "rd":
        return allocate_rd(curves, sparsity, measure=config.measure)
    if scheme.startswith("rd-"):
        by: Measure = "worst" if scheme == "rd-worst" else "mean"
        return allocate_rd(curves, sparsity, measure=by)
    return allocate(network, scheme, sparsity, [curve.layer for curve in curves])


def read_curves(folder: Path) -> list[Curve]:
    path = folder / CURVES
    if not path.is_file():
        raise InputError(f"{folder} has no curves yet; the run has not come that far, the same command resumes it")
    return [Curve.from_plain(plain) for plain in json.loads(path.read_text())]


def pruned_network(run: Run, problem: Problem) -> nn.Module:
    """What the run made, as a plain network with zeros."""
    path = run.folder / PRUNED
    if not path.is_file():
        raise InputError(f"{run.folder} has no pruned network yet; the same command resumes the run")
    network = problem.network(run.folder / DENSE)
    network.load_state_dict(load_sparse(path))
    return network.eval()
