"""InceptionNeXt: whole networks (MetaNeXt), the mixer alone, and the partial-channel ConvNeXt of the study."""

from typing import Any

import torch
from torch import Tensor

from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.metanext import MetaNeXt
from paperworks.layers.convolution import InceptionDWConv2d
from paperworks.layers.pretrained import load_official
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    official = case.official.rsplit(":", 1)[-1]
    if official.startswith("MetaNeXt"):
        return _metanext(case)
    if official.startswith("ConvNeXt"):
        return _convnext(case)
    if official.startswith("InceptionDWConv2d"):
        return _mixers(case)
    raise NotImplementedError(f"no replay for {case.official}")


def _metanext(case: Case) -> dict[str, Tensor]:
    kwargs: dict[str, Any] = dict(case.kwargs)
    mixer = kwargs.pop("token_mixer", {})  # arguments of the mixer, which the reference binds before
    model = MetaNeXt.from_official(case.weights, mixer=mixer, **kwargs).eval()
    x = case.inputs["x"]
    final, maps = model.forward_intermediates(x)
    result = {"stem": model.stem(x), "logits": model(x), "features": final, "pre_logits": model.forward_head(final, True)}
    result |= {f"stage{index}": value for index, value in enumerate(maps)}
    if len(maps) > 1:
        second = model.stages[1]
        result["mixer"] = second.blocks[0].token_mixer(second.downsample(maps[0]))
    result["train_logits"] = model.train()(x)
    return result


def _convnext(case: Case) -> dict[str, Tensor]:
    model = ConvNeXt.from_official(case.weights, **case.kwargs).eval()
    x = case.inputs["x"]
    stem = model.downsample_layers[0](x)
    final, maps = model.forward_intermediates(x)
    result = {"stem": stem, "logits": model(x), "features": model.forward_head(final, True)}
    result["partial_dwconv"] = result["dwconv"] = model.stages[0][0].dwconv(stem)
    result |= {f"stage{index}": value for index, value in enumerate(maps)}
    result["train_logits"] = model.train()(x)
    return result


def _mixers(case: Case) -> dict[str, Tensor]:
    result = {}
    for index, spec in enumerate(case.kwargs["specs"]):
        mixer = load_official(InceptionDWConv2d(*spec), _below(case.weights, f"m{index}."))
        result[f"y{index}"] = mixer(case.inputs[f"x{index}"])
    return result


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
