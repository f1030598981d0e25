"""MaxViT: the network part by part, its blocks by themselves, partitions and both forms of the relative bias."""

import re
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import RelPosBiasTf
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg
from torch import Tensor, nn

from paperworks.backbones.maxvit import MaxViT, MaxViTBlock, Stem
from paperworks.layers.grids import cut_grid, join_grid
from paperworks.layers.mbconv import MBConv
from paperworks.layers.multi_axis import Axis, AxisBlock, MultiAxisAttention, RelativeBias, as_size
from paperworks.layers.pretrained import load_official
from paperworks.layers.windows import cut_windows, join_windows
from tests.parity.case import Case
from tests.parity.replay._maxvit_record import drawn_tables, look_up

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    names = re.findall(r"\w+", case.official.partition("maxxvit.")[2]) or re.findall(r"\w+$", case.official)
    result: dict[str, Tensor] = {}
    for name in names:
        if name in REPLAYS:
            result |= REPLAYS[name](case)
    if len(case.outputs) == 1 and len(result) == 1:
        return {next(iter(case.outputs)): next(iter(result.values()))}
    return {name: value for name, value in result.items() if name in case.outputs}


def network(case: Case) -> dict[str, Tensor]:
    model = MaxViT.from_official(of_official(case), **arguments(case)).eval()
    look_up(model, drawn_tables(timms_network(case), case.weights))
    x = case.inputs["x"]
    maps = model.forward_intermediates(x, intermediates_only=True)
    first = model.stages[0].get_submodule("blocks.0")
    assert isinstance(first, MaxViTBlock)
    conv = first.conv(maps[0])
    block = first.attn_block(conv.permute(0, 2, 3, 1))
    result = {
        "stem": maps[0],
        "features": maps[-1],
        "logits": model(x),
        "pre_logits": model.forward_head(maps[-1], pre_logits=True),
        "b0_mbconv": conv,
        "b0_block_attn": block,
        "b0_grid_attn": first.attn_grid(block),
    }
    result |= {f"stage{index}": value for index, value in enumerate(maps[1:])}
    result |= {f"feat{index}": value for index, value in enumerate(maps)}
    if "train_logits" in case.outputs:
        result["train_logits"] = model.train()(x)
    return result


def timms_network(case: Case) -> nn.Module:
    """timm's own network of the recorded configuration, for the names and order of its parameters and buffers."""
    given, image = arguments(case), case.kwargs.get("img_size", 224)
    cfg = MaxxVitCfg(
        embed_dim=tuple(given["dims"]),
        depths=tuple(given["depths"]),
        block_type=("M",) * len(given["dims"]),
        stem_width=given["stem_width"],
        stem_bias=given["stem_bias"],
        head_hidden_size=given["head_width"],
        conv_cfg=MaxxVitConvCfg(norm_eps=given["conv_eps"], act_layer="gelu_tanh", padding="same"),
        transformer_cfg=MaxxVitTransformerCfg(
            dim_head=given["head_dim"],
            window_size=given["window"],
            grid_size=given["grid"],
            norm_eps=given["norm_eps"],
            act_layer="gelu_tanh",
            head_first=False,
            rel_pos_type="bias_tf",
        ),
    )
    return MaxxVit(cfg, img_size=image, num_classes=given["num_classes"], in_chans=given["in_chans"])


def arguments(case: Case) -> dict[str, Any]:
    """The recorded configuration as our arguments; window and grid default to image / 32, as timm's do."""
    cfg, _, attn = parts_of(case)
    image = as_size(case.kwargs.get("img_size", 224))
    ratio = attn.get("partition_ratio", 32)
    window = size_in(attn, "window", (image[0] // ratio, image[1] // ratio))
    width = cfg.get("stem_width", 64)
    return {
        "dims": cfg["embed_dim"],
        "depths": cfg["depths"],
        "stem_width": width[-1] if isinstance(width, list) else width,
        "stem_bias": cfg.get("stem_bias", False),
        "head_width": cfg.get("head_hidden_size"),
        "grid": size_in(attn, "grid", window),
        "num_classes": case.kwargs.get("num_classes", 1000),
        "in_chans": case.kwargs.get("in_chans", 3),
        **of_block(case),
        "window": window,
    }


KINDS = {
    "se_act": ("silu", "swish"),
    "attn_act_layer": ("silu", "swish"),
    "stride_in": ("depthwise", "dw"),
    "stride_mode": ("dw", "depthwise"),
    "rel_pos": ("bias_tf",),
    "rel_pos_type": ("bias_tf",),
}
"""options of which ours has one kind, by their recorded name or timm's, and the words for it"""


def parts_of(case: Case) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    cfg = case.kwargs.get("cfg", case.kwargs)
    own = cfg if isinstance(cfg, dict) else {}
    conv = own.get("conv") or own.get("conv_cfg") or case.kwargs.get("conv_cfg") or own
    attn = own.get("attn") or own.get("transformer_cfg") or case.kwargs.get("transformer_cfg") or own
    assert conv.get("padding", "same").startswith("same"), "other paddings are no MaxViT"
    for name, words in KINDS.items():
        recorded = (attn if name.startswith("rel_pos") else conv).get(name, words[0])
        assert recorded in words, f"{name}={recorded!r}: ours is {words[0]!r}"
    return own, conv, attn


def of_block(case: Case) -> dict[str, Any]:
    _, _, attn = parts_of(case)
    return {
        "window": size_in(attn, "window", (7, 7)),
        "grid": size_in(attn, "grid", size_in(attn, "window", (7, 7))),
        "head_dim": attn.get("dim_head", 32),
        "mlp_ratio": attn.get("expand_ratio", 4),
        "norm_eps": attn.get("norm_eps", 1e-5),
        **of_conv(case),
    }


def of_conv(case: Case) -> dict[str, Any]:
    _, conv, _ = parts_of(case)
    return {
        "expand": conv.get("expand", conv.get("expand_ratio", 4)),
        "se_ratio": conv.get("se_ratio", conv.get("attn_ratio", 0.25)),
        "conv_eps": conv.get("norm_eps", 1e-3),
        "activation": conv.get("act", conv.get("act_layer", "gelu_tanh")),
    }


def size_in(options: dict[str, Any], name: str, default: tuple[int, int]) -> tuple[int, int]:
    given = options.get(name, options.get(f"{name}_size"))
    return default if given is None else as_size(tuple(given) if isinstance(given, list) else given)


def of_official(case: Case) -> dict[str, Tensor]:
    """Projections whose rows are ordered (head, q k v, d) instead of (q k v, head, d) are put in our order."""
    _, _, attn = parts_of(case)
    if not attn.get("head_first", False):
        return dict(case.weights)
    head = attn.get("dim_head", 32)

    def ordered(value: Tensor) -> Tensor:
        return value.unflatten(0, (-1, 3, head)).transpose(0, 1).flatten(0, 2)

    return {name: ordered(value) if re.search(r"(^|\.)qkv\.", name) else value for name, value in case.weights.items()}


# --- parts by themselves ------------------------------------------------------------------------------------------------------


def widths(case: Case) -> tuple[int, int, int]:
    given = case.kwargs
    inputs = given.get("in_chs", given.get("dim"))
    return inputs, given.get("out_chs", given.get("dim_out")) or inputs, given.get("stride", 1)


def loaded(module: nn.Module, case: Case) -> nn.Module:
    return load_official(module.eval(), of_official(case))


def one(value: Tensor) -> dict[str, Tensor]:
    return dict.fromkeys(("y", "out", "output"), value)


def only(value: Tensor, case: Case) -> dict[str, Tensor]:
    return {next(iter(case.outputs)): value} if len(case.outputs) == 1 else one(value)


def max_block(case: Case) -> dict[str, Tensor]:
    inputs, outputs, stride = widths(case)
    block = loaded(MaxViTBlock(inputs, outputs, stride, **of_block(case)), case)
    return only(block(case.inputs["x"]), case)


def mb_conv(case: Case) -> dict[str, Tensor]:
    inputs, outputs, stride = widths(case)
    given = of_conv(case)
    given["eps"] = given.pop("conv_eps")
    return only(loaded(MBConv(inputs, outputs, stride, **given), case)(case.inputs["x"]), case)


def stem(case: Case) -> dict[str, Tensor]:
    given = case.kwargs
    width = given["out_chs"]
    activation = given.get("act_layer", given.get("act", "gelu"))
    module = Stem(
        given["in_chs"],
        width[-1] if isinstance(width, list) else width,
        2,
        given.get("bias", False),
        given.get("norm_eps", 1e-5),
        activation,
    )
    return only(loaded(module, case)(case.inputs["x"]), case)


def axis_block(case: Case) -> dict[str, Tensor]:
    dim, given = widths(case)[0], of_block(case)
    axis: Axis = "grid" if case.kwargs.get("partition_type", "block") == "grid" else "block"
    _, _, attn = parts_of(case)

    def norm(channels: int) -> nn.Module:
        return nn.LayerNorm(channels, given["norm_eps"])

    activation = attn.get("act", attn.get("act_layer", "gelu_tanh"))
    window = given["grid"] if axis == "grid" else given["window"]
    module = AxisBlock(
        dim, axis, window, head_dim=given["head_dim"], mlp_ratio=given["mlp_ratio"], norm=norm, activation=activation
    )
    return only(loaded(module, case)(case.inputs["x"]), case)


def attention(case: Case) -> dict[str, Tensor]:
    """Attention over groups that are cut already: [M, h, w, C]."""
    dim, given = widths(case)[0], of_block(case)
    x = case.inputs["x"]
    return only(loaded(MultiAxisAttention(dim, "block", tuple(x.shape[1:3]), given["head_dim"]), case)(x), case)


def sizes(case: Case) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(window, grid, map)."""
    given = case.kwargs
    window = size_in(given, "window", (7, 7))
    grid = size_in(given, "grid", window)
    image = given.get("img_size")
    return window, grid, as_size(tuple(image)) if image else (given.get("H", 0), given.get("W", 0))


def input_named(case: Case, *names: str) -> Tensor:
    return next((case.inputs[name] for name in names if name in case.inputs), next(iter(case.inputs.values())))


def windows_of(case: Case) -> dict[str, Tensor]:
    return {"window_partition": cut_windows(input_named(case, "x"), sizes(case)[0])}


def grids_of(case: Case) -> dict[str, Tensor]:
    return {"grid_partition": cut_grid(input_named(case, "x"), sizes(case)[1])}


def windows_back(case: Case) -> dict[str, Tensor]:
    window, _, size = sizes(case)
    windows = input_named(case, "windows", "window_partition")
    return {"window_reverse": join_windows(windows.flatten(1, 2), window, size)}


def grids_back(case: Case) -> dict[str, Tensor]:
    _, grid, size = sizes(case)
    groups = input_named(case, "windows", "grids", "grid_partition")
    return {"grid_reverse": join_grid(groups.flatten(1, 2), grid, size)}


def tf_bias(case: Case) -> dict[str, Tensor]:
    table = case.weights["relative_position_bias_table"]
    high, wide = ((side + 1) // 2 for side in table.shape[1:])
    bias = RelativeBias((high, wide), len(table))
    bias.relative_position_bias_table.copy_(table)
    tables = drawn_tables(RelPosBiasTf((high, wide), len(table)), case.weights)
    return {"rel_bias": look_up(bias, tables)()}


def index_bias(case: Case) -> dict[str, Tensor]:
    """The form indexed by query minus key, [(2 h - 1)(2 w - 1), heads]: our table upside down."""
    window = sizes(case)[0]
    table = case.weights["relative_position_bias_table"]
    grid = table.T.unflatten(1, (2 * window[0] - 1, 2 * window[1] - 1))
    return {"rel_bias": bias_of(grid.flip(1, 2), window)}


def bias_of(table: Tensor, window: tuple[int, int]) -> Tensor:
    bias = RelativeBias(window, len(table))
    bias.relative_position_bias_table.copy_(table)
    return bias()


REPLAYS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "MaxxVit": network,
    "MaxxVitBlock": max_block,
    "MbConvBlock": mb_conv,
    "Stem": stem,
    "PartitionAttentionCl": axis_block,
    "AttentionCl": attention,
    "window_partition": windows_of,
    "grid_partition": grids_of,
    "window_reverse": windows_back,
    "grid_reverse": grids_back,
    "RelPosBiasTf": tf_bias,
    "RelPosBias": index_bias,
}
