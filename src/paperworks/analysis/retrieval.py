"""Image search among slides: every patch a barcode, a slide the set of its patches' barcodes (Yottixel, as KimiaNet 2101.07903
is evaluated).

Distance of a query slide to another: for every patch of the query the smallest Hamming distance to the other's patches, and the
median of these. It is not symmetric. Predictions are majorities of the nearest slides, those of the query's patient left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.processor import bf16_is_fast

NUMBERS_AT_ONCE = 1 << 22
"""Hamming distances held at a time"""

Ties = Literal["first", "numpy"]
"""among slides at one distance: the first in the atlas, or whatever numpy's unstable sort leaves (the released search)"""


# --- barcodes -----------------------------------------------------------------------------------------------------------


def barcodes(features: Tensor) -> Tensor:
    """Features [P, D] -> bool [P, D - 1]: bit j is set when feature j + 1 is smaller than feature j."""
    if features.ndim != 2 or features.shape[1] < 2:
        raise InputError(f"barcodes are made of features [patches, 2 or more], not {list(features.shape)}")
    if not features.isfinite().all():
        raise InputError("the features hold NaN or infinity: look at the images they come from")
    return features.diff(dim=1) < 0


def pack(codes: Tensor) -> Tensor:
    """Barcodes bool [P, B] as bytes uint8 [P, ceil(B / 8)]: 1,023 bits take 128 bytes."""
    return torch.from_numpy(np.packbits(codes.numpy(), axis=1))


def unpack(packed: Tensor, bits: int) -> Tensor:
    """What `pack` was given."""
    if packed.ndim != 2 or packed.shape[1] != -(-bits // 8):
        raise InputError(f"barcodes of {bits} bits take {-(-bits // 8)} bytes each, not {list(packed.shape[1:])}")
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=bits)).bool()


def distances(queries: Sequence[Tensor], atlas: Sequence[Tensor] | None = None) -> Tensor:
    """Median of minimum Hamming distances, float64 [queries, atlas]; slides are bool [patches, bits]; atlas: the queries.

    With signs -1 and 1, bits minus product is twice the Hamming distance, exactly, so that matrix products do the counting.
    """
    others = queries if atlas is None else atlas
    bits = _checked(queries, others)
    signs = _signs(others)
    starts = np.cumsum([0, *(len(codes) for codes in others[:-1])])
    table = torch.empty(len(queries), len(others), dtype=torch.float64)
    at_once = max(1, NUMBERS_AT_ONCE // len(signs))
    for first, last in _runs([len(codes) for codes in queries], at_once):
        group = list(queries[first:last])
        rows = _signs(group)
        nearest = [np.maximum.reduceat(_products(part, signs), starts, axis=1) for part in rows.split(at_once)]
        closest = (bits - np.concatenate(nearest)) / 2
        ends = np.cumsum([len(codes) for codes in group])[:-1]
        for number, part in enumerate(np.split(closest, ends), first):
            table[number] = torch.from_numpy(np.median(part.astype(np.float64), axis=0))
    return table


def _signs(slides: Sequence[Tensor]) -> Tensor:
    """-1 and 1, int8 [patches, bits], filled up with zeros to a multiple of eight."""
    signs = torch.cat(list(slides)).to(torch.int8).mul_(2).sub_(1)
    return F.pad(signs, (0, -signs.shape[1] % 8))


def _products(rows: Tensor, signs: Tensor) -> np.ndarray:
    """rows @ signs.T, exact; in bytes where the processor multiplies short numbers in hardware, else in float32."""
    if bf16_is_fast("cpu") and rows.shape[0] > 1:
        return torch._int_mm(rows, signs.T).numpy()
    return (rows.float() @ signs.T.float()).numpy()


def _runs(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Neighbouring items together as long as their sizes sum up to `limit` at most: [(first, behind the last)]."""
    runs, first, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and total + size > limit:
            runs.append((first, number))
            first, total = number, 0
        total += size
    return [*runs, (first, len(sizes))]


def _checked(queries: Sequence[Tensor], others: Sequence[Tensor]) -> int:
    if not queries or not others:
        raise InputError("a search needs at least one query and one slide to find")
    for name, slides in (("query", queries), ("atlas", others)):
        for number, codes in enumerate(slides):
            if codes.dtype != torch.bool or codes.ndim != 2 or not codes.numel():
                raise InputError(
                    f"{name} slide {number}: barcodes are bool [1 or more, bits], not {codes.dtype} {list(codes.shape)}"
                )
    widths = {codes.shape[1] for codes in (*queries, *others)}
    if len(widths) > 1:
        raise InputError(
            f"barcodes of {min(widths)} and of {max(widths)} bits cannot be compared: use one network for all slides"
        )
    return widths.pop()


# --- predictions --------------------------------------------------------------------------------------------------------


def ranking(row: Tensor, allowed: Tensor | None = None, ties: Ties = "first") -> Tensor:
    """Positions of the atlas from the nearest on, int64; `row` holds its distances, `allowed` bool what may be found."""
    where = torch.arange(len(row)) if allowed is None else allowed.nonzero()[:, 0]
    chosen = row[where].numpy()
    order = np.argsort(chosen, kind="stable") if ties == "first" else np.argsort(chosen)
    return where[torch.from_numpy(order)]


def vote(labels: Sequence[int]) -> int:
    """The most frequent label; among equally frequent ones that which comes first."""
    return Counter(labels).most_common(1)[0][0]


def allowed_pairs(count: int, patients: Sequence[str] | None = None) -> Tensor:
    """bool [N, N]: which slides may be found for which query: not itself, and no other slide of its patient."""
    if patients is None:
        return ~torch.eye(count, dtype=torch.bool)
    if len(patients) != count:
        raise InputError(f"{len(patients)} patients for {count} slides: name one for each slide")
    numbers = np.unique(np.asarray(patients), return_inverse=True)[1]
    return torch.from_numpy(numbers[:, None] != numbers[None])


def leave_one_out(
    table: Tensor, labels: Tensor, top: int, patients: Sequence[str] | None = None, ties: Ties = "first"
) -> Tensor:
    """Predicted label of every slide, int64 [N]: majority of the `top` nearest others in `distances(slides)`."""
    count = len(table)
    if table.shape != (count, count) or len(labels) != count:
        raise InputError(
            f"distances {list(table.shape)} and {len(labels)} labels: every slide needs a row, a column and a label"
        )
    allowed = allowed_pairs(count, patients)
    fewest = int(allowed.sum(1).min()) if count else 0
    if not 1 <= top <= fewest:
        raise InputError(f"top {top}: a slide has {fewest} others to be found; take 1 to that many, or add slides")
    votes = [vote(labels[ranking(row, others, ties)[:top]].tolist()) for row, others in zip(table, allowed)]
    return torch.tensor(votes)


@dataclass(frozen=True)
class SearchScores:
    """What a search among labelled slides predicted."""

    top: int
    f1: list[float]
    """per class, in [0, 1]; NaN for a class without slides"""
    macro_f1: float
    accuracy: float
    confusion: Tensor
    """int64 [classes, classes]: rows are true classes, columns the votes"""
    predicted: Tensor


def search_scores(
    table: Tensor, labels: Tensor, classes: int, top: int = 3, patients: Sequence[str] | None = None
) -> SearchScores:
    """Leave-one-patient-out search among all slides (the paper's horizontal search where labels are tumour sites)."""
    predicted = leave_one_out(table, labels, top, patients)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    confusion.view(-1).index_add_(0, labels * classes + predicted, torch.ones_like(labels))
    f1 = f1_scores(confusion)
    known = [value for value in f1 if value == value]
    accuracy = float((predicted == labels).double().mean())
    return SearchScores(top, f1, sum(known) / len(known), accuracy, confusion, predicted)


def f1_scores(confusion: Tensor) -> list[float]:
    """Harmonic mean of precision and recall per class; NaN where a class has no slide."""
    right, there, said = confusion.diag().double(), confusion.sum(1).double(), confusion.sum(0).double()
    return torch.where(there > 0, 2 * right / (there + said), torch.nan).tolist()


def vertical_scores(
    table: Tensor, sites: Tensor, labels: Tensor, classes: int, top: int = 3, patients: Sequence[str] | None = None
) -> dict[int, SearchScores]:
    """Per tumour site the search for the subtype among the slides of that site alone (the paper's vertical search). Sites where
    a slide has fewer than `top` others of other patients are left out."""
    allowed = allowed_pairs(len(table), patients)
    found = {}
    for site in sites.unique().tolist():
        rows = (sites == site).nonzero()[:, 0]
        if int(allowed[rows][:, rows].sum(1).min()) < top:
            continue
        named = None if patients is None else [patients[row] for row in rows.tolist()]
        found[site] = search_scores(table[rows][:, rows], labels[rows], classes, top, named)
    return found
