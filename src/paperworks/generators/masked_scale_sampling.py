"""Sampling from HMAR (2506.04421): each scale drawn at once from the scales before, then refined in as many steps as its
schedule says, which can be changed after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, guide, pick
from paperworks.generators.masked_scale import MaskedScaleTransformer, ScaleSteps
from paperworks.generators.next_scale_sampling import covered, image_keep_mask, keep_masks
from paperworks.tokenizers.multi_scale_quantizer import MultiScaleVQ
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE

Schedule = Sequence[Sequence[int]]
"""per scale: how many tokens become final in each step; one entry means no refinement"""

REFINED = {4: (1, 3), 9: (1, 1, 2, 5)}
"""the released default: maps of 2 x 2 and 3 x 3 in several steps, all others at once"""
MASK_GUIDANCE = 1e-6
"""share of the guidance that refinement steps use: practically none"""


@dataclass(frozen=True)
class MaskSampled:
    indices: list[Tensor]
    """int64 [B, n] per scale"""
    features: Tensor
    """[B, C, H, W] accumulated features, to be decoded by the tokenizer"""
    passes: int
    """network passes that were run, one after the other"""


def default_schedule(patch_nums: Sequence[int]) -> list[list[int]]:
    return [list(REFINED.get(side * side, (side * side,))) for side in patch_nums]


def check_schedule(schedule: Schedule, patch_nums: Sequence[int]) -> None:
    """Raises InputError unless the schedule has an entry per scale that sums to its tokens."""
    if len(schedule) != len(patch_nums):
        raise InputError(f"the schedule has {len(schedule)} entries for {len(patch_nums)} scales")
    for side, counts in zip(patch_nums, schedule):
        if sum(counts) != side * side or any(count < 1 for count in counts):
            raise InputError(
                f"the schedule of the {side} x {side} map, {list(counts)}, must sum to {side * side} positive counts"
            )


@torch.no_grad()
def sample(
    model: MaskedScaleTransformer,
    quantizer: MultiScaleVQ,
    labels: Tensor,
    draws: Draws,
    *,
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    schedule: Schedule | None = None,
    given: Sequence[Tensor] | None = None,
    keep: Sequence[Tensor] | None = None,
    observe: Callable[[str, Tensor], None] | None = None,
    after: Callable[[str, Tensor], None] | None = None,
) -> MaskSampled:
    """Token maps of `labels` [B] (value num_classes: no class), guidance growing with the scale.

    given, keep: token maps int64 [B, n] of an image and bool [n] per scale where they stay; only the others are drawn and
    refined. `observe(name, logits)` sees the raw logits (conditional rows, then null rows) of each pass, "ns_k" or "mask_k_j",
    and `after(name, tokens)` the map after its draw.
    """
    schedule = schedule or default_schedule(model.patch_nums)
    check_schedule(schedule, model.patch_nums)
    if tuple(quantizer.patch_nums) != model.patch_nums:
        raise InputError(f"the transformer was built for scales {model.patch_nums}, the tokenizer has {quantizer.patch_nums}")
    with torch.autocast(labels.device.type, enabled=False):
        return _sample(model, quantizer, labels, draws, guidance, top_k, top_p, schedule, given, keep, observe, after)


def _sample(
    model: MaskedScaleTransformer,
    quantizer: MultiScaleVQ,
    labels: Tensor,
    draws: Draws,
    guidance: float,
    top_k: int,
    top_p: float,
    schedule: Schedule,
    given: Sequence[Tensor] | None,
    keep: Sequence[Tensor] | None,
    observe: Callable[[str, Tensor], None] | None,
    after: Callable[[str, Tensor], None] | None,
) -> MaskSampled:
    rows, last = len(labels), max(1, len(model.patch_nums) - 1)
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guidance else labels
    steps, passes = ScaleSteps(model, both), 0
    twice = 2 if guidance else 1
    features, chosen = quantizer.begin(rows), []
    inputs: Tensor | None = None

    def draw(name: str, raw: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Tokens, and their probability under what they were drawn from."""
        if observe is not None:
            observe(name, raw)
        logits = guide(raw[:rows], raw[rows:], weight) if guidance else raw
        logits = filter_logits(logits, top_k, top_p)
        found = pick(logits, draws.uniform(name, tuple(logits.shape[:2])).to(logits.device))
        return found, logits.softmax(-1).gather(-1, found[..., None])[..., 0]

    for scale, side in enumerate(model.patch_nums):
        shown = None if inputs is None else inputs.repeat(twice, 1, 1)
        tokens, confidence = draw(f"ns_{scale}", steps.logits("ns", scale, shown), guidance * scale / last)
        passes += 1
        if given is not None and keep is not None:
            stays = keep[scale].to(tokens.device).expand_as(tokens)
            tokens, confidence = torch.where(stays, given[scale], tokens), confidence.masked_fill(stays, torch.inf)
        if after is not None:
            after(f"ns_{scale}", tokens)
        counts = list(schedule[scale])
        masked = torch.ones_like(tokens, dtype=torch.bool)
        for number, remaining in enumerate((sum(counts[step:]) for step in range(1, len(counts))), 1):
            masked = least_confident(confidence, masked, remaining)
            if not bool(masked.any()) or shown is None:
                break
            own = quantizer.own_inputs(scale, tokens).repeat(twice, 1, 1)
            raw = steps.logits("mask", scale, shown, own, masked.repeat(twice, 1))
            found, sure = draw(f"mask_{scale}_{number}", raw, guidance * MASK_GUIDANCE)
            passes += 1
            tokens, confidence = torch.where(masked, found, tokens), torch.where(masked, sure, confidence)
            if after is not None:
                after(f"mask_{scale}_{number}", tokens)
        chosen.append(tokens)
        vectors = quantizer.lookup(tokens).transpose(1, 2).unflatten(2, (side, side))
        features, inputs = quantizer.accumulate(scale, vectors, features)
    return MaskSampled(chosen, features, passes)


def least_confident(confidence: Tensor, among: Tensor, count: int) -> Tensor:
    """bool [B, n]: the `count` positions of each row with the lowest confidence, of those in `among`; kept ones (infinite
    confidence) are never chosen."""
    ranked = confidence.masked_fill(~among, torch.inf)
    chosen = torch.zeros_like(among).scatter(1, ranked.argsort(dim=1, stable=True)[:, :count], True)
    return chosen & among & confidence.isfinite()


def inpaint(
    model: MaskedScaleTransformer,
    tokenizer: MultiScaleVQVAE,
    images: Tensor,
    hole: Tensor,
    labels: Tensor,
    draws: Draws,
    *,
    paste: bool = True,
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    schedule: Schedule | None = None,
) -> Tensor:
    """Make the pixels of `hole` anew: images [B, C, H, W] in [0, 1], hole [H, W] or [B, H, W], 1 inside -> images.

    What the hole held is not looked at. Kept tokens are replaced in every scale and seen in every refinement step, as in VAR's
    editing; `paste` puts the known pixels back exactly.
    """
    if hole.shape[-2:] != images.shape[-2:]:
        raise InputError(f"the mask has {tuple(hole.shape[-2:])} pixels, the image {tuple(images.shape[-2:])}: make them equal")
    hole = (hole if hole.dim() == 3 else hole[None]).expand(len(images), -1, -1)
    keep = [mask.flatten(1) > 0 for mask in keep_masks(image_keep_mask(hole, model.patch_nums[-1]), model.patch_nums)]
    made = sample(
        model,
        tokenizer.quantize,
        labels,
        draws,
        guidance=guidance,
        top_k=top_k,
        top_p=top_p,
        schedule=schedule,
        given=tokenizer.encode(covered(images, hole)),
        keep=keep,
    )
    with torch.no_grad():
        filled = tokenizer.decode_features(made.features)
    return torch.where(hole[:, None] > 0, filled, images) if paste else filled
