"""PUT: helpers, the patch codec, the un-quantised transformer with its sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.generators.draws import Draws
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.generators.unquantized_sampling import FillConfig, fill_tokens, keep_likely
from paperworks.objectives.unquantized_prediction import UnquantizedPrediction
from paperworks.tokenizers.dual_quantizer import sinkhorn, token_types
from paperworks.tokenizers.patch_vqvae import PatchVQVAE
from tests.parity.case import Case


def TOLERANCE(case: Case) -> tuple[float, float]:
    """Images are recorded in 0..255."""
    return (1e-4, 1e-3) if "image" in case.inputs and case.weights else (1e-4, 1e-5)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    if not case.weights:
        found = _helpers(case)
    elif any(name.startswith("blocks.") for name in case.weights):
        found = _transformer(case)
    else:
        found = _codec(case)
    return {name: value for name, value in found.items() if name in case.outputs}


def _codec_of(case: Case, kwargs: dict) -> PatchVQVAE:
    return PatchVQVAE.from_official(
        case.weights,
        image_size=kwargs.get("image", case.inputs["image"].shape[-1]),
        masked_embed_start=kwargs.get("masked_embed_start") or kwargs["n_e"],
        upsample_type=kwargs.get("upsample_type", "nearest"),
        distance_type=kwargs.get("distance_type", "euclidean"),
    ).eval()


# --- helpers ------------------------------------------------------------------------------------------------------------


def _helpers(case: Case) -> dict[str, Tensor]:
    inputs, found = case.inputs, {}
    if "mask" in inputs and "token_type" in case.outputs:
        known = inputs["mask"]
        types, share = token_types(known, known.shape[-1] // case.outputs["token_type"].shape[-1])
        found |= {"token_type": types[:, None], "unmask_ratio": share[:, None]}
    if "image" in inputs and "pixel_unshuffle" in case.outputs:
        factor = inputs["image"].shape[-1] // case.outputs["pixel_unshuffle"].shape[-1]
        found["pixel_unshuffle"] = F.pixel_unshuffle(inputs["image"], factor)
    for name in case.outputs:
        if name.endswith("_kept"):
            kind, value = name.removesuffix("_kept").rsplit("_", 1)
            prob = kind == "prob"  # there the released filter keeps the best code of any row in all rows
            found[name] = keep_likely(inputs["logits"], float(value), "prob" if prob else "count", shared_best=prob).isfinite()
    if "sinkhorn" in case.outputs:
        found["sinkhorn"] = sinkhorn(_scores(case))
    return found


def _scores(case: Case) -> Tensor:
    """The scores of the Sinkhorn case are not recorded. They are 0.1 N(0, 1) of the seed two after that of the logits."""
    if "scores" in case.inputs:
        return case.inputs["scores"]
    logits, shape = case.inputs["logits"], case.outputs["sinkhorn"].shape
    for seed in range(100_000):
        if torch.equal(torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)), logits):
            return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + 2))
    raise AssertionError("the Sinkhorn case's scores cannot be found")


# --- the codec ----------------------------------------------------------------------------------------------------------


def _codec(case: Case) -> dict[str, Tensor]:
    model, inputs = _codec_of(case, case.kwargs), case.inputs
    images, known = inputs["image"] / 255, inputs["mask"]
    features, masked = model.features(images), model.features(images, known)
    tokens = model.quantize.encode(features)
    hidden, types = model.encode_masked(images, known)
    erased = token_types(inputs["erase_mask"], model.patch)[0] if "erase_mask" in inputs else torch.ones_like(tokens)
    chosen = model.quantize.encode(features, erased)
    found = {
        "feature": _first(features),
        "masked_feature": _first(masked),
        "feature_quantize": _first(model.lookup(tokens)),
        "masked_feature_quantize": _first(model.lookup(hidden)),
        "tokens": tokens,
        "masked_tokens": hidden,
        "token_type": types[:, None],
        "unmask_ratio": token_types(known, model.patch)[1][:, None],
        "tokens_erase": chosen.flatten(1),
        "reconstruction": 255 * model.fill(chosen, images, known, paste=False),
        "decoded": 255 * model.fill(tokens, images, known, paste=False),
    }
    if case.outputs["tokens"].ndim == 2:
        found["tokens"] = tokens.flatten(1)
    # which of the two quantisations a case recorded shows in its values alone
    wanted = case.outputs.get("feature_quantize")
    if wanted is not None and not torch.allclose(found["feature_quantize"], wanted, atol=1e-3):
        found["feature_quantize"] = found["masked_feature_quantize"]
    model.quantize.train()
    quantized = model.quantize(features, erased)
    found |= {
        "train_quantize_loss": quantized.loss,
        "ema_embedding_after": model.quantize.embedding.weight,
        "ema_cluster_size_after": getattr(model.quantize, "cluster_size", torch.empty(0)),
        "ema_embedding_avg_after": getattr(model.quantize, "embed_avg", torch.empty(0)),
    }
    return found


def _first(grid: Tensor) -> Tensor:
    return grid.permute(0, 3, 1, 2)


# --- the transformer ----------------------------------------------------------------------------------------------------


def _transformer(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    codec = _codec_of(case, kwargs["codec"])
    model = UnquantizedTransformer.from_official(
        case.weights,
        heads=kwargs.get("n_head") or kwargs["num_heads"],
        activation="gelu_sigmoid" if kwargs.get("block_activate", kwargs.get("act_layer")) == "GELU2" else "gelu",
        attend_known=kwargs.get("attn_content_with_mask", False),
    ).eval()
    images, known = inputs["image"] / 255, inputs["mask"]
    features = "quantized" if kwargs.get("input_feature_type") == "quantized" else "continuous"
    objective = UnquantizedPrediction(
        model, codec, random_quantize=kwargs.get("random_quantize", 0.2), features=features, poly=_poly(kwargs)
    )
    hole = ~known[:, 0]
    example = objective.examples(images, hole, inputs.get("quantize_rand", torch.ones(hole.shape[0]))[:, 0])
    logits = model(example.embedded, example.known if model.attend_known else None)
    loss = objective.losses(logits, example)
    found = {
        "embedding": example.embedded,
        "token_target": example.targets,
        "token_type": example.types,
        "logits": logits,
        "loss": loss.sum() / max(1, int((example.types != 1).sum())),
    }
    if case.outputs["token_type"].ndim == 3:
        side = math.isqrt(model.tokens)
        found |= {
            name: found[name].unflatten(1, (side, side)) for name in ("embedding", "token_target", "token_type", "logits")
        }
    settings = kwargs.get("sampling", {})
    raster = not settings.get("sample_largest", True)
    config = FillConfig(
        per_pass=settings.get("num_token_per_iter", 1),
        keep=settings.get("filter_ratio", 0.5),
        keep_kind=settings.get("filter_type", "count"),
        temperature=settings.get("temperature", 1.0),
        order="raster" if raster or settings.get("raster_order") else "confident",
        features=features,
        shared_best=True,
    )
    recorded = {name: value for name, value in inputs.items() if name.startswith("u_")}
    if recorded and raster:
        recorded = _by_position(recorded, example.known)
    if recorded:
        filled = fill_tokens(model, codec, images, known, Draws(recorded=recorded), config)
        tokens = filled.tokens if case.outputs["completed_tokens"].ndim == 3 else filled.tokens.flatten(1)
        paste = bool(kwargs["codec"].get("combine_rec_and_gt", False))
        found |= {
            "completed_tokens": tokens,
            "iterations": torch.tensor([filled.passes]),
            "completed": 255 * codec.fill(filled.tokens, images, known, paste=paste),
        }
    return found


def _by_position(recorded: dict[str, Tensor], known: Tensor) -> dict[str, Tensor]:
    """The released raster loop visits every position that is masked in any row, with a number for each row: as draws that
    belong to positions, the same in every pass."""
    table = torch.zeros(known.shape)
    visited = (~known).any(0).nonzero()[:, 0]
    for number, position in enumerate(visited.tolist()):
        table[:, position] = recorded[f"u_{number}"].flatten()
    return {f"u_{number}": table.flatten() for number in range(known.shape[1])}


def _poly(kwargs: dict) -> float:
    epsilons = (kwargs.get("loss_config") or {}).get("params", {}).get("epsilons", [0.0])
    return float(epsilons[0])
