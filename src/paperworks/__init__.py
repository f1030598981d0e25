"""Vision papers that work: importable parts, recipes for your own images, and claims measured beside the paper's numbers.

Importing the package loads neither torch nor timm. It only arranges that `timm.create_model("inceptionnext_tiny")` and the
other networks of this library are found: at once if timm is loaded already, else when it is imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.1.0"

_AWAITED = "timm.models"


def _register() -> None:
    importlib.import_module("paperworks.backbones.registry").register_with_timm()


class _RegisterAfter(importlib.abc.Loader):
    """Executes the awaited module with its own loader, then registers our networks in it."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _register()


class _AwaitTimm(importlib.abc.MetaPathFinder):
    """Steps in once, when timm.models is looked for, and leaves finding it to the other finders."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


if _AWAITED in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AwaitTimm())
