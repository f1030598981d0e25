"""HMAR: both training passes and losses, sampling with refinement, and block attention with its gradients."""

import torch
from torch import Tensor

from paperworks.generators.draws import Draws
from paperworks.generators.masked_scale import MaskedScaleTransformer, scale_weights
from paperworks.generators.masked_scale_sampling import sample
from paperworks.generators.next_scale import SCALES_256
from paperworks.layers.block_causal import block_causal_attention, block_causal_mask, block_diagonal_attention
from paperworks.objectives.scale_training import MaskedScaleTraining, ScaleTraining
from paperworks.tokenizers.multi_scale_quantizer import MultiScaleVQ
from paperworks.training.objective import Context
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


def replay(case: Case) -> dict[str, Tensor]:
    if "block_sizes" in case.kwargs:
        result = _attention(case)
    else:
        with torch.no_grad():
            result = _training(case) if "idx_to_mask" in case.inputs else _sampling(case)
    return {name: value for name, value in result.items() if name in case.outputs}


def _below(case: Case, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in case.weights.items() if key.startswith(prefix)}


def _quantizer(case: Case) -> MultiScaleVQ:
    kwargs = {"share_quant_resi": 4, "quant_resi": 0.5} | case.kwargs
    return MultiScaleVQ.from_official(_below(case, "vae.quantize."), **kwargs).eval()


def _attention(case: Case) -> dict[str, Tensor]:
    sizes, scale = case.kwargs["block_sizes"], case.kwargs["sm_scale"]
    patterns = {
        "block_diagonal": lambda q, k, v: block_diagonal_attention(q, k, v, sizes, scale),
        "block_causal": lambda q, k, v: block_causal_attention(q, k, v, sizes, scale, block_causal_mask(sizes)),
    }
    result = {}
    for name, attend in patterns.items():
        given = [case.inputs[part].clone().requires_grad_() for part in "qkv"]
        out = attend(*given)
        gradients = torch.autograd.grad(out, given, case.inputs["dout"])
        result[f"{name}_out"] = out.detach()
        result |= {f"{name}_d{part}": gradient for part, gradient in zip("qkv", gradients)}
    return result


def _training(case: Case) -> dict[str, Tensor]:
    inputs, quantizer = case.inputs, _quantizer(case)
    next_scale = MaskedScaleTransformer.from_official(_below(case, "nsp."), **case.kwargs).eval()
    mask = MaskedScaleTransformer.from_official(_below(case, "mp."), mask_only=True, **case.kwargs).eval()
    indices = [inputs[f"idx_{scale}"] for scale in range(len(mask.patch_nums))]
    tokens, labels = torch.cat(indices, 1), inputs["labels"]
    shown = quantizer.next_inputs(indices)
    own = torch.cat([quantizer.own_inputs(scale, found) for scale, found in enumerate(indices) if scale], 1)
    masked = torch.zeros(shown.shape[1], dtype=torch.bool).index_fill(0, inputs["idx_to_mask"], True)
    logits = next_scale(labels, shown)
    refined = mask(labels, shown, own, masked)
    return {
        "ns_input": shown,
        "mask_input": own,
        "nsp_logits": logits,
        "nsp_loss_uniform": _next_scale_loss(next_scale, quantizer, tokens, labels, "uniform"),
        "nsp_loss_lognorm": _next_scale_loss(next_scale, quantizer, tokens, labels, "lognorm"),
        "lognorm_weights": scale_weights(mask.patch_nums)[None],
        "lognorm_weights_256": scale_weights(SCALES_256),
        "mp_logits": refined,
        "mask_loss": MaskedScaleTraining(mask, quantizer).masked_loss(labels, tokens, masked)[0],
        "trainable_mp_params": torch.tensor([sum(p.numel() for p in mask.mask_parameters())]),
    }


def _next_scale_loss(model: MaskedScaleTransformer, quantizer: MultiScaleVQ, tokens: Tensor, labels: Tensor, weights) -> Tensor:
    """As in training, of all rows under their own labels."""
    objective = ScaleTraining(model, quantizer, 0.0, weights).eval()
    losses = objective.loss({"tokens": tokens, "label": labels}, "main", Context(0, 1, 0))
    return losses.total / losses.count


def _sampling(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = MaskedScaleTransformer.from_official(case.weights, **kwargs).eval()
    result: dict[str, Tensor] = {}
    drawn = {name.removeprefix("u_"): value for name, value in inputs.items() if name.startswith("u_")}

    def observe(name: str, raw: Tensor) -> None:
        kind, _, rest = name.partition("_")
        result[f"raw_{kind}_logits_{rest}"] = raw

    made = sample(
        model,
        _quantizer(case),
        inputs["labels"],
        Draws(recorded=drawn),
        guidance=kwargs["cfg"],
        top_k=kwargs.get("top_k", 0),
        top_p=kwargs.get("top_p", 0.0),
        schedule=kwargs.get("mask_schedule"),
        observe=observe,
        after=lambda name, tokens: result.__setitem__(f"idx_after_{name}", tokens.clone()),
    )
    result["f_hat"] = made.features
    return result
