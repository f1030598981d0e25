"""xAR: cells, rotary tables, a training pass with its loss, and sampling along both paths."""

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import NextEntityTransformer
from paperworks.generators.next_entity_sampling import sample
from paperworks.objectives.flow_matching import noised
from tests.parity.case import Case

TOLERANCE = (2e-4, 2e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = NextEntityTransformer.from_official(case.weights, **kwargs).eval()
    count, rows = len(model.entities.sizes), len(inputs["labels"])
    result: dict[str, Tensor] = {}
    turns = model.rotary.repeat_interleave(2, 1)
    result |= {"rope_cos": turns[..., 0], "rope_sin": turns[..., 1]}
    if "latent" in inputs:
        clean = model.entities.split(inputs["latent"])
        result["clusters"] = clean.unflatten(1, (count, -1))
        noise = torch.cat([inputs[f"noise_{number}"] for number in range(count)], 1)
        times = inputs["t"].view(count, rows).T
        labels = inputs["labels"]
        if "label_drop" in inputs:
            labels = labels.masked_fill(inputs["label_drop"], model.num_classes)
        given, wanted = noised(clean, noise, times[:, model.entity_of, None])
        result["velocity"] = model(labels, given, times)
        result["loss"] = F.mse_loss(result["velocity"], wanted)
    recorded = {f"start_{n}": inputs[f"sample_latents_{n}"] for n in range(count) if f"sample_latents_{n}" in inputs}
    recorded |= {name.replace("sample_eps", "eps"): value for name, value in inputs.items() if name.startswith("sample_eps")}
    for method in ("sde", "ode"):
        if f"tokens_{method}" in case.outputs:
            made = sample(
                model,
                inputs["labels"],
                Draws(recorded=recorded),
                steps=kwargs["num_steps"],
                guidance=kwargs["cfg"],
                method=method,
            )
            result[f"tokens_{method}"] = made.latents
    return {name: value for name, value in result.items() if name in case.outputs}
