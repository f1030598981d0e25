"""Number formats: where bfloat16 pays, one autocast helper for training and sampling, and loss scaling for float16."""

from __future__ import annotations

import functools
import platform
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["auto", "32", "bf16", "16"]


@functools.cache
def bf16_is_fast(device: str = "cpu") -> bool:
    """Whether matrix products in bfloat16 run in hardware: read from the processor's features, measured only where
    those do not say."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return _matmul_seconds(torch.bfloat16) * 1.3 < _matmul_seconds(torch.float32)


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


def _matmul_seconds(dtype: torch.dtype, size: int = 384) -> float:
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
