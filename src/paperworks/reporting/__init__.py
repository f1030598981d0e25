"""What a run leaves for people: report.html, pictures, RESULTS.md. Nothing heavy is imported before it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperworks.reporting.pictures import save_grid
    from paperworks.reporting.report import Report

_HOMES = {"Report": "report", "save_grid": "pictures"}

__all__ = ["Report", "save_grid"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
