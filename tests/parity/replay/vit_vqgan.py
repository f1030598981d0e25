"""ViT-VQGAN: the tokenizer (plain and residual) and the second stage's GPT, with and without token shift."""

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.generators.draws import Draws
from paperworks.generators.gpt import GPT, sample_tokens
from paperworks.layers.transformer import full_attention
from paperworks.tokenizers.quantizers import ResidualQuantizer
from paperworks.tokenizers.vit_vqgan import ViTVQGAN
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    result = _tokenizer(case) if "image" in case.inputs else _gpt(case)
    return {name: value for name, value in result.items() if name in case.outputs}


def _tokenizer(case: Case) -> dict[str, Tensor]:
    model = ViTVQGAN.from_official(case.weights, **case.kwargs).eval()
    image = case.inputs["image"]
    encoded = model.encoder(model.to_patches(image).flatten(2).transpose(1, 2))
    features = model.features(image)
    quantized = model.quantize(features)
    levels = quantized.indices
    residual = isinstance(model.quantize, ResidualQuantizer)
    summed = model.quantize.lookup(levels) if residual else model.quantize.lookup(levels[0])
    return {
        "encoder_out": encoded,
        "pre_quant": features,
        "codes": torch.stack(levels, -1) if residual else levels[0],
        "quant": quantized.features,
        "vq_loss": quantized.loss,
        "reconstruction": model.decode_raw(quantized.features),
        "decoded_from_codes": model.decode_raw(summed),
    }


def _gpt(case: Case) -> dict[str, Tensor]:
    model = GPT.from_official(case.weights, **case.kwargs).eval()
    kwargs, cond = case.kwargs, case.inputs["cond"]
    result = {}
    if "codes" in case.inputs:
        codes = case.inputs["codes"]
        result["logits"] = _unmasked(model, cond, codes)
        result["loss"] = F.cross_entropy(result["logits"].flatten(0, 1), codes.flatten())
    if "u" in case.inputs:
        draws = Draws(recorded={"uniform": case.inputs["u"]})
        top_k, top_p, temperature = kwargs.get("top_k") or 0, kwargs.get("top_p") or 0.0, kwargs.get("temperature", 1.0)
        result["sampled"] = sample_tokens(model, cond, draws, temperature=temperature, top_k=top_k, top_p=top_p)
        result["logits_of_sampled"] = _unmasked(model, cond, result["sampled"])
    return result


def _unmasked(model: GPT, cond: Tensor, codes: Tensor) -> Tensor:
    """The reference's training pass as it was recorded: its mask has no effect, so every token sees every other, also the
    one to be predicted. Ours masks; here the same blocks run without."""
    x = torch.cat((model.embed_classes(cond), model.token_embedding(codes)), 1) + model.positions
    for block in model.blocks:
        x = block(x, full_attention)
    return model.head(model.norm(x[:, model.class_tokens - 1 : -1]))
