"""Patch scaling: the authors' network, its mixer and flipped block, and the scan of Mamba-2 with all gradients."""

import torch
from torch import Tensor

from paperworks.backbones.adventurer import Adventurer, Block
from paperworks.layers.ssd_scan import ssd_scan
from tests.parity.case import Case

TOLERANCE = (5e-5, 5e-5)


def replay(case: Case) -> dict[str, Tensor]:
    return _scan(case) if "dt" in case.inputs else _network(case)


@torch.no_grad()
def _network(case: Case) -> dict[str, Tensor]:
    model = Adventurer.from_official(case.weights, **case.kwargs).eval()
    result: dict[str, Tensor] = {}
    if "x" in case.inputs:
        result["logits"] = model(case.inputs["x"])
    if "h" in case.inputs:
        h, block = case.inputs["h"], model.layers[0]
        assert isinstance(block, Block)
        result |= {"mixer": block.mixer(h), "block": block(h), "block_flipped": block(h, flip=True)}
    return {name: value for name, value in result.items() if name in case.outputs}


def _scan(case: Case) -> dict[str, Tensor]:
    given = {name: value.clone().requires_grad_() for name, value in case.inputs.items() if name != "grad_y"}
    y = ssd_scan(**given, dt_softplus=bool(case.kwargs.get("dt_softplus", False)))  # type: ignore[arg-type]
    result = {"y": y.detach()}
    if "grad_y" in case.inputs:
        gradients = torch.autograd.grad(y, list(given.values()), case.inputs["grad_y"])
        result |= {f"grad_{name}": value for name, value in zip(given, gradients)}
    return result
