"""NASNet: the large and the mobile network cell by cell; the schedule of dropped paths, the cells as tables, and PPO's loss."""

import math
from typing import Any

import torch
from torch import Tensor

from paperworks.backbones.genotype import NASNET_A, CellPlan
from paperworks.backbones.nasnet import NASNet, reduction_positions
from paperworks.layers.drop_path import DropPath, ScheduledDropPath, drop_samples, set_progress
from paperworks.search.cell_space import CellSpace
from paperworks.search.ppo import moving_baselines, ppo_loss, ratios
from tests.parity.case import Case

TOLERANCE = (1e-3, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    if not case.weights:
        return _search(case)
    mobile = "mobile" in case.official.lower()
    arguments = {"num_cells": 12, "stem_size": 32, "num_features": 1056} if mobile else {"stem_size": 96, "num_features": 4032}
    arguments |= {"skip_reduction_input": not mobile, "count_padding": case.official.startswith("timm")}
    model = NASNet.from_official(case.weights, **arguments | _given(case)).eval()
    result = _cells(model, case.inputs["x"])
    stack = len([name for name in result if name.startswith("cell")]) // 2 // 3
    if mobile:  # their numbers have gaps
        result = {_gapped(name, stack): value for name, value in result.items()}
        result["features"] = result["raw"]
    else:
        result["features"] = result["last_relu"]
    maps = model.forward_intermediates(case.inputs["x"], intermediates_only=True)
    result |= {f"feat{index}": value for index, value in enumerate(maps)}
    return result


def _given(case: Case) -> dict[str, object]:
    """Constructor arguments; names that both codes give to one thing count once."""
    names = {"stem_filters": "stem_size", "penultimate_filters": "num_features", "filters_multiplier": "channel_multiplier"}
    left_out = ("output_stride", "pad_type", "global_pool")
    return {names.get(name, name): value for name, value in case.kwargs.items() if name not in left_out}


def _gapped(name: str, stack: int) -> str:
    number, _, rest = name.removeprefix("cell").partition("_")
    if not name.startswith("cell") or not number.isdigit():
        return name
    return f"cell{int(number) // stack * 6 + int(number) % stack}" + ("_" + rest if rest else "")


def _cells(model: NASNet, x: Tensor) -> dict[str, Tensor]:
    """Every cell's output before and after its ReLU, and what comes at the end."""
    result = {"conv0": model.conv0(x)}
    state = result["conv0"]
    for name in [name for level in model._levels for name in level][1:]:
        cell = model.get_submodule(name)
        previous, current = state if isinstance(state, tuple) else (state, state.relu())
        short = name.replace("cell_stem_", "stem").replace("reduction_cell_", "reduction").replace("cell_", "cell")
        result[short] = result["raw"] = cell.combined(previous, current)
        state = cell(state)
        result[f"{short}_relu"] = result["last_relu"] = state[1]
    result["pooled"] = model.forward_head(state[1], pre_logits=True)
    result["logits"] = model(x)
    return result


def _search(case: Case) -> dict[str, Tensor]:
    given, inputs, result = case.kwargs, case.inputs, {}
    if "steps_shown" in given:
        result["keep_prob_v1_v2_v3"] = _kept(given)
    if "num_reduction_layers" in given:
        result["reduction_layers"] = torch.tensor(reduction_positions(given["num_cells"], given["num_reduction_layers"]))
    if "u" in inputs:
        result["drop_path_out"] = drop_samples(inputs["x"], 1 - given["drop_path_keep"], inputs["u"])
    if "ops" in given:
        for name, plan in (("normal", NASNET_A.normal), ("reduction", NASNET_A.reduction)):
            result |= _tables(name, plan, given["ops"])
        blocks = given.get("num_blocks", len(NASNET_A.normal.blocks))
        space = CellSpace(blocks, tuple(given["ops"]))
        result["space_size_log10"] = torch.tensor(math.log10(space.size()) / 2, dtype=torch.float64)
    if "logp_new" in inputs:
        baseline = moving_baselines(inputs["reward"], given["baseline_decay"])
        result["baseline"] = baseline
        result["ratio"] = ratios(inputs["logp_new"], inputs["logp_old"])
        advantage = inputs["reward"] - baseline[-1]
        result["ppo_loss"] = ppo_loss(
            inputs["logp_new"], inputs["logp_old"], advantage, inputs["entropy"], given["ppo_clip"], given["entropy_weight"]
        )
    return result


def _kept(given: dict[str, Any]) -> Tensor:
    """[3, cells, steps]: probabilities of keeping a path by the step alone, by the cell alone and by both, as the modules of a
    network of so many cells have them."""
    cells, keep = given["total_num_cells"], given["drop_path_keep_prob"]
    arguments = {"num_cells": cells - 2, "filters": 2, "stem": "cifar", "drop_path_rate": 1 - keep}
    by_step = ScheduledDropPath(1 - keep)
    by_cell, by_both = (_drops(NASNet(drop_path_schedule=schedule, **arguments)) for schedule in ("constant", "linear"))
    table = torch.empty(3, cells, len(given["steps_shown"]), dtype=torch.float64)
    for column, step in enumerate(given["steps_shown"]):
        for module in (by_step, *by_both):
            set_progress(module, step, given["total_training_steps"])
        table[0, :, column] = 1 - by_step.current.double()
        table[1, :, column] = torch.tensor([1 - drop.rate for drop in by_cell], dtype=torch.float64)
        table[2, :, column] = torch.stack([1 - drop.current.double() for drop in by_both])
    return table


def _drops(model: NASNet) -> list[Any]:
    """One module per cell, in their order."""
    return [module for module in model.modules() if isinstance(module, DropPath)]


def _tables(name: str, plan: CellPlan, operations: list[str]) -> dict[str, Tensor]:
    rows = [[b.left, b.right, operations.index(b.left_op), operations.index(b.right_op)] for b in plan.blocks]
    flags = {"concat": plan.concat, "unused": plan.unread()}
    vectors = {kind: [int(state in states) for state in range(plan.states)] for kind, states in flags.items()}
    return {f"{name}_cell": torch.tensor(rows)} | {f"{name}_{kind}": torch.tensor(v) for kind, v in vectors.items()}
