"""All named networks: built by name here, and known to `timm.create_model` once `register_with_timm` has run.

`import paperworks` arranges the latter without importing torch or timm: at once when timm is there, else when it arrives.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from paperworks.backbones.protocol import Backbone
from paperworks.errors import InputError, nearest

MODULES = (
    "inceptionnext",
    "cifar",
    "resnet",
    "densenet",
    "kimianet",
    "simplenet",
    "vovnet",
    "nasnet",
    "unireplknet",
    "replknet",
    "resformer",
    "t2t_vit",
    "cswin",
    "maxvit",
    "tic",
    "adventurer",
    "groupmamba",
)
"""modules of this room that have a table ENTRIES"""

IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@dataclass(frozen=True)
class Entry:
    """A named network of a paper."""

    network: type[Backbone]
    arguments: Mapping[str, Any]
    cfg: Mapping[str, Any] = field(default_factory=dict)
    """what differs from IMAGENET in timm's pretrained_cfg: where weights are, input size, crop, first and last layer"""
    top1: float | None = None
    """ImageNet top-1 in percent as the authors print it"""

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return {**IMAGENET, **self.cfg}

    @property
    def has_weights(self) -> bool:
        return bool(self.cfg.get("hf_hub_id") or self.cfg.get("url"))

    def build(self, **arguments: Any) -> Backbone:
        """The network with random weights, constructor arguments replaced by those given."""
        model = self.network(**{**self.arguments, **arguments})
        model.pretrained_cfg = self.pretrained_cfg
        return model


@functools.cache
def entries() -> dict[str, Entry]:
    """All named networks of the library."""
    found: dict[str, Entry] = {}
    for name in MODULES:
        found |= importlib.import_module(f"paperworks.backbones.{name}").ENTRIES
    return found


def create(name: str, **arguments: Any) -> nn.Module:
    """A named network with random weights; `timm.create_model(name, pretrained=True)` also fetches released ones."""
    if name not in entries():
        raise InputError(f"no network {name!r}{nearest(name, entries())}")
    return entries()[name].build(**arguments)


def register_with_timm() -> None:
    """Make every entry known to timm, once. Names that timm has itself stay timm's."""
    from timm.models import build_model_with_cfg, is_model, register_model
    from timm.models._pretrained import DefaultCfg, PretrainedCfg

    # timm reads the configuration of a registered function out of the function's module
    module = sys.modules.setdefault("paperworks.timm_models", types.ModuleType("paperworks.timm_models"))
    cfgs = module.__dict__.setdefault("default_cfgs", {})
    for name, entry in entries().items():
        if is_model(name):
            continue
        cfgs[name] = DefaultCfg(deque([""]), {"": PretrainedCfg(**entry.pretrained_cfg)}, entry.has_weights)
        register_model(_entrypoint(name, entry, build_model_with_cfg, module.__name__))


def _entrypoint(name: str, entry: Entry, build: Callable[..., nn.Module], module: str) -> Callable[..., nn.Module]:
    """The function that timm calls for a name: create_model's arguments -> network."""

    def create_in_timm(pretrained: bool = False, **arguments: Any) -> nn.Module:
        if pretrained and not (entry.has_weights or arguments.get("pretrained_cfg_overlay") or arguments.get("pretrained_cfg")):
            raise InputError(f"{name} has no released weights; without pretrained=True it starts from random ones")
        features: dict[str, Any] = {"feature_cls": "getter"}
        if arguments.get("features_only"):
            with torch.device("meta"):  # only to count the feature maps
                features["out_indices"] = tuple(range(len(entry.build().feature_info)))
        return build(entry.network, name, pretrained, feature_cfg=features, **{**entry.arguments, **arguments})

    create_in_timm.__name__ = create_in_timm.__qualname__ = name
    create_in_timm.__module__ = module
    return create_in_timm
