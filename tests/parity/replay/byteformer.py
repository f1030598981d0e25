"""ByteFormer: logits and tokens of padded and single files, and what is done to bytes before they reach the network."""

from typing import Any

import torch
from torch import Tensor

from paperworks.backbones.byteformer import ByteFormer
from paperworks.data import byte_transforms as change
from paperworks.data.file_bytes import encode_image
from tests.parity.case import Case

TOLERANCE = (1e-5, 1e-5)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    return _network(case) if case.weights else _transforms(case)


def _network(case: Case) -> dict[str, Tensor]:
    cfg, opts = case.kwargs["cfg"], case.kwargs["opts"]
    depth, windows = cfg["n_transformer_layers"], opts["window_sizes"]
    model = ByteFormer.from_official(
        case.weights,
        heads=cfg["n_attn_heads"],
        window=list(windows) * depth if len(windows) == 1 else list(windows),
        shifts=_per_block(opts["window_shifts"], depth),
        activation="relu" if "relu" in case.notes.lower() else "gelu",
    ).eval()
    files = {name.removeprefix("bytes").strip("_"): value for name, value in case.inputs.items() if name.startswith("bytes")}
    result = {}
    for name, value in files.items():
        for logits in ("logits", f"logits_{name}", f"logits_{name}_batch"):
            result[logits] = model(value)
        for tokens in ("tokens", f"tokens_{name}"):
            result.setdefault(tokens, model.tokens(value))
    if "padded" in files:
        result["tokens"] = model.tokens(files["padded"])
    return {name: value for name, value in result.items() if name in case.outputs}


def _per_block(values: list[int], depth: int) -> list[int]:
    return list(values) * depth if len(values) == 1 else list(values)


def _transforms(case: Case) -> dict[str, Tensor]:
    kwargs: dict[str, Any] = case.kwargs
    data, order = case.inputs.get("bytes"), case.inputs.get("window_permutation")
    result: dict[str, Tensor] = {}
    for name in case.outputs:
        kind, _, form = name.partition("_")
        if kind == "encode":
            quality = kwargs.get("quality", 100)
            result[name] = torch.tensor(list(encode_image(case.inputs["image"], form.lower(), quality)))
            continue
        if name == "permutation_table":
            result[name] = change.alphabet()
            continue
        assert data is not None
        if name == "byte_permutation":
            result[name] = change.permuted(data.int())
        elif name == "mask_positions":
            result[name] = change.keep_some(data, kwargs["keep_frac"])
        elif name == "reverse":
            result[name] = change.reverse(data)
        elif name == "cyclic_half_length":
            result[name] = change.cyclic_half(data)
        elif name == "stride":
            result[name] = change.deinterleave(data, kwargs["stride"])
        elif name == "window_shuffle":
            assert order is not None
            result[name] = change.shuffle_windows(data, order)
        elif name in ("random_uniform", "noise"):
            result[name] = change.add(data, case.inputs["noise"])
    return result
