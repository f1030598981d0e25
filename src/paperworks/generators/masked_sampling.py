"""Parallel decoding of masked tokens (MaskGIT 2202.04200, section 3.2) with the schedules of TiTok's generators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.masked import MaskedTransformer

GuidanceSchedule = Literal["constant", "linear", "power-cosine"]


@dataclass(frozen=True)
class MaskedSampling:
    """Settings; the defaults are those of TiTok-L-32."""

    steps: int = 8
    guidance: float = 4.5
    """weight on (conditional - null), beside the conditional prediction itself; 0 for none. "power-cosine": total weight"""
    schedule: GuidanceSchedule = "linear"
    power: float = 3.0
    """of the power-cosine schedule"""
    noise: float = 9.5
    """Gumbel noise on tokens and confidences at the first step, falling linearly to 0 at the last"""
    soften: bool = True
    """divide logits by 1.3 at first, 0.5 at last"""

    def check(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")
        if self.schedule not in get_args(GuidanceSchedule):
            raise InputError(f"schedule={self.schedule!r}: there are {', '.join(get_args(GuidanceSchedule))}")

    def extra_weight(self, step: int) -> float:
        """w in conditional + w (conditional - null) at a step."""
        if self.schedule == "constant":
            return self.guidance
        if self.schedule == "linear":
            return self.guidance * step / self.steps
        rising = (1 - math.cos(math.pi * (step / self.steps) ** self.power)) / 2
        return (self.guidance - 1) * rising  # the total weight starts at 1


def masked_share(ratio: float) -> float:
    """Of the tokens after `ratio` of the steps: arccos."""
    return math.acos(min(ratio, 1.0)) / (math.pi / 2)


def masked_count(wanted: Tensor, ratio: float) -> Tensor:
    """How many of `wanted` tokens, int64, the schedule leaves masked after `ratio` of the steps."""
    return (wanted.double() * masked_share(ratio)).floor().long()


def sample(
    model: MaskedTransformer,
    labels: Tensor,
    draws: Draws,
    settings: MaskedSampling | None = None,
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Tokens int64 [B, L] of labels [B] in `settings.steps` passes; both predictions of a guided pass run as one batch.

    start: tokens to keep, mask_token where one is wanted (for editing), in any number per row; all masked by default.
    """
    settings = settings or MaskedSampling()
    settings.check()
    null = torch.full_like(labels, model.num_classes)

    def logits_of(tokens: Tensor, step: int) -> Tensor:
        weight = settings.extra_weight(step)
        if not weight:
            return model(labels, tokens).float()
        conditional, without = model(torch.cat((labels, null)), tokens.repeat(2, 1)).float().chunk(2)
        return torch.lerp(without, conditional, 1 + weight)

    if start is None:
        start = torch.full((len(labels), model.tokens), model.mask_token, dtype=torch.int64, device=labels.device)
    with torch.inference_mode(), torch.autocast(labels.device.type, enabled=False):
        return decode_masked(logits_of, start, model.mask_token, draws, settings).clone()


def decode_masked(
    logits_of: Callable[[Tensor, int], Tensor], tokens: Tensor, mask_token: int, draws: Draws, settings: MaskedSampling
) -> Tensor:
    """Fill masked tokens [B, L] in: each step draws all of them, then masks the least certain again.

    logits_of(tokens, step) -> [B, L, V]. How many are masked again is a share of those a row began with, and at least one
    token fewer than before; ties at the limit are masked. Tokens that are known at the start stay, however many a row has.
    """
    wanted = (tokens == mask_token).sum(1)
    for step in range(settings.steps):
        ratio = (step + 1) / settings.steps
        noise = settings.noise * (1 - ratio)
        hidden = tokens == mask_token
        logits = logits_of(tokens, step)
        if settings.soften:
            logits = logits / (0.5 + 0.8 * (1 - ratio))
        drawn = (logits + noise * _gumbel(draws, f"tokens_{step}", logits)).argmax(-1) if noise else logits.argmax(-1)
        chosen = torch.where(hidden, drawn, tokens)
        if step == settings.steps - 1:
            return chosen
        certainty = logits.gather(-1, drawn[..., None])[..., 0].masked_fill(~hidden, torch.inf)
        if noise:
            certainty = certainty + noise * _gumbel(draws, f"conf_{step}", certainty)
        again = torch.minimum(masked_count(wanted, ratio), hidden.sum(1) - 1).clamp(min=1)
        limit = certainty.sort(1).values.gather(1, again[:, None] - 1)
        # a row without hidden tokens has no finite limit, and every one of its tokens would reach it
        tokens = torch.where(hidden & (certainty <= limit), mask_token, chosen)
    return tokens


def _gumbel(draws: Draws, name: str, like: Tensor) -> Tensor:
    uniform = draws.uniform(name, tuple(like.shape)).to(like.device)
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
