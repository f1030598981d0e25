"""Sampling from ResGen (2412.10208, section 3): a fixed number of passes, whatever depth and length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, guide, pick
from paperworks.generators.residual_masked import Mixture, ResidualMaskedTransformer, cosine_total, visible_counts
from paperworks.tokenizers.quantizers import ResidualQuantizer


@dataclass(frozen=True)
class ResidualSampled:
    indices: list[Tensor]
    """int64 [B, L] per level, coarse to fine"""
    passes: int


@torch.no_grad()
def refill(quantizer: ResidualQuantizer, indices: Tensor, visible: Tensor, masked_sum: Tensor) -> Tensor:
    """Tokens [B, L, D] with the hidden levels replaced by the greedy quantisation of masked_sum [B, L, C], each with its own
    level's code book; visible levels stay. visible: how many they are from the coarse end, int64 [B, L], or which, bool
    [B, L, D]. InputError when a fine one is visible below a hidden coarse one."""
    if visible.dtype == torch.bool:
        visible = visible_counts(visible)
    residual, filled = masked_sum.float().clone(), indices.clone()
    for level in range(quantizer.levels):
        book, hidden = quantizer.book(level), visible <= level
        found = book.encode(residual)
        filled[..., level] = torch.where(hidden, found, indices[..., level])
        residual = residual - torch.where(hidden[..., None], book.lookup(found), torch.zeros_like(residual))
    return filled


def vectors_of(quantizer: ResidualQuantizer, indices: Tensor) -> Tensor:
    """Code vectors [B, L, D, C] of tokens [B, L, D]."""
    return torch.stack([quantizer.book(level).lookup(indices[..., level]) for level in range(quantizer.levels)], 2)


@torch.no_grad()
def sample(
    model: ResidualMaskedTransformer,
    quantizer: ResidualQuantizer,
    labels: Tensor,
    draws: Draws,
    *,
    steps: int = 16,
    guidance: float = 0.0,
    guide_means: bool = True,
    top_p: float = 0.95,
    temperature: float = 1.0,
    noise: float = 0.0,
) -> ResidualSampled:
    """Tokens of labels [B] in `steps` passes (guided ones run two rows an image).

    guide_means: guidance moves the components' means, too, not their shares alone.
    top_p: of the mixture's components. temperature: of the Gumbel noise on the confidence that decides which tokens become
    final, falling to 0. noise: share of a component's deviation that is added to its mean; 0 takes the mean.
    """
    if steps < 1:
        raise InputError(f"steps={steps} must be at least 1")
    if guidance and not model.num_classes:
        raise InputError(f"guidance={guidance} needs a network of classes; this one has none: leave it at 0")
    if quantizer.levels != model.depth or quantizer.channels != model.code_channels:
        raise InputError(
            f"the network was built for {model.depth} levels of {model.code_channels} channels, the tokenizer has "
            f"{quantizer.levels} of {quantizer.channels}"
        )
    with torch.autocast(labels.device.type, enabled=False):
        return _sample(model, quantizer, labels, draws, steps, guidance, guide_means, top_p, temperature, noise)


def _sample(
    model: ResidualMaskedTransformer,
    quantizer: ResidualQuantizer,
    labels: Tensor,
    draws: Draws,
    steps: int,
    guidance: float,
    guide_means: bool,
    top_p: float,
    temperature: float,
    noise: float,
) -> ResidualSampled:
    rows, length, depth = len(labels), model.positions, model.depth
    both = torch.cat((labels, torch.full_like(labels, model.num_classes))) if guidance else labels
    indices = torch.zeros(rows, length, depth, dtype=torch.int64)
    visible = torch.zeros(rows, length, dtype=torch.int64)
    levels = torch.arange(depth)
    for step in range(steps):
        seen = (levels < visible[..., None])[..., None]
        sums = (vectors_of(quantizer, indices) * seen).sum(2)
        mixture = model(both, sums.repeat(2, 1, 1) if guidance else sums, visible.repeat(2, 1) if guidance else visible)
        if guidance:
            mixture = _guided(mixture, rows, guidance, guide_means)
        scale = model.scales[depth - visible][..., None]
        drawn = _draw(mixture, draws, step, top_p, noise)
        filled = refill(quantizer, indices, visible, drawn * scale)
        open_now = cosine_total((step + 1) / steps, length * depth)
        score = _confidence(mixture, quantizer, filled, visible, scale)
        gumbel = -draws.exponential(f"gumbel_{step}", (rows, length, depth)).log()
        score = score + temperature * (1 - (step + 1) / steps) * gumbel
        visible = _unmask(score, visible, open_now)
        indices = torch.where(levels < visible[..., None], filled, indices)
    return ResidualSampled([indices[..., level] for level in range(depth)], steps)


def _guided(mixture: Mixture, rows: int, weight: float, guide_means: bool) -> Mixture:
    """Of the mixtures with a class (the first `rows`) and without; deviations are those with a class. All means of a position
    move by the same: what differs between the two is the offset."""
    logits = guide(mixture.logits[:rows], mixture.logits[rows:], weight)
    assert mixture.offset is not None
    offset = guide(mixture.offset[:rows], mixture.offset[rows:], weight) if guide_means else mixture.offset[:rows]
    return Mixture(logits, mixture.mean, mixture.log_std[:rows], offset)


def _draw(mixture: Mixture, draws: Draws, step: int, top_p: float, noise: float) -> Tensor:
    """A vector [B, L, C] per position: a component by top-p, then its mean (plus noise)."""
    rows, length = mixture.logits.shape[:2]
    chosen = pick(filter_logits(mixture.logits, 0, top_p), draws.uniform(f"component_{step}", (rows, length)))
    vectors = mixture.mean_of(chosen)
    if noise:
        vectors = vectors + noise * mixture.std_of(chosen) * draws.normal(f"noise_{step}", tuple(vectors.shape))
    return vectors


def _confidence(mixture: Mixture, quantizer: ResidualQuantizer, filled: Tensor, visible: Tensor, scale: Tensor) -> Tensor:
    """[B, L, D]: log-density of the partial sum of the filled-in vectors up to each level, per channel. Smallest so far along
    the levels, so that a finer level is never surer than a coarser one of its position."""
    levels = torch.arange(filled.shape[-1])
    hidden = (levels >= visible[..., None])[..., None]
    partial = (vectors_of(quantizer, filled) * hidden).cumsum(2) / scale[..., None, :]
    density = mixture.log_densities(partial) / partial.shape[-1]
    return density.masked_fill(~hidden[..., 0], torch.inf).cummin(2).values


def _unmask(score: Tensor, visible: Tensor, still_masked: int) -> Tensor:
    """New counts of visible levels: the surest hidden tokens are shown until `still_masked` of each row remain hidden, always
    from a position's coarse end."""
    rows, length, depth = score.shape
    levels = torch.arange(depth)
    hidden = levels >= visible[..., None]
    ordered = score.masked_fill(~hidden, torch.inf).cummin(2).values - levels * 1e-6  # coarse before fine among equals
    order = ordered.flatten(1).argsort(dim=1, descending=True, stable=True)
    shown = torch.zeros(rows, length * depth, dtype=torch.bool)
    shown.scatter_(1, order[:, : length * depth - still_masked], True)
    return shown.view(rows, length, depth).long().cumprod(2).sum(2)
