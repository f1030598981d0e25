"""log(1 + exp(x)), which the steps of state-space layers go through for every token and channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softplus(x: Tensor) -> Tensor:
    """max(x, 0) + log1p(exp(-|x|)), to 2e-7 of its value.

    Without gradients log1p(e) is e log(w) / (w - 1) with w = 1 + e as rounded, because a processor's log1p takes eight times as
    long as log (W. Kahan's identity; where w is 1, log1p(e) is e).
    """
    if x.dtype != torch.float32 or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return F.softplus(x)
    small = x.abs().neg_().exp_()
    one = small + 1
    rest = one - 1
    exact = one.log_().mul_(small).div_(rest)
    return torch.where(rest == 0, small, exact).add_(x.clamp(min=0))
