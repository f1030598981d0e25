"""CSWin: both published forms (fixed size, padded for dense prediction), their blocks, branches, merging and windows."""

from typing import Any

import torch
from torch import Tensor, nn

from paperworks.backbones.cswin import NAMES, ConvNorm, CSWin, CSWinBlock, CSWinDense, StripeAttention
from paperworks.layers.pretrained import load_official
from paperworks.layers.transformer import FeedForward
from paperworks.layers.windows import cut_windows, join_windows
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)
BRANCHES = {-1: "full", 0: "vertical", 1: "horizontal"}


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    kind = case.official.rpartition(":")[2].partition("(")[0].strip().rpartition(".")[2]
    dense = "segmentation" in case.official
    result = REPLAYS[kind](case, dense)
    if len(case.outputs) == 1 and len(result) == 1:
        return {next(iter(case.outputs)): next(iter(result.values()))}
    return result


def network(case: Case, dense: bool) -> dict[str, Tensor]:
    x = case.inputs["x"]
    if dense:
        model: CSWin = CSWinDense.from_official(case.weights, **case.kwargs).eval()
    else:
        model = CSWin.from_official(case.weights, **case.kwargs).eval()
    last, maps = model.forward_intermediates(x)
    result = {"embed": tokens(model.stem(x)), "features": model.forward_head(last, pre_logits=True)}
    for index, each in enumerate(maps):
        result[f"stage{index + 1}"] = tokens(each)
        result |= {name: each for name in (f"out{index}", f"y{index}", f"feat{index}", str(index))}
    for name, value in case.outputs.items():
        if name.startswith("stage") and name in result and value.ndim == 4:
            result[name] = maps[int(name[5:]) - 1]
    if not dense:
        result |= {"logits": model(x), "y": model(x)}
    return result


def block(case: Case, dense: bool) -> dict[str, Tensor]:
    x, given = case.inputs["x"], case.kwargs
    height, width = size_of(case, x.shape[1])
    resolution = given.get("reso", given.get("patches_resolution", height))
    full = given.get("last_stage", False) or (not dense and resolution == given.get("split_size", 7))
    ours = CSWinBlock(
        given["dim"],
        given["num_heads"],
        None if full else given.get("split_size", 7),
        mlp_ratio=given.get("mlp_ratio", 4.0),
        qkv_bias=dense or given.get("qkv_bias", False),
        qk_scale=given.get("qk_scale"),
    ).eval()
    load_official(ours, case.weights, rename=lambda name: name_in_block(name))
    return {"y": tokens(ours(maps_of(x, height, width)))}


def branch(case: Case, dense: bool) -> dict[str, Tensor]:
    """The classifier's takes [3, N, L, C], the dense form's [N, 3, C, H, W]."""
    given = case.kwargs
    [qkv] = case.inputs.values()
    if qkv.ndim == 5:
        qkv = qkv.permute(0, 3, 4, 1, 2)
    else:
        height, width = size_of(case, qkv.shape[2], given.get("resolution"))
        qkv = qkv.permute(1, 2, 0, 3).unflatten(1, (height, width))
    direction: Any = BRANCHES[given["idx"]]
    ours = StripeAttention(
        given["dim"], given.get("num_heads", 8), direction, given.get("split_size", 7), given.get("qk_scale")
    ).eval()
    load_official(ours, case.weights, rename={r"^get_v\.": "lepe."})
    return {"y": ours(qkv).flatten(1, 2)}


def merge(case: Case, dense: bool) -> dict[str, Tensor]:
    x = case.inputs["x"]
    height, width = size_of(case, x.shape[1])
    ours = ConvNorm(case.kwargs["dim"], case.kwargs["dim_out"], 3, 2, 1).eval()
    load_official(ours, case.weights)
    y = ours(maps_of(x, height, width))
    return {"y": tokens(y)}


def mlp(case: Case, dense: bool) -> dict[str, Tensor]:
    given = case.kwargs
    ours: nn.Module = FeedForward(given["in_features"], given.get("hidden_features") or given["in_features"])
    load_official(ours, case.weights)
    return {"y": ours(case.inputs["x"])}


def cut(case: Case, dense: bool) -> dict[str, Tensor]:
    [image] = case.inputs.values()
    return {"y": cut_windows(image.permute(0, 2, 3, 1), (case.kwargs["H_sp"], case.kwargs["W_sp"])).flatten(1, 2)}


def join(case: Case, dense: bool) -> dict[str, Tensor]:
    [windows] = case.inputs.values()
    given = case.kwargs
    tokens = windows.reshape(-1, given["H_sp"] * given["W_sp"], windows.shape[-1])
    return {"y": join_windows(tokens, (given["H_sp"], given["W_sp"]), (given["H"], given["W"]))}


REPLAYS = {
    "CSWinTransformer": network,
    "CSWin": network,
    "CSWinBlock": block,
    "LePEAttention": branch,
    "Merge_Block": merge,
    "Mlp": mlp,
    "img2windows": cut,
    "windows2img": join,
}


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def maps_of(x: Tensor, height: int, width: int) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (height, width))


def size_of(case: Case, length: int, side: int | None = None) -> tuple[int, int]:
    """What the case says, else a square."""
    side = side or round(length**0.5)
    return case.kwargs.get("H", side), case.kwargs.get("W", side)


def name_in_block(name: str) -> str:
    """The names of a block by itself: those of the first block of the first stage."""
    import re

    name = "stage1.0." + name
    for pattern, replacement in NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name.removeprefix("stages.0.blocks.0.")
