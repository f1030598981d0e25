"""VoVNet: the authors' and timm's classes stage by stage, and the memory traffic of every convolution."""

import torch
import torchvision
from torch import Tensor, nn

from paperworks.analysis.memory_traffic import convolution_traffic
from paperworks.backbones.registry import create
from paperworks.backbones.vovnet import VoVNet
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    if "models" in case.kwargs:
        return _traffic(case)
    model = VoVNet.from_official(case.weights, **case.kwargs).eval()
    x = case.inputs["x"]
    maps = model.forward_intermediates(x, intermediates_only=True)
    result = {"logits": model(x), "stem": model.stem(x), "features": maps[-1]}
    result |= {f"feat{index}": value for index, value in enumerate(maps)}
    result |= {f"stage{index + 1}": value for index, value in enumerate(maps) if index}
    if "train_logits" in case.outputs:
        result["train_logits"] = model.train()(x)
    return {name: value for name, value in result.items() if name in case.outputs}


def _traffic(case: Case) -> dict[str, Tensor]:
    size = int(case.inputs.get("size", torch.tensor(case.kwargs.get("size", 224))))
    result = {}
    for name in case.kwargs["models"]:
        rows = convolution_traffic(_network(name), torch.rand(1, 3, size, size))
        table = torch.tensor([row.as_numbers() for row in rows])
        result[f"{name}/layers"] = table
        result[f"{name}/totals"] = torch.stack([table[:, 7:9].sum(), table[:, 9].sum(), table[:, 10].sum()])
    return result


def _network(name: str) -> nn.Module:
    try:
        return create(name).eval()
    except ValueError:
        return torchvision.models.get_model(name).eval()
