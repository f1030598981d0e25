"""Masks on a network: which layers can be pruned, how a mask is put on, trained under, made permanent, saved and imported.

A mask is a parametrisation of `weight` (torch.nn.utils.parametrize), so forward, autograd, `deepcopy` and the training loop
see `weight * keep` and masked weights receive no gradient. While masks are on, `state_dict()` has torch's parametrisation
keys (`conv.parametrizations.weight.original`, `...0.keep`) and loads into an equally masked model only. For files that a
plain network reads, use `plain_state_dict` (ordinary keys, zeros where pruned); `mask_zeros` puts the masks back on.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paperworks.compression.patterns import Pattern, SingleWeights
from paperworks.errors import InputError

M = TypeVar("M", bound=nn.Module)
Masks = dict[str, Tensor]
"""layer name -> bool tensor of the weight's shape, True where the weight is kept"""


@dataclass(frozen=True)
class PrunableLayer:
    """A Conv2d or Linear weight. A weight shared by several modules is one layer, named after its first owner."""

    name: str
    owners: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def prunable_layers(model: nn.Module, skip: Sequence[str] = ()) -> list[PrunableLayer]:
    """Every Conv2d and Linear weight in module order; biases and norms never. `skip`: regular expressions on the name.

    Raises InputError when nothing is left to prune.
    """
    owners: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = _stored_weight(module)
            owners.setdefault(id(weight), []).append(name)
            shapes[id(weight)] = tuple(weight.shape)
    found = [PrunableLayer(names[0], tuple(names), shapes[key]) for key, names in owners.items()]
    left = [layer for layer in found if not any(re.search(pattern, layer.name) for pattern in skip)]
    if not left:
        why = f"all {len(found)} are skipped by {list(skip)}" if found else "it has no Conv2d or Linear weight"
        raise InputError(f"{type(model).__name__} has no prunable layer: {why}")
    return left


def effective_weight(model: nn.Module, layer: PrunableLayer) -> Tensor:
    """The weight as the network uses it (zeros where masked), without gradient."""
    return model.get_submodule(layer.owners[0]).weight.detach()  # type: ignore[operator]


class Mask(nn.Module):
    """weight -> weight * keep."""

    keep: Tensor

    def __init__(self, keep: Tensor):
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def current_masks(model: nn.Module, layers: Sequence[PrunableLayer]) -> Masks:
    """The masks that are on; all True for a layer without one."""
    masks: Masks = {}
    for layer in layers:
        mask = _mask_of(model.get_submodule(layer.owners[0]))
        weight = effective_weight(model, layer)
        masks[layer.name] = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.keep.clone()
    return masks


def set_masks(model: nn.Module, masks: Mapping[str, Tensor], layers: Sequence[PrunableLayer] | None = None) -> None:
    """Put masks on (or replace those that are on). Keys are layer names."""
    known = {layer.name: layer for layer in (layers or prunable_layers(model))}
    for name, keep in masks.items():
        if name not in known:
            raise InputError(f"a mask for {name!r}, which is no prunable layer; there are {', '.join(list(known)[:8])} ...")
        layer = known[name]
        if tuple(keep.shape) != layer.shape:
            raise InputError(f"the mask of {name} has shape {tuple(keep.shape)}, its weight {layer.shape}")
        shared: Mask | None = None
        for owner in layer.owners:
            module = model.get_submodule(owner)
            mask = _mask_of(module)
            if mask is not None:
                mask.keep.copy_(keep)
                continue
            weight = _stored_weight(module)
            shared = shared or Mask(keep.to(device=weight.device, dtype=torch.bool, copy=True))
            parametrize.register_parametrization(module, "weight", shared)


def smallest_removed(weight: Tensor, keep_now: Tensor, units: int, pattern: Pattern | None = None) -> Tensor:
    """The mask that removes the `units` smallest; what is masked already goes first, so masks only ever shrink."""
    pattern = pattern or SingleWeights()
    magnitude = weight.detach().abs().masked_fill(~keep_now, -1.0)
    return (pattern.rank(magnitude) >= units).expand_as(weight) & keep_now


def mask_zeros(model: nn.Module, layers: Sequence[PrunableLayer] | None = None) -> None:
    """Mask every weight that is exactly zero: how a network from `plain_state_dict` is trained on without losing sparsity."""
    layers = layers or prunable_layers(model)
    set_masks(model, {layer.name: effective_weight(model, layer) != 0 for layer in layers}, layers)


def remove_masks(model: nn.Module) -> None:
    """Take masks off; the weights that were hidden come back."""
    _unregister(model, keep_zeros=False)


def bake(model: nn.Module) -> None:
    """Make masks permanent: plain weights with zeros, ordinary state dict keys."""
    _unregister(model, keep_zeros=True)


def baked_copy(model: M) -> M:
    """A plain copy in which masks are permanent; the model itself is untouched."""
    twin = copy.deepcopy(model)
    bake(twin)
    return twin


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the network would have without masks, zeros where pruned."""
    return dict(baked_copy(model).state_dict())


def from_torch_prune(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint written under torch.nn.utils.prune (`weight_orig`, `weight_mask`) as a plain one with zeros."""
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("_orig"):
            mask = state.get(key.removesuffix("_orig") + "_mask")
            if mask is None:
                raise InputError(f"the checkpoint has {key} but no {key.removesuffix('_orig')}_mask")
            plain[key.removesuffix("_orig")] = value * mask
        elif not (key.endswith("_mask") and key.removesuffix("_mask") + "_orig" in state):
            plain[key] = value
    return plain


def kept_counts(model: nn.Module, layers: Sequence[PrunableLayer]) -> list[int]:
    """Weights per layer that a mask has not removed and that are not zero."""
    return [int(torch.count_nonzero(effective_weight(model, layer))) for layer in layers]


def sparsity(model: nn.Module, layers: Sequence[PrunableLayer] | None = None) -> float:
    """Share of the prunable weights that is gone."""
    layers = layers or prunable_layers(model)
    return 1.0 - sum(kept_counts(model, layers)) / sum(layer.numel for layer in layers)


def _stored_weight(module: nn.Module) -> Tensor:
    if parametrize.is_parametrized(module, "weight"):
        return module.parametrizations.weight.original  # type: ignore[union-attr, return-value]
    return module.weight  # type: ignore[return-value]


def _mask_of(module: nn.Module) -> Mask | None:
    if parametrize.is_parametrized(module, "weight"):
        for parametrisation in module.parametrizations.weight:  # type: ignore[union-attr]
            if isinstance(parametrisation, Mask):
                return parametrisation
    return None


def _unregister(model: nn.Module, *, keep_zeros: bool) -> None:
    # Not torch's remove_parametrizations: it deletes the property from the module's class, which copies of the module share,
    # so unmasking a deep copy would break the network it was copied from.
    for module in list(model.modules()):
        mask = _mask_of(module)
        if mask is None:
            continue
        if len(module.parametrizations) > 1 or len(module.parametrizations.weight) > 1:  # type: ignore[arg-type, union-attr]
            raise InputError("a module carries other parametrisations besides the mask; remove those first")
        weight, plain = _stored_weight(module), parametrize.type_before_parametrizations(module)
        if keep_zeros:
            weight.data = weight.data * mask.keep
        del module.parametrizations
        module.__class__ = plain
        module.register_parameter("weight", weight)  # type: ignore[arg-type]
