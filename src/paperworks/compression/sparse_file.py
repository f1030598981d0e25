"""Pruned weights in a file that is really smaller: one bit per weight says where, the survivors follow in order.

A safetensors file: for a pruned tensor `name` there are `name.where` (uint8, bits packed first-element-lowest) and
`name.values`; everything else is stored as it is. Shapes are in the metadata. Reading gives an ordinary state dict.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paperworks.compression.sparsity import plain_state_dict
from paperworks.errors import InputError

FORMAT = "paperworks-sparse-1"


def save_sparse(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> int:
    """Write the network (masks made permanent) and return the size in bytes. dtype: of the surviving values."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    types: dict[str, str] = {}
    for name, value in plain_state_dict(model).items():
        if not value.is_floating_point() or _plain_is_smaller(value):
            tensors[name] = value.contiguous().clone()
            continue
        keep = (value != 0).flatten()
        tensors[f"{name}.where"] = torch.from_numpy(np.packbits(keep.cpu().numpy(), bitorder="little"))
        tensors[f"{name}.values"] = value.flatten()[keep].to(dtype or value.dtype)
        shapes[name], types[name] = list(value.shape), str(value.dtype).removeprefix("torch.")
    metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "types": json.dumps(types)}
    save_file(tensors, str(path), metadata=metadata)
    return Path(path).stat().st_size


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """The state dict as it was, zeros in place."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a safetensors handle, not a dict)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} holds no sparse network (its format is {metadata.get('format')!r}, not {FORMAT!r})")
    state = stored
    types = json.loads(metadata["types"])
    for name, shape in json.loads(metadata["shapes"]).items():
        where, values = state.pop(f"{name}.where").numpy(), state.pop(f"{name}.values")
        dense = torch.zeros(math.prod(shape), dtype=getattr(torch, types[name]))
        dense[torch.from_numpy(np.unpackbits(where, count=len(dense), bitorder="little").astype(bool))] = values.to(dense.dtype)
        state[name] = dense.view(shape)
    return state


def _plain_is_smaller(value: Tensor) -> bool:
    sparse = math.ceil(value.numel() / 8) + int(torch.count_nonzero(value)) * value.element_size()
    return sparse >= value.numel() * value.element_size()
