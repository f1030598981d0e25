"""NASNet: the large and the mobile network cell by cell; the schedule of dropped paths, the cells as tables, and PPO's loss."""

import math

import torch
from torch import Tensor

from paperworks.backbones.genotype import NASNET_A, CellPlan
from paperworks.backbones.nasnet import NASNet, reduction_positions
from paperworks.layers.drop_path import drop_samples, kept_share
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
        cells, steps, keep = (given[k] for k in ("total_num_cells", "total_training_steps", "drop_path_keep_prob"))
        table = [
            [
                [
                    kept_share(keep, 1.0 if version == 1 else (cell + 1) / cells, 1.0 if version == 2 else step / steps)
                    for step in given["steps_shown"]
                ]
                for cell in range(cells)
            ]
            for version in (1, 2, 3)
        ]
        result["keep_prob_v1_v2_v3"] = torch.tensor(table, dtype=torch.float64)
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


def _tables(name: str, plan: CellPlan, operations: list[str]) -> dict[str, Tensor]:
    rows = [[b.left, b.right, operations.index(b.left_op), operations.index(b.right_op)] for b in plan.blocks]
    flags = {"concat": plan.concat, "unused": plan.unread()}
    vectors = {kind: [int(state in states) for state in range(plan.states)] for kind, states in flags.items()}
    return {f"{name}_cell": torch.tensor(rows)} | {f"{name}_{kind}": torch.tensor(v) for kind, v in vectors.items()}
