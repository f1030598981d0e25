"""Which number formats the processor multiplies in hardware."""

from __future__ import annotations

import functools
import platform
import statistics
import time

import torch


@functools.cache
def bf16_is_fast(device: str = "cpu") -> bool:
    """Whether matrix products in bfloat16 run in hardware: read from the processor's features, measured only where
    those do not say."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return _matmul_seconds(torch.bfloat16) * 1.3 < _matmul_seconds(torch.float32)


def _matmul_seconds(dtype: torch.dtype, size: int = 384) -> float:
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
