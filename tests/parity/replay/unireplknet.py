"""UniRepLKNet: the network in both forms, the dilated re-parameterised kernel, and the inputs of other modalities."""

import re

import torch
from torch import Tensor

from paperworks.backbones.modalities import (
    PointHead,
    PointProjection,
    audio_image,
    fold_series,
    mosaic,
    rotations,
    unfold_series,
    viewed,
)
from paperworks.backbones.unireplknet import RENAME, UniRepLKNet
from paperworks.layers.large_kernel import dilated_reparam
from paperworks.layers.pretrained import load_official
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    if "depths" in case.kwargs:
        return _network(case)
    if "points" in case.inputs:
        return _points(case)
    if "channels" in case.kwargs:
        return _kernels(case)
    return _inputs(case)


def _network(case: Case) -> dict[str, Tensor]:
    model = UniRepLKNet.from_official(case.weights, **case.kwargs).eval()
    x = case.inputs["x"]
    result = {f"stage{index}": value for index, value in enumerate(model.forward_intermediates(x, intermediates_only=True))}
    result["logits"] = model(x)
    model.reparameterize()
    result["deploy_logits"] = model(x)
    ours = model.state_dict()
    for name in case.outputs:
        if name.startswith("deploy/"):
            key = name.removeprefix("deploy/").replace("lk_origin.", "")
            for pattern, replacement in RENAME.items():
                key = re.sub(pattern, replacement, key)
            result[name] = ours[key]
    return {name: value for name, value in result.items() if name in case.outputs}


def _kernels(case: Case) -> dict[str, Tensor]:
    rename = {
        r"lk_origin\.": "origin.conv.",
        r"origin_bn\.": "origin.bn.",
        r"dil_(conv|bn)_(k\d+_\d+)\.": r"branches.\2.\1.",
    }
    result = {}
    for size in case.kwargs["kernel_sizes"]:
        prefix = f"k{size}."
        own = {name.removeprefix(prefix): value for name, value in case.weights.items() if name.startswith(prefix)}
        block = load_official(dilated_reparam(case.kwargs["channels"], size), own, rename).eval()
        merged = block.merged()
        result |= {
            f"y{size}": block(case.inputs[f"x{size}"]),
            f"merged_kernel{size}": merged.weight,
            f"merged_bias{size}": merged.bias,
        }
    return result


def _inputs(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    result = {}
    if "series_embedding" in inputs:
        result["series_image"] = fold_series(inputs["series_embedding"])
    if "encoder_out" in inputs:
        result["decoder_memory"] = unfold_series(inputs["encoder_out"], case.kwargs["D"])
    if "spectrogram" in inputs:
        result["audio_image"] = audio_image(inputs["spectrogram"])
    if "video" in inputs:
        result["video_grid"] = mosaic(inputs["video"])
    return result


def _points(case: Case) -> dict[str, Tensor]:
    given = case.kwargs
    project = PointProjection(
        given["local_size"],
        given["trans_dim"],
        given["graph_dim"],
        given["imgblock_dim"],
        given["img_size"],
        given["obj_size"],
        given["imagenet_default_mean"],
        given["imagenet_default_std"],
        given["atten_fusion"],
    )
    own = {name.removeprefix("enc."): value for name, value in case.weights.items() if name.startswith("enc.")}
    project = load_official(project, own).eval()
    turns = rotations(given["num_views"])
    points = case.inputs["points"]
    turned = viewed(points, turns)
    original = points.repeat_interleave(given["num_views"], 0)
    result = {"rotations": turns, "transformed": turned, "image": project(original, turned)}
    head = PointHead(case.weights["head.norm.weight"].numel(), len(case.weights["head.cls_head.bias"]), given["num_views"])
    load_official(
        head,
        {name.removeprefix("head."): v for name, v in case.weights.items() if name.startswith("head.")},
        {"cls_head": "linear"},
    )
    result["head_logits"] = head.eval()(case.inputs["feat"])
    return {name: value for name, value in result.items() if name in case.outputs}
