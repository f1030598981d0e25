"""log(1 + exp(x)), which the steps of state-space layers go through for every token and channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softplus(x: Tensor) -> Tensor:
    """max(x, 0) + log1p(exp(-|x|)), to 2e-7 of its value.

    Without gradients log1p(e) is e log(w) / (w - 1) with w = 1 + e as rounded, because a processor's log1p takes eight times
    as long as log (W. Kahan's identity). Where w is 1 that is no number, and e - e^2 / 2, never above log1p(e), takes its
    place.
    """
    if x.dtype != torch.float32 or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return F.softplus(x)
    small = x.abs().neg_().exp_()
    exact = small + 1
    other = exact - 1
    exact.log_().mul_(small).div_(other)
    torch.addcmul(small, small, small, value=-0.5, out=other)
    torch.fmax(exact, other, out=exact)
    return exact.add_(torch.clamp(x, min=0, out=other))
