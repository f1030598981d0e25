"""From the loader to the loss: what is checked before step 0, moving to the device, cutting into micro-batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from paperworks.errors import InputError
from paperworks.training.config import TrainConfig
from paperworks.training.objective import Batch, Context, Objective

BatchTransform = Callable[[Batch, torch.Generator], Batch]


def check_split(config: TrainConfig, samples: int, world: int) -> None:
    """Raises InputError naming the field when the batch cannot be cut as asked."""
    if config.steps < 1:
        raise InputError(f"steps={config.steps}: at least one step is needed")
    if samples == 0:
        raise InputError("train_data is empty: there is nothing to train on")
    if config.batch_size < 1:
        raise InputError(f"batch_size={config.batch_size}: at least one sample is needed")
    if config.batch_size > samples:
        raise InputError(f"batch_size={config.batch_size} is larger than the data set ({samples} samples); lower it")
    share, rest = divmod(config.batch_size, world)
    if rest:
        raise InputError(f"batch_size={config.batch_size} does not divide among {world} processes")
    if config.micro_batch is not None and (config.micro_batch < 1 or share % config.micro_batch):
        raise InputError(
            f"micro_batch={config.micro_batch} does not divide the {share} samples of a process "
            f"(batch_size={config.batch_size} over {world} processes)"
        )


def prepare(batch: Batch, ctx: Context, transform: BatchTransform | None, channels_last: bool) -> Batch:
    """On the device, images as floats in [0, 1], batch transform (mixup, masks ...) applied to the process's whole share,
    so that it does not depend on `micro_batch`."""
    batch = _map(batch, lambda tensor: tensor.to(ctx.device, non_blocking=True))
    for name, value in batch.items():
        if name.startswith("image") and isinstance(value, Tensor):
            if value.dtype == torch.uint8:
                value = value.float().div_(255)
            if channels_last and value.ndim == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            batch[name] = value.as_subclass(Tensor)
    return transform(batch, ctx.rng("batch_transform")) if transform else batch


def micro_batches(batch: Batch, size: int, share: int) -> list[Batch]:
    """The process's share of the batch in pieces of `size` samples."""
    if size == share:
        return [batch]
    return [_cut(batch, start, start + size, share) for start in range(0, share, size)]


def check_batch(batch: Any, objective: Objective, share: int) -> None:
    """Raises InputError when the first batch is not what the objective's `needs` say."""
    method = type(objective).__name__
    if not isinstance(batch, Mapping):
        raise InputError(f"train_data must give dicts of tensors by name, but a batch is a {type(batch).__name__}")
    for key, wanted in objective.needs.items():
        if key not in batch:
            there = ", ".join(map(str, batch)) or "nothing"
            raise InputError(f"{method} needs {key!r} ({wanted}) in every batch, but there is only {there}")
        value = batch[key]
        problem = _mismatch(value, wanted)
        if problem:
            raise InputError(f"{method} needs {key!r} as {wanted}, but it is {problem}")
        if isinstance(value, Tensor) and value.ndim and len(value) != share:
            raise InputError(f"batch[{key!r}] holds {len(value)} samples where {share} were expected")


def _mismatch(value: Any, wanted: str) -> str | None:
    """What is wrong with a value, by the few words of `needs` that can be checked."""
    if not isinstance(value, Tensor):
        return None
    is_number = {
        "float": value.is_floating_point(),
        "int64": value.dtype == torch.int64,
        "uint8": value.dtype == torch.uint8,
        "bool": value.dtype == torch.bool,
    }
    kind = re.match(r"\s*(float|int64|uint8|bool)\b", wanted)
    if kind and not is_number[kind[1]]:
        return str(value.dtype).removeprefix("torch.")
    shape = re.search(r"\[B((?:,\s*[^\],]+)*)\]", wanted)
    dimensions = 4 if "NCHW" in wanted else 1 + shape[1].count(",") if shape and "..." not in shape[1] else None
    if dimensions is not None and value.ndim != dimensions:
        return f"of shape {list(value.shape)}"
    return None


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, function) for item in value)
    return value


def _cut(value: Any, start: int, stop: int, whole: int) -> Any:
    """Samples [start, stop) of everything that has one entry per sample; the rest is passed on whole."""
    if isinstance(value, Mapping):
        return {key: _cut(item, start, stop, whole) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value[start:stop] if value.ndim and len(value) == whole else value
    if isinstance(value, (list, tuple)):
        if len(value) == whole and not any(isinstance(item, Tensor) and item.ndim for item in value):
            return value[start:stop]
        return type(value)(_cut(item, start, stop, whole) for item in value)
    return value
