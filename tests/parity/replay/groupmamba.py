"""GroupMamba: the network, a layer on tokens of a map that is not square, and the selective scan with all gradients."""

import re

import torch
from torch import Tensor

from paperworks.backbones.groupmamba import Block, GroupMamba
from paperworks.layers.selective_scan import selective_scan
from tests.parity.case import Case


def TOLERANCE(case: Case) -> tuple[float, float]:
    return (1e-5, 5e-5) if "delta" in case.inputs else (2e-5, 2e-5)


def replay(case: Case) -> dict[str, Tensor]:
    return _scan(case) if "delta" in case.inputs else _network(case)


@torch.no_grad()
def _network(case: Case) -> dict[str, Tensor]:
    model = GroupMamba.from_official(case.weights, **case.kwargs).eval()
    result: dict[str, Tensor] = {}
    if "x" in case.inputs:
        result["logits"] = model(case.inputs["x"])
        if model.distillation:
            result["head"], result["dist_head"] = model.both(case.inputs["x"])
    for name, tokens in case.inputs.items():
        if size := re.search(r"tokens_(\d+)x(\d+)$", name):
            grid = int(size[1]), int(size[2])
            block = model.get_submodule("block1.0")
            assert isinstance(block, Block)
            result["layer_out"] = block.attn(tokens.unflatten(1, grid)).flatten(1, 2)
    return {name: value for name, value in result.items() if name in case.outputs}


def _scan(case: Case) -> dict[str, Tensor]:
    given = {name: value.clone().requires_grad_() for name, value in case.inputs.items() if name != "grad_y"}
    softplus = bool(case.kwargs.get("delta_softplus", False))
    y, last = selective_scan(**given, delta_softplus=softplus)
    result = {"y": y.detach(), "last_state": last.detach()}
    if "grad_y" in case.inputs:
        gradients = torch.autograd.grad(y, list(given.values()), case.inputs["grad_y"])
        result |= {f"grad_{name}": value for name, value in zip(given, gradients)}
    return result
