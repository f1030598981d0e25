"""RD-prune: curves, baseline amounts, LAMP scores, and the allocation (exact, and as the released solver answers).

The case describes its network in words (`kwargs["net"]`); it is built from that description and the shapes of the weights.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor, nn

from paperworks.compression import allocation, knapsack
from paperworks.compression.distortion import measure_curves, ratio_grid
from paperworks.compression.patterns import count
from paperworks.compression.released_solver import released_choices
from paperworks.compression.sparsity import effective_weight, prunable_layers
from tests.parity.case import Case

TOLERANCE = (1e-4, 2e-8)  # distortions are small: the default absolute tolerance would hide a wrong one


class Described(nn.Module):
    """A network given as "conv1 3x3 s2 p1 bias -> BN(eval) -> relu -> x+relu(conv2 1x1) -> mean over HW -> fc"."""

    def __init__(self, text: str, weights: dict[str, Tensor]):
        super().__init__()
        self.steps = [step.strip() for step in text.split("->")]
        norms = 0
        for step in self.steps:
            if found := re.search(r"(conv\w*) (\d+)x(\d+)([^)]*)", step):
                name, height, width, options = found.groups()
                shape = weights[f"{name}.weight"].shape
                settings = {key: int(value) for key, value in re.findall(r"\b([spdg])(\d+)", options)}
                groups = settings.get("g", 1)
                convolution = nn.Conv2d(
                    shape[1] * groups,
                    shape[0],
                    (int(height), int(width)),
                    stride=settings.get("s", 1),
                    padding=settings.get("p", 0),
                    dilation=settings.get("d", 1),
                    groups=groups,
                    bias=f"{name}.bias" in weights,
                )
                setattr(self, name, convolution)
            elif step.startswith("BN"):
                norms += 1
                setattr(self, f"bn{norms}", nn.BatchNorm2d(len(weights[f"bn{norms}.weight"])))
            elif f"{step.split()[0]}.weight" in weights:
                name = step.split()[0]
                out, features = weights[f"{name}.weight"].shape
                setattr(self, name, nn.Linear(features, out, bias=f"{name}.bias" in weights))
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        norms = 0
        for step in self.steps:
            norms += step.startswith("BN")
            x = self._step(step, x, norms)
        return x

    def _step(self, step: str, x: Tensor, norms: int) -> Tensor:
        if step.startswith("x+"):
            return x + self._step(step[2:], x, norms)
        if wrapped := re.fullmatch(r"relu\((.*)\)", step):
            return self._step(wrapped[1], x, norms).relu()
        if step.startswith("BN"):
            return getattr(self, f"bn{norms}")(x)
        if step == "relu":
            return x.relu()
        if step.startswith("mean over HW"):
            return x.mean((2, 3))
        return getattr(self, step.split()[0])(x)


def replay(case: Case) -> dict[str, Tensor]:
    model = Described(case.kwargs["net"], case.weights).eval()
    layers = prunable_layers(model)
    sizes = [layer.numel for layer in layers]
    weights = [effective_weight(model, layer) for layer in layers]
    grid = ratio_grid(case.kwargs["levels"])
    curves = measure_curves(model, case.inputs["x"], layers=layers, ratios=grid)
    outputs = {
        "logits": model(case.inputs["x"]),
        "rd_amount": torch.tensor(grid),
        "rd_dist_mean": torch.tensor([curve.mean for curve in curves]),
        "rd_dist_worst": torch.tensor([curve.worst for curve in curves]),
    }
    for j, weight in enumerate(weights):
        outputs[f"lamp_score_{j}"] = allocation.lamp_scores(weight).flatten()

    # Recorded as float32; the shortest decimal is the number that was meant (0.8, not 0.800000012).
    targets = [float(str(np.float32(s))) for s in case.inputs["target_sparsity"].tolist()]
    outputs["lamp_amounts"] = torch.tensor(allocation.lamp_amounts(weights, targets[0]))
    outputs["erk_amounts"] = torch.tensor(allocation.erk_amounts(weights, targets[0]))
    outputs["unifplus_amounts"] = torch.tensor(allocation.unif_plus_amounts(weights, targets[0]))

    distortions = [curve.mean if "DP on rd_dist_mean" in case.call else curve.worst for curve in curves]
    costs = [[size - count(ratio, size) for ratio in grid] for size in sizes]
    grid32 = np.asarray(grid, dtype=np.float32)
    for i, target in enumerate(targets):
        previous = case.inputs["prev_sparsity"][i].numpy()
        lower = [int((grid32 < earlier).sum()) for earlier in previous]
        exact = knapsack.solve(distortions, costs, allocation.weight_budget(sum(sizes), target), lower=lower)
        released = released_choices(sizes, grid, distortions, previous.tolist(), target)
        for who, choices in (("exact", exact.choices), ("official", released)):
            outputs[f"{who}_amounts_{i}"] = torch.tensor([grid[c] for c in choices])
            outputs[f"{who}_kept_{i}"] = torch.tensor([sum(cost[c] for cost, c in zip(costs, choices))])
            outputs[f"{who}_objective_{i}"] = torch.tensor([sum(d[c] for d, c in zip(distortions, choices))])
    return outputs
