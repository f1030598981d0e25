"""SimpleNet: feature map, logits, and a training pass that moves the first running mean."""

import torch
from torch import Tensor

from paperworks.backbones.simplenet import SimpleNet
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    model = SimpleNet.from_official(case.weights, **case.kwargs).eval()
    x = case.inputs["x"]
    result = {"features": model.forward_features(x), "logits": model(x)}
    result["train_logits"] = model.train()(x)
    for name, value in model.state_dict().items():
        if name.endswith(".running_mean"):
            result[f"train_running_mean/{name.removesuffix('.running_mean')}"] = value
    return {name: value for name, value in result.items() if name in case.outputs}
