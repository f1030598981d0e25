"""Sampling, editing and rejection sampling with a next-scale transformer (VAR 2404.02905, sections 3.2, 4.5 and appendix).

Guidance grows with the scale: weight t = guidance * k / (K - 1), so that the first, coarsest map is unguided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, guide, pick
from paperworks.generators.next_scale import NextScaleTransformer


class ScaleTokenizer(Protocol):
    """What sampling needs of a multi-scale tokenizer."""

    @property
    def patch_nums(self) -> tuple[int, ...]: ...
    def encode(self, images: Tensor) -> list[Tensor]: ...
    def begin(self, rows: int) -> Tensor: ...
    def lookup(self, indices: Tensor) -> Tensor: ...
    def codes(self) -> Tensor: ...
    def accumulate(self, scale: int, vectors: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]: ...
    def decode_features(self, features: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Edit:
    """What to keep of a given image: its token maps, and per scale which positions stay (1) or are generated (0)."""

    indices: Sequence[Tensor]
    keep: Sequence[Tensor]
    """[1 or B, 1, side, side] per scale, from `keep_masks`"""


@dataclass(frozen=True)
class Sampled:
    indices: list[Tensor]
    """int64 [B, n] per scale: the tokens drawn (smoothing: the heaviest ones; editing: before kept ones replace them)"""
    features: Tensor
    """accumulated feature map [B, C, side, side] of the last scale"""


@torch.no_grad()
def sample(
    model: NextScaleTransformer,
    tokenizer: ScaleTokenizer,
    labels: Tensor,
    draws: Draws,
    *,
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    smooth: bool = False,
    edit: Edit | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Sampled:
    """Generate the token maps of `labels` [B] (value num_classes: no class).

    guidance 0 runs the conditional branch alone. `smooth` mixes code vectors by a Gumbel softmax instead of picking one
    (nicer to look at, not for measuring). `observe(scale, logits)` sees the raw logits of the conditional, then the null rows.
    """
    if guidance < 0:
        raise InputError(f"guidance={guidance} must not be negative (0 switches it off)")
    if tuple(tokenizer.patch_nums) != model.patch_nums:
        raise InputError(
            f"the transformer was built for scales {model.patch_nums}, the tokenizer has {tuple(tokenizer.patch_nums)}"
        )
    with torch.autocast(labels.device.type, enabled=False):  # the cache has the weights' own precision
        return _sample(model, tokenizer, labels, draws, guidance, top_k, top_p, smooth, edit, observe)


def _sample(
    model: NextScaleTransformer,
    tokenizer: ScaleTokenizer,
    labels: Tensor,
    draws: Draws,
    guidance: float,
    top_k: int,
    top_p: float,
    smooth: bool,
    edit: Edit | None,
    observe: Callable[[int, Tensor], None] | None,
) -> Sampled:
    rows, last = len(labels), max(1, len(model.patch_nums) - 1)
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guidance else labels
    decoder = model.decoding(both)
    features, inputs = tokenizer.begin(rows), None
    chosen = []
    for scale, side in enumerate(model.patch_nums):
        raw = decoder.step(inputs if inputs is None or not guidance else inputs.repeat(2, 1, 1))
        if observe is not None:
            observe(scale, raw)
        progress = scale / last
        logits = guide(raw[:rows], raw[rows:], guidance * progress) if guidance else raw
        logits = filter_logits(logits, top_k, top_p)
        if smooth:
            noise = draws.exponential(f"exponential_{scale}", tuple(logits.shape)).to(logits.device)
            weights = smooth_codes(logits, progress, noise)
            indices, vectors = weights.argmax(-1), weights @ tokenizer.codes()
        else:
            indices = pick(logits, draws.uniform(f"uniform_{scale}", (rows, side * side)).to(logits.device))
            vectors = tokenizer.lookup(indices)
        chosen.append(indices)
        vectors = vectors.transpose(1, 2).unflatten(2, (side, side))
        if edit is not None:
            given = tokenizer.lookup(edit.indices[scale]).transpose(1, 2).unflatten(2, (side, side))
            vectors = torch.where(edit.keep[scale] > 0, given, vectors)
        features, inputs = tokenizer.accumulate(scale, vectors, features)
    return Sampled(chosen, features)


def smooth_codes(logits: Tensor, progress: float, exponential: Tensor) -> Tensor:
    """Soft code weights: Gumbel softmax whose temperature falls, and whose logits sharpen, with the scale."""
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    return ((logits * (1 + progress) - exponential.log()) / temperature).softmax(-1)


def box_mask(side: int, top: float, left: float, bottom: float, right: float, *, inside: bool) -> Tensor:
    """Keep-mask [side, side] for a box in relative coordinates: keep its inside (out-painting) or its outside (in-painting)."""
    mask = torch.zeros(side, side)
    mask[round(top * side) : round(bottom * side), round(left * side) : round(right * side)] = 1
    return mask if inside else 1 - mask


def image_keep_mask(hole: Tensor, side: int) -> Tensor:
    """Keep-mask [B, side, side] of the last token map from a pixel mask [B, H, W] that is 1 where pixels are to be made anew:
    a token stays only when no pixel of its cell is in the hole."""
    if hole.shape[-1] % side or hole.shape[-2] % side:
        raise InputError(f"a mask of {tuple(hole.shape[-2:])} pixels does not divide into {side} x {side} tokens")
    cell = hole.shape[-2] // side
    return 1 - F.max_pool2d(hole.float()[:, None], cell)[:, 0]


def keep_masks(mask: Tensor, patch_nums: Sequence[int]) -> list[Tensor]:
    """Which positions of every scale stay, from a keep-mask [side, side] or [B, side, side] of the last one.

    Bilinear, kept above 1/2; a map of three tokens or fewer always stays, since it holds the image's overall tone.
    """
    if mask.dim() == 2:
        mask = mask[None]
    if mask.shape[-1] != patch_nums[-1] or mask.shape[-2] != patch_nums[-1]:
        raise InputError(
            f"the edit mask has {tuple(mask.shape[-2:])} cells; the last scale has {patch_nums[-1]} x {patch_nums[-1]}"
        )
    kept = []
    for side in patch_nums:
        keep = F.interpolate(mask[:, None].float(), size=(side, side), mode="bilinear", align_corners=False) > 0.5
        kept.append(torch.ones_like(keep).float() if side * side <= 3 else keep.float())
    return kept


def covered(images: Tensor, hole: Tensor) -> Tensor:
    """Images [B, C, H, W] with the hole [B, H, W] in the mean colour of the rest: what the tokens of small maps, which always
    stay, may know of it."""
    known = 1 - (hole > 0).float()[:, None]
    mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(known > 0, images, mean)


@torch.no_grad()
def inpaint(
    model: NextScaleTransformer,
    tokenizer: ScaleTokenizer,
    images: Tensor,
    hole: Tensor,
    labels: Tensor,
    draws: Draws,
    *,
    paste: bool = True,
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    smooth: bool = False,
) -> Tensor:
    """Make the pixels of `hole` anew: images [B, C, H, W] in [0, 1], hole [B, H, W] or [H, W], 1 inside -> images.

    The label num_classes fills in freely (in- and out-painting), any other edits towards that class. What the hole held is not
    looked at. `paste` puts the known
    pixels back exactly; without it they pass through the tokenizer.
    """
    if hole.shape[-2:] != images.shape[-2:]:
        raise InputError(f"the mask has {tuple(hole.shape[-2:])} pixels, the image {tuple(images.shape[-2:])}: make them equal")
    hole = (hole if hole.dim() == 3 else hole[None]).expand(len(images), -1, -1)
    keep = keep_masks(image_keep_mask(hole, model.patch_nums[-1]), model.patch_nums)
    edit = Edit(tokenizer.encode(covered(images, hole)), keep)
    drawn = sample(model, tokenizer, labels, draws, guidance=guidance, top_k=top_k, top_p=top_p, smooth=smooth, edit=edit)
    made = tokenizer.decode_features(drawn.features)
    return torch.where(hole[:, None] > 0, made, images) if paste else made


@torch.no_grad()
def rejection_sample(
    make: Callable[[Tensor, int], Tensor], score: Callable[[Tensor, Tensor], Tensor], labels: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """Best of `candidates` images per label: make(labels, first_row) -> images, score(images, labels) -> [B], higher is better.

    Returns the images and their scores. Only the best so far is held, so memory does not grow with `candidates`.
    """
    if candidates < 1:
        raise InputError(f"candidates={candidates} must be at least 1")
    best = make(labels, 0)
    best_score = score(best, labels)
    for attempt in range(1, candidates):
        images = make(labels, attempt * len(labels))
        value = score(images, labels)
        better = value > best_score
        best = torch.where(better[:, None, None, None], images, best)
        best_score = torch.where(better, value, best_score)
    return best, best_score
