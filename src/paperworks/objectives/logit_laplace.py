"""The logit-Laplace loss (2102.12092, appendix A.3) beside the usual ones in a tokenizer's training, as ViT-VQGAN has it
(2110.04627, section 3.3): pixels have a Laplace law after they are stretched to the whole line."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.objectives.tokenizer_training import Compared, TokenizerTraining

MARGIN = 0.1
"""pixels in [0, 1] become ones in [MARGIN, 1 - MARGIN], where the logit is finite"""
EDGE = 1e-3
"""what is made may overshoot; from here on the logit stays, and the other losses pull it back"""


def logit_laplace(made: Tensor, real: Tensor, scale: float = 1.0) -> Tensor:
    """Mean over values of -ln f(real), f(x) = exp(-|logit x - logit made| / scale) / (2 scale x (1 - x)), both in [0, 1] and
    moved to [MARGIN, 1 - MARGIN] first. One scale for all pixels: the decoder has a location for each and nothing more."""
    wanted = _inside(real.float())
    distance = (_logit(wanted) - _logit(_inside(made.float()).clamp(EDGE, 1 - EDGE))).abs()
    return (distance / scale + math.log(2 * scale) + (wanted * (1 - wanted)).log()).mean()


class LogitLaplaceTraining(TokenizerTraining):
    """`TokenizerTraining` with logit_laplace_weight x the logit-Laplace loss."""

    def __init__(self, tokenizer: nn.Module, *, logit_laplace_weight: float = 0.1, **options: Any):
        super().__init__(tokenizer, **options)
        if logit_laplace_weight < 0:
            raise InputError(f"logit_laplace_weight={logit_laplace_weight} must not be negative")
        self.logit_laplace_weight = logit_laplace_weight

    def _against(self, made: Tensor, images: Tensor, look: bool = True) -> Compared:
        found = super()._against(made, images, look)
        if not self.logit_laplace_weight:
            return found
        term = logit_laplace((found.made + 1) / 2, images)
        loss = found.loss + self.logit_laplace_weight * term
        return found._replace(loss=loss, logs=found.logs | {"logit_laplace": term})


def _inside(values: Tensor) -> Tensor:
    return (1 - 2 * MARGIN) * values + MARGIN


def _logit(values: Tensor) -> Tensor:
    return values.log() - torch.log1p(-values)
