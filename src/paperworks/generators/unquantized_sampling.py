"""Filling holes with PUT's transformer (2205.05076, section 3.2; schedules of 2404.00513): the positions of which the network
is surest are drawn first, as many as wanted in a pass, and their codes take the place of the hole's features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, pick
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.tokenizers.dual_quantizer import KNOWN, token_types
from paperworks.tokenizers.masked_codec import InpaintingCodec
from paperworks.tokenizers.protocol import check_images

FilterKind = Literal["count", "prob"]
Order = Literal["confident", "raster"]
InputKind = Literal["continuous", "quantized"]

SUSPICIOUS = 0.05
"""known share below which a mask looks inverted"""


@dataclass(frozen=True)
class FillConfig:
    """How a hole is filled."""

    per_pass: int | str = 1
    """patches drawn in a pass; -1 for all at once; "cosine_8", "linear_8" or "average_8" for 8 passes that draw many first
    ("cosine-1_8": few first)"""
    keep: float = 50
    """"count": codes kept, or the share that is dropped if at most 1; "prob": smallest probability kept"""
    keep_kind: FilterKind = "count"
    temperature: float = 1.0
    """MULTIPLIES the logits: larger is surer"""
    order: Order = "confident"
    features: InputKind = "continuous"
    """what the transformer reads of known patches: their features, or (the baseline) their codes"""
    shared_best: bool = False
    """the released "prob" filter keeps the best code of every row in all rows of the batch; True does as it does"""

    def check(self) -> None:
        if self.keep < 0:
            raise InputError(f"keep={self.keep} must not be negative: above 1 it is a number of codes, up to 1 a share dropped")
        if self.keep_kind not in ("count", "prob") or (self.keep_kind == "prob" and self.keep > 1):
            raise InputError(
                f"keep={self.keep} of kind {self.keep_kind!r}: 'prob' wants a probability, 'count' a number or share"
            )
        if self.temperature <= 0:
            raise InputError(f"temperature={self.temperature} multiplies the logits and must be positive")
        if isinstance(self.per_pass, int) and self.per_pass < 1 and self.per_pass != -1:
            raise InputError(f"per_pass={self.per_pass} must be a number of patches, or -1 for all at once")


@dataclass(frozen=True)
class Filled:
    tokens: Tensor
    """int64 [B, h, w]: known patches' own codes, and drawn ones"""
    passes: int
    """of the network, one after the other"""


def keep_likely(logits: Tensor, keep: float, kind: FilterKind = "count", shared_best: bool = False) -> Tensor:
    """Logits [..., V] of unlikely codes become -inf. "count": `keep` of them stay, or the share 1 - keep if at most 1, one at
    least; "prob": those of probability >= keep, and the best (`shared_best`: of all rows)."""
    if kind == "prob":
        kept, best = logits.softmax(-1) >= keep, logits.argmax(-1, keepdim=True)
        kept = kept.index_fill(-1, best.flatten(), True) if shared_best else kept.scatter(-1, best, True)
        return logits.masked_fill(~kept, -torch.inf)
    vocabulary = logits.shape[-1]
    count = int((1 - keep) * vocabulary) if keep <= 1 else int(keep)
    values, indices = logits.topk(min(max(count, 1), vocabulary), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, indices, values)


def pass_counts(masked: int, per_pass: int | str) -> list[int]:
    """How many of `masked` patches are drawn in each pass."""
    if masked == 0:
        return []
    if isinstance(per_pass, int):
        size = masked if per_pass == -1 else per_pass
        return [min(size, masked - start) for start in range(0, masked, size)]
    kind, _, number = per_pass.partition("_")
    if kind.removesuffix("-1") not in ("cosine", "linear", "average") or not number.isdigit() or int(number) < 1:
        raise InputError(
            f"per_pass={per_pass!r}: a number, -1, or cosine, linear or average with a number of passes ('cosine_8')"
        )
    steps = min(int(number), masked)
    weights = {
        "cosine": [math.cos(math.pi * step / steps) + 1 for step in range(steps)],
        "linear": [float(steps - step) for step in range(steps)],
        "average": [1.0] * steps,
    }[kind.removesuffix("-1")]
    if kind.endswith("-1"):
        weights.reverse()
    counts = [round(weight * masked / sum(weights)) for weight in weights]
    # what rounding lost or added is made up from the second pass on, as in the released code
    place, missing = 0, masked - sum(counts)
    while missing:
        place = (place + 1) % len(counts)
        change = 1 if missing > 0 else -min(1, counts[place])
        counts[place] += change
        missing -= change
    return [count for count in counts if count]


@torch.no_grad()
def fill_tokens(
    model: UnquantizedTransformer,
    codec: InpaintingCodec,
    images: Tensor,
    known: Tensor,
    draws: Draws,
    config: FillConfig = FillConfig(),
    observe: Callable[[int, Tensor], None] | None = None,
) -> Filled:
    """Tokens of images [B, C, H, W] in [0, 1] whose pixels are known where `known` [B, 1, H, W] is 1.

    Row b of the result depends on row b of the draws alone. Recorded draws are "u_0", "u_1", ... of [B x L] positions, or of
    [rows with work left x patches of the pass], surest first. `observe(pass, logits)` sees the raw logits of the rows with
    work left.
    """
    config.check()
    _check_pair(model, codec)
    tokens, types = codec.encode_masked(images, known)
    rows, height, width = tokens.shape
    features = codec.lookup(tokens) if config.features == "quantized" else codec.features(images, known)
    share = token_types(known, codec.patch)[1].flatten(1)
    embedded = model.embed(features.flatten(1, 2), share)
    tokens, done = tokens.flatten(1).clone(), types.flatten(1) == KNOWN
    left = (~done).sum(1).tolist()
    plans = [pass_counts(count, config.per_pass) for count in left]
    passes = max(map(len, plans), default=0)
    for number in range(passes):
        active = torch.tensor([row for row in range(rows) if number < len(plans[row])], device=tokens.device)
        wanted = torch.tensor([plans[row][number] for row in active.tolist()], device=tokens.device)
        logits = model(embedded[active], done[active] if model.attend_known else None).float()
        if observe is not None:
            observe(number, logits)
        most = int(wanted.max())
        places = _surest(logits, done[active], most, config.order)
        here = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
        scores = keep_likely(here, config.keep, config.keep_kind, config.shared_best) * config.temperature
        drawn = pick(scores, _uniforms(draws, number, active, places, (rows, height * width)))
        # rows with less work than others leave the rest of their places as they are
        real = (torch.arange(most, device=places.device) < wanted[:, None]) & ~done[active].gather(1, places)
        row = active[:, None].expand_as(places)[real]
        place, code = places[real], drawn[real]
        tokens[row, place] = code
        embedded[row, place] = model.embed(codec.lookup(code)[None], positions=place[None])[0]
        done[row, place] = True
    return Filled(tokens.view(rows, height, width), passes)


def _surest(logits: Tensor, done: Tensor, count: int, order: Order) -> Tensor:
    """Positions [B, count] to draw next, first the ones with the largest logit."""
    if order == "raster":
        places = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        scores = -(places + done * (logits.shape[1] + 1)).float()
    else:
        scores = logits.amax(-1).masked_fill(done, -torch.inf)
    return scores.topk(count, dim=1).indices


def _uniforms(draws: Draws, number: int, active: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """One per place. Fresh ones belong to positions, so that neither the batch nor the order of places moves them."""
    name = f"u_{number}"
    if draws.recorded is not None and name in draws.recorded and draws.recorded[name].numel() != shape[0] * shape[1]:
        return draws.uniform(name, tuple(places.shape)).to(places.device)
    drawn = draws.uniform(name, shape).to(places.device)
    return drawn[active].gather(1, places)


def _check_pair(model: UnquantizedTransformer, codec: InpaintingCodec) -> None:
    spec = codec.spec
    if model.vocab_size != spec.vocab_size or model.code_dim != spec.code_channels:
        raise InputError(
            f"the transformer draws {model.vocab_size} codes of {model.code_dim} values, the codec has {spec.vocab_size} for "
            f"complete patches, of {spec.code_channels}: load the pair that was trained together"
        )
    spec.check(model.codec, "the transformer")


def known_from_hole(hole: Tensor, images: Tensor) -> Tensor:
    """hole [H, W], [B, H, W] or [B, 1, H, W], 1 where pixels are to be made anew -> known, bool [B, 1, H, W]."""
    if hole.shape[-2:] != images.shape[-2:]:
        raise InputError(f"the mask has {tuple(hole.shape[-2:])} pixels, the image {tuple(images.shape[-2:])}: make them equal")
    values = hole.float()
    if not bool(((values == 0) | (values == 1)).all()):
        raise InputError("the mask holds values other than 0 (keep) and 1 (make anew): threshold it first")
    if hole.dim() == 2:
        values = values[None, None]
    elif hole.dim() == 3:
        values = values[:, None]
    known = (values == 0).expand(len(images), -1, -1, -1)
    share = float(known.float().mean())
    if share < SUSPICIOUS:
        warnings.warn(
            f"only {share:.1%} of the image is known: if the mask is meant the other way round, invert it (white is made anew)",
            stacklevel=3,
        )
    return known


@torch.no_grad()
def inpaint(
    model: UnquantizedTransformer,
    codec: InpaintingCodec,
    images: Tensor,
    hole: Tensor,
    draws: Draws,
    config: FillConfig = FillConfig(),
    *,
    paste: bool = True,
) -> Tensor:
    """Make the pixels of `hole` anew: images [B, C, H, W] in [0, 1] of the size the transformer knows, hole [H, W] or
    [B, H, W], 1 inside -> images. `paste` puts the known pixels back bit for bit."""
    check_images(images, codec.spec.image_channels, codec.patch)
    known = known_from_hole(hole, images)
    if bool(known.all()):
        return images.clone()
    with torch.autocast(images.device.type, enabled=False):
        filled = fill_tokens(model, codec, images, known, draws, config)
        return codec.fill(filled.tokens, images, known, paste=paste)


@torch.no_grad()
def inpaint_photo(
    model: UnquantizedTransformer,
    codec: InpaintingCodec,
    image: Tensor,
    hole: Tensor,
    draws: Draws,
    config: FillConfig = FillConfig(),
    *,
    advance: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """As many completions as `draws` has rows of one photo [C, H, W] of any size; hole [H, W].

    Windows of the size the transformer knows are filled one after the other, first where most of a window is known; what was
    made counts as known in later windows. The photo is padded to whole patches and cut back. `advance(share)` hears how much
    of the hole is filled. Known pixels come back bit for bit.
    """
    check_images(image[None], codec.spec.image_channels)
    unknown = ~known_from_hole(hole, image[None])[0, 0]
    count, side, patch = len(draws.generators), codec.image_size, codec.patch
    height, width = image.shape[-2:]
    pad = [_padding(extent, side, patch) for extent in (width, height)]
    made = F.pad(image[None], (0, pad[0], 0, pad[1]), mode="replicate").expand(count, -1, -1, -1).clone()
    unknown = F.pad(unknown[None, None].float(), (0, pad[0], 0, pad[1]), mode="replicate")[0, 0] > 0
    total = int(unknown.sum())
    while bool(unknown.any()):
        top, left = _next_window(unknown, side, patch)
        window = (slice(top, top + side), slice(left, left + side))
        part, todo = made[:, :, *window], unknown[window]
        if bool(todo.all()):  # nothing to go by: a window in the middle of a very large hole
            filled = codec.fill(
                fill_tokens(model, codec, part, part.new_zeros(count, 1, side, side), draws, config).tokens,
                part,
                part.new_zeros(count, 1, side, side),
            )
        else:
            known = (~todo).expand(count, 1, -1, -1)
            filled = codec.fill(fill_tokens(model, codec, part, known, draws, config).tokens, part, known)
        made[:, :, *window] = torch.where(todo, filled, part)
        unknown[window] = False
        advance(1 - int(unknown.sum()) / total)
    return made[:, :, :height, :width].contiguous()


def _padding(extent: int, side: int, patch: int) -> int:
    return max(side - extent, -extent % patch)


def _next_window(unknown: Tensor, side: int, patch: int) -> tuple[int, int]:
    """Corner of the window that touches the hole and is known best; corners lie on whole patches, half a window apart."""
    step = max(patch, side // 2 // patch * patch)
    corners = [sorted({*range(0, extent - side, step), extent - side}) for extent in unknown.shape]
    # sums over windows from the integral image
    sums = F.pad(unknown.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    best, found = math.inf, (0, 0)
    for top in corners[0]:
        for left in corners[1]:
            inside = sums[top + side, left + side] - sums[top, left + side] - sums[top + side, left] + sums[top, left]
            if 0 < float(inside) < best:
                best, found = float(inside), (top, left)
    return found
