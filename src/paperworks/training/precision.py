"""Number formats: where bfloat16 pays, one autocast helper for training and sampling, and loss scaling for float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.layers.processor import bf16_is_fast

Precision = Literal["auto", "32", "bf16", "16"]


def resolve(precision: Precision, device: torch.device) -> Literal["32", "bf16", "16"]:
    """What "auto" means on a device."""
    if precision == "auto":
        return "bf16" if bf16_is_fast(str(device)) else "32"
    return precision


def autocast(precision: Precision = "auto", device: torch.device | str = "cpu") -> AbstractContextManager[Any]:
    """The context in which the loop computes losses; use it for sampling and evaluation as well."""
    device = torch.device(device)
    chosen = resolve(precision, device)
    if chosen == "32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if chosen == "bf16" else torch.float16)


class LossScale:
    """Dynamic scale of the loss for float16, without reading anything back to the host: halved after an overflow,
    doubled after `patience` updates without one (Micikevicius et al. 2018). For other formats it stays at 1."""

    def __init__(self, device: torch.device, active: bool, start: float = 2.0**16, patience: int = 2000):
        self.active, self.patience = active, patience
        self.scale = torch.tensor(start if active else 1.0, device=device)
        self.calm = torch.zeros((), device=device)
        """updates since the scale last changed"""

    def update(self, finite: Tensor) -> None:
        if not self.active:
            return
        self.calm = torch.where(finite, self.calm + 1, 0.0)
        grow = self.calm >= self.patience
        self.scale = torch.where(finite, torch.where(grow, self.scale * 2, self.scale), self.scale / 2).clamp(1.0, 2.0**24)
        self.calm = torch.where(grow, 0.0, self.calm)

    def explains_overflow(self) -> Tensor:
        """Whether a gradient that is not finite may just be an overflow of the scaled loss."""
        return self.scale > 1.0

    def state_dict(self) -> dict[str, float]:
        return {"scale": float(self.scale), "calm": float(self.calm)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale.fill_(state["scale"])
        self.calm.fill_(state["calm"])
