"""RepLKNet in both forms, effective receptive fields and shape bias."""

import torch
from torch import Tensor

from paperworks.analysis.receptive_field import centre_gradient, centred_squares, effective_receptive_field, log_scaled
from paperworks.analysis.shape_bias import coarse_scores, shape_bias
from paperworks.backbones.replknet import RepLKNet
from paperworks.backbones.unireplknet import UniRepLKNet
from tests.parity.case import Case


def TOLERANCE(case: Case) -> tuple[float, float]:
    return (1e-3, 1e-5) if "input_grad" in case.outputs else (1e-4, 1e-4)


def replay(case: Case) -> dict[str, Tensor]:
    if "response" in case.inputs or "prob" in case.inputs:
        return _bias(case)
    if "x" not in case.inputs:
        return _squares(case)
    if "kernel_sizes" in case.kwargs:
        return _field(case)
    with torch.no_grad():
        return _network(case)


def _network(case: Case) -> dict[str, Tensor]:
    model = RepLKNet.from_official(case.weights, **case.kwargs).eval()
    x = case.inputs["x"]
    result = {"features": model.forward_features(x), "logits": model(x)}
    model.reparameterize()
    result["reparam_logits"] = model(x)
    ours = model.state_dict()
    result |= {name: ours[name.removeprefix("reparam/")] for name in case.outputs if name.startswith("reparam/")}
    return {name: value for name, value in result.items() if name in case.outputs}


def _field(case: Case) -> dict[str, Tensor]:
    given = {**case.kwargs}
    thresholds = given.pop("thresholds", (0.2, 0.3, 0.5, 0.99))
    plain = UniRepLKNet(**{**given, "num_classes": 0})
    # the recorded weights are those of the feature extractor, without norm and head
    weights = case.weights | {f"norm.{kind}": plain.head.norm.state_dict()[kind] for kind in ("weight", "bias")}
    model = UniRepLKNet.from_official(weights, **{**given, "num_classes": 0}).eval()
    x = case.inputs["x"]
    field = effective_receptive_field(model, x, thresholds)
    gradients = torch.stack([centre_gradient(model.forward_features, image[None]) for image in x])
    result = {
        "input_grad": gradients,
        "contribution": field.contribution,
        "scaled": field.scaled,
        "rectangle": _rows(field.squares),
    }
    return {name: value for name, value in result.items() if name in case.outputs}


def _squares(case: Case) -> dict[str, Tensor]:
    return {
        name.replace("contribution", "rectangle"): _rows(centred_squares(log_scaled(value), case.kwargs["thresholds"]))
        for name, value in case.inputs.items()
    }


def _rows(squares) -> Tensor:
    return torch.tensor([[s.share, -1 if s.side is None else s.side, -1 if s.area is None else s.area] for s in squares])


def _bias(case: Case) -> dict[str, Tensor]:
    inputs, result = case.inputs, {}
    if "response" in inputs:
        found = shape_bias(inputs["response"], inputs["shape_label"], inputs["texture_label"], case.kwargs["classes"])
        result |= {
            "shape_bias": torch.tensor(found.bias),
            "fraction_shape": torch.tensor(found.fraction_shape),
            "fraction_texture": torch.tensor(found.fraction_texture),
            "per_category": found.per_class,
        }
    if "prob" in inputs:
        groups = [[int(c) for c in row if c >= 0] for row in inputs["groups"]]
        scores = coarse_scores(inputs["prob"], groups)
        result |= {"group_scores": scores, "group_decision": scores.argmax(1)}
    return {name: value for name, value in result.items() if name in case.outputs}
