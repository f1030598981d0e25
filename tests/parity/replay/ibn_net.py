"""IBN-Net: the layer alone, and ResNets, ResNeXts, SE-ResNets and DenseNets with it."""

from typing import Any

import torch
from torch import Tensor

from paperworks.backbones.densenet import DenseNet
from paperworks.backbones.resnet import ResNet
from paperworks.layers.instance_batch_norm import InstanceBatchNorm
from paperworks.layers.pretrained import load_official
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    if "specs" in case.kwargs:
        return _layers(case)
    if "block_config" in case.kwargs:
        return _densenet(case)
    return _resnet(case)


def _layers(case: Case) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for index, (channels, ratio) in enumerate(case.kwargs["specs"]):
        prefix, x = f"l{index}.", case.inputs[f"x{index}"]
        weights = {name.removeprefix(prefix): value for name, value in case.weights.items() if name.startswith(prefix)}
        layer = load_official(InstanceBatchNorm(channels, ratio), weights).eval()
        result[f"eval{index}"] = layer(x)
        result[f"train{index}"] = layer.train()(x)
        result[f"running_mean{index}"] = layer.BN.running_mean
    return result


def _resnet(case: Case) -> dict[str, Tensor]:
    kwargs: dict[str, Any] = dict(case.kwargs)
    block = "basic" if "Basic" in kwargs.get("block", "") else "bottleneck"
    arguments: dict[str, Any] = {"groups": kwargs["cardinality"]} if "cardinality" in kwargs else {}
    if "groups" in arguments:
        arguments["base_width"] = kwargs.get("baseWidth", kwargs.get("base_width", 4))
    if "SE" in kwargs.get("kind", "") or any(".se." in name for name in case.weights):
        hidden, wide = next(value.shape for name, value in case.weights.items() if name.endswith("se.fc.0.weight"))
        arguments |= {"attention": "se_linear", "se_ratio": hidden / wide}
    model = ResNet.from_official(
        case.weights,
        block=block,
        layers=kwargs["layers"],
        channels=kwargs["planes"],
        stem_width=kwargs["stem"],
        ibn=kwargs["ibn_cfg"],
        ibn_ratio=kwargs.get("ratio", 0.5),
        num_classes=kwargs["num_classes"],
        **arguments,
    ).eval()
    x = case.inputs["x"]
    maps = model.forward_intermediates(x, intermediates_only=True)
    result = {"logits": model(x), "feat0": model.maxpool(maps[0])}
    result |= {f"feat{index}": value for index, value in enumerate(maps) if index}
    result["train_logits"] = model.train()(x)
    return {name: value for name, value in result.items() if name in case.outputs}


def _densenet(case: Case) -> dict[str, Tensor]:
    model = DenseNet.from_official(case.weights, ibn=True, **case.kwargs).eval()
    x = case.inputs["x"]
    result = {"features": model.features(x), "logits": model(x)}
    result["train_logits"] = model.train()(x)
    return {name: value for name, value in result.items() if name in case.outputs}
