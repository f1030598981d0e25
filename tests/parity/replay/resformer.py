"""ResFormer: logits and positions at any size, and the losses and gradients of a training step over several sizes."""

from typing import Any

import torch
from torch import Tensor

from paperworks.backbones.resformer import ResFormer
from paperworks.objectives.multi_resolution import MultiResolution
from tests.parity.case import Case

TOLERANCE = (2e-5, 2e-5)

DISTANCES = {"smooth-l1": "smooth_l1", "cosine": "cosine", "l2": "l2", "none": "none", None: "none"}
COMPARED = {"cls": "cls", "gap": "gap", "logit": "logits", "logits": "logits", None: "cls"}


def replay(case: Case) -> dict[str, Tensor]:
    model = ResFormer.from_official(case.weights, **case.kwargs.get("model", case.kwargs)).eval()
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in case.inputs.items():
            if value.ndim == 4 and value.is_floating_point():
                result["logits" + name.removeprefix("x")] = model(value)
    for name in case.outputs:
        if name.startswith("pos") and name[3:].isdigit():
            side = int(name[3:]) // model.patch_size
            with torch.no_grad():
                # the class token's row is zero: nothing is added to it
                result[name] = torch.nn.functional.pad(model.pos_embed((side, side))[0], (0, 0, 1, 0))
    if "sizes" in case.kwargs and "labels" in case.inputs:
        result |= _training_step(model, case)
    return result


def _training_step(model: ResFormer, case: Case) -> dict[str, Tensor]:
    kwargs: dict[str, Any] = case.kwargs
    consistency = DISTANCES[kwargs.get("distillation_type")] if kwargs.get("distillation_target") else "none"
    objective = MultiResolution(
        model,
        kwargs["sizes"],
        consistency=consistency,
        compare=COMPARED[kwargs.get("distillation_target")],
        weight=kwargs.get("alpha", 1.0),
        smoothing=kwargs.get("label_smoothing", 0.0),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    ).train()
    images = [case.inputs[f"x{size}"] for size in kwargs["sizes"]]
    losses, _, _ = objective.size_losses(images, [case.inputs["labels"]] * len(images))
    loss = torch.stack(losses).mean()
    loss.backward()
    result = {"loss": loss.detach().view(1), "loss_per_size": torch.stack(losses).detach()}
    for name, recorded in case.outputs.items():
        if name.startswith("grad_"):
            result[name] = _gradient(model, name.removeprefix("grad_"), recorded.shape)
    return result


def _gradient(model: ResFormer, named: str, shape: torch.Size) -> Tensor:
    """`patch_embed` or `blocks_0_attn_qkv_weight`: the parameter of that shape whose name begins so, or contains it."""
    found = {name.replace(".", "_"): p for name, p in model.named_parameters() if p.shape == shape and p.grad is not None}
    ways = (
        [name for name in found if name == named],
        [name for name in found if name.startswith(named)],
        [name for name in found if named in name],
    )
    name = next(names[0] for names in ways if names)
    gradient = found[name].grad
    assert gradient is not None
    return gradient
