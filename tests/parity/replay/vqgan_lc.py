"""VQGAN-LC: the whole tokenizer with its projected code book, the EMA baseline's update, and GPT-LC."""

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.generators.draws import Draws
from paperworks.generators.gpt import GPT, sample_tokens
from paperworks.tokenizers.quantizers import VectorQuantizer
from paperworks.tokenizers.vqgan_lc import VQGANLC
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


def replay(case: Case) -> dict[str, Tensor]:
    if "image" in case.inputs:
        result = _tokenizer(case)
    elif "decay" in case.kwargs:
        result = _ema(case)
    else:
        result = _gpt(case)
    return {name: value.detach() for name, value in result.items() if name in case.outputs}


def _tokenizer(case: Case) -> dict[str, Tensor]:
    model = VQGANLC.from_official(case.weights, **case.kwargs).eval()
    signed = case.inputs["image"]
    h = model.features((signed + 1) / 2)
    quantized = model.quantize(h)
    made = model.decode_signed(quantized.features)
    result = {
        "h": h.permute(0, 3, 1, 2),
        "indices": quantized.indices[0],
        "quant": quantized.features.permute(0, 3, 1, 2),
        "q_loss": quantized.loss,
        "reconstruction": made,
        "rec_l1": F.l1_loss(made, signed),
    }
    projection = getattr(model.quantize, "codebook_projection", None)
    if projection is not None:
        result["projected_codebook"] = projection(model.quantize.tok_embeddings.weight)
        first = projection if hasattr(projection, "weight") else projection[0]
        weights = [parameter for parameter in projection.parameters() if parameter.ndim == 2]
        gradients = torch.autograd.grad(quantized.loss, weights)
        result["grad_projector_of_q_loss"] = gradients[0]
        for number, gradient in enumerate(gradients):
            result[f"grad_projector_{number}_of_q_loss"] = gradient
        assert first.weight.shape == gradients[0].shape
    return result


@torch.no_grad()
def _ema(case: Case) -> dict[str, Tensor]:
    kwargs, weights = case.kwargs, case.weights
    quantizer = VectorQuantizer(kwargs["n"], kwargs["dim"], beta=1.0, ema=kwargs["decay"], ema_eps=kwargs["eps"])
    quantizer.embedding.weight.copy_(weights["tok_embeddings.weight"])
    quantizer.cluster_size.copy_(weights["cluster_size"])
    quantizer.embed_avg.copy_(weights["embed_avg"])
    z = case.inputs["z"]
    found = quantizer.train()(z.permute(0, 2, 3, 1))
    return {
        "indices": found.indices[0],
        "loss": found.loss,
        "quant": found.features.permute(0, 3, 1, 2),
        "cluster_size_after": quantizer.cluster_size,
        "embed_avg_after": quantizer.embed_avg,
        "embedding_after": quantizer.embedding.weight,
    }


@torch.no_grad()
def _gpt(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = GPT.from_official(case.weights, **kwargs).eval()
    labels = (
        inputs["class_tokens"] - kwargs["n_vision_words"]
        if int(inputs["class_tokens"].min()) >= kwargs["n_vision_words"]
        else inputs["class_tokens"]
    )
    result = {}
    if "indices" in inputs:
        indices = inputs["indices"]
        logits = model(labels, indices)
        flat = logits.flatten(0, 1)
        result |= {
            "logits": logits,
            "ce": F.cross_entropy(flat, indices.flatten()),
            "label_smoothing_loss": F.cross_entropy(
                flat, indices.flatten(), label_smoothing=kwargs.get("label_smoothing", 0.1)
            ),
        }
    if "u" in inputs:
        draws = Draws(recorded={"uniform": inputs["u"]})
        result["sampled"] = sample_tokens(
            model, labels, draws, top_k=kwargs.get("top_k", 0), temperature=kwargs.get("temperature", 1.0)
        )
        result["logits_of_sampled"] = model(labels, result["sampled"])
    return result
