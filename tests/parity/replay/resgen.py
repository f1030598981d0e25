"""ResGen: formulas only, there is no official code. Residual quantisation, masks, masked sums, refilling, the mixture."""

import torch
from torch import Tensor

from paperworks.generators.residual_masked import Mixture, cosine_total, keep_mask, log_probability_of_counts
from paperworks.generators.residual_masked_sampling import refill, vectors_of
from paperworks.tokenizers.quantizers import ResidualQuantizer
from tests.parity.case import Case

TOLERANCE = (1e-5, 1e-5)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    depth, shared = kwargs["D"], kwargs.get("shared_codebook", False)
    quantizer = ResidualQuantizer(depth, kwargs["V"], kwargs["H"], shared=shared)
    for level in range(1 if shared else depth):
        name = "codebook" if shared and "codebook" in case.weights else f"codebook_{level}"
        quantizer.book(level).embedding.weight.copy_(case.weights[name])
    z, masked = inputs["z"], inputs["masked_counts"]
    indices = torch.stack(quantizer.encode(z), -1)
    vectors, keep = vectors_of(quantizer, indices), keep_mask(masked, depth)
    mixture = Mixture(inputs["mog_logits"], inputs["mog_mean"], inputs["mog_log_std"])
    target = (vectors * ~keep[..., None]).sum(2)
    steps = len(case.outputs["cosine_counts"])
    result = {
        "indices": indices,
        "dequantised": vectors.sum(2),
        "partial_sums": vectors.cumsum(2),
        "residual": z - vectors.sum(2),
        "keep_mask": keep,
        "context_sum": (vectors * keep[..., None]).sum(2),
        "masked_sum_target": target,
        "refilled_indices": refill(quantizer, indices, depth - masked, inputs["predicted_sum"]),
        "mog_nll": mixture.negative_log_likelihood(target),
        "hypergeometric_logpmf": log_probability_of_counts(masked, depth).float(),
        "cosine_counts": torch.tensor([float(cosine_total(t / (steps - 1), masked.shape[1] * depth)) for t in range(steps)]),
    }
    return {name: value for name, value in result.items() if name in case.outputs}
