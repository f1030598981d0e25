"""DetailFlow: tokenizer with prefixes and correction, the resolution map, the group-parallel transformer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.generators.draws import Draws
from paperworks.generators.group_parallel import GroupParallelTransformer, sample_tokens
from paperworks.layers.block_causal import group_causal_mask
from paperworks.tokenizers.detailflow import DetailFlow
from paperworks.tokenizers.resolution_map import ResolutionMap, resize
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    if "quant_conv.weight" in case.weights:
        result = _tokenizer(case)
    elif "tok_embeddings.weight" in case.weights:
        result = _transformer(case)
    else:
        result = _map(case)
    return {name: value for name, value in result.items() if name in case.outputs}


def _tokenizer(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = DetailFlow.from_official(case.weights, **kwargs).eval()
    images = (inputs["image"] + 1) / 2
    z = model.features(images)
    clean = model.quantize(z)
    latents, patches = model.latents, (images.shape[-1] // model.patch_size) ** 2
    allowed = group_causal_mask(latents, model.map.group, model.map.first)
    seen = torch.cat((torch.ones(latents, patches, dtype=torch.bool), allowed), 1)
    blind = torch.cat((torch.ones(patches, patches, dtype=torch.bool), torch.zeros(patches, latents, dtype=torch.bool)), 1)
    codebook, commitment = _losses(model, z)
    groups = clean.features.unflatten(1, (-1, model.map.group)).flatten(0, 1)
    result = {
        "latent": model.encoder(images * 2 - 1, allowed),
        "z": z,
        "quant": clean.features,
        "indices": clean.indices[0],
        "enc_mask": ~torch.cat((blind, seen)),
        "decoded_full": model.decode_signed(model.quantize.lookup(clean.indices[0]), images.shape[-1]),
        "train_vq_loss": codebook,
        "train_commit_loss": commitment,
        "mean_group_cosine": _cosine(groups),
    }
    if "t_partial" in kwargs:
        count, side = kwargs["t_partial"], kwargs["lowres"]
        result["decoded_partial"] = model.decode_signed(clean.features[:, :count], side)
        if "image_low" in inputs:
            result["indices_lowres"] = model.quantize.encode(model.features((inputs["image_low"] + 1) / 2, count))
    if "noise_rank" in inputs:
        found = model.corrupt(images, z, clean, kwargs["noise_idx"], inputs["noise_rank"])
        later = model.features(images, latents, found.features[:, : found.end])[:, found.end :]
        total = 2 * latents - found.end
        fresh = [share / total for share in (latents, latents - found.end)]
        mixed = [
            a * fresh[0] + b * fresh[1] for a, b in zip((codebook, commitment), _losses(model, later))
        ]  # by how many tokens each counts
        result |= {
            "corr_quant": found.features,
            "corr_indices_clean_input_label": torch.stack((clean.indices[0], found.inputs, found.label), -1),
            "corr_train_quant": torch.cat((clean.features, found.features)),
            "corr_train_vq_loss": mixed[0],
            "corr_train_commit_loss": mixed[1],
        }
    return result


def _losses(model: DetailFlow, z: Tensor) -> tuple[Tensor, Tensor]:
    quantize, searched = model.quantize, F.normalize(z, dim=-1)
    squared = F.mse_loss(quantize.lookup(quantize.encode(z)), searched)
    return quantize.codebook_weight * squared, quantize.beta * squared


def _cosine(groups: Tensor) -> Tensor:
    """Mean cosine between different members of a group [N, n, C]."""
    unit = F.normalize(groups, dim=-1)
    count = groups.shape[1]
    between = (unit @ unit.transpose(1, 2)).masked_fill(torch.eye(count, dtype=torch.bool), 0)
    return (between.sum((1, 2)) / (count * (count - 1))).mean()


def _transformer(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = GroupParallelTransformer.from_official(case.weights, **kwargs).eval()
    labels = inputs["class"]
    result = {"group_mask_allowed": model.mask, "rope": model.rotary}
    if "z" in inputs:
        logits = model(labels, inputs["z"])
        result |= {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), inputs["z"].flatten())}
    if "u" in inputs:
        made = sample_tokens(
            model,
            labels,
            Draws(recorded={"uniform": inputs["u"]}),
            guidance=kwargs.get("cfg_scale", 1.0),
            falling=kwargs.get("gradual_cfg", False),
            temperature=kwargs.get("temperature", 1.0),
            top_k=kwargs.get("top_k", 0),
            top_p=kwargs.get("top_p", 0.0),
        )
        both = torch.cat((labels, torch.full_like(labels, model.num_classes)))
        result |= {"generated": made, "logits_of_generated_cond_then_null": model(both, made.repeat(2, 1))}
    return result


def _map(case: Case) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, given in case.kwargs.items():
        if not isinstance(given, dict):
            continue
        found = ResolutionMap(
            given["max_img_size"],
            given["max_token_num"],
            given["group_size"],
            given.get("patch", given.get("dec_patch_size", 16)),
            given.get("causal_num") or 0,
            given.get("p", 1.5),
        )
        lengths = found.lengths
        result |= {
            f"{name}_tokens": torch.tensor(lengths),
            f"{name}_res": torch.tensor([found.resolution(length) for length in lengths]),
            f"{name}_dec_res": torch.tensor([found.decoded(length) for length in lengths]),
            f"{name}_best": torch.tensor(sorted(found.best().items())),
        }
    for name, wanted in case.outputs.items():
        if name.startswith("resize_"):
            result[name] = resize(case.inputs["img"], wanted.shape[-1])
    return result
