"""Every image is decoded once when a source is opened: what fails is skipped and listed, what fits in memory is kept decoded.

Sources that do not fit are read again at each access; for them the outcome is remembered on disk, so that the second
opening costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from paperworks.data.decode import Unreadable
from paperworks.data.progress import watched
from paperworks.data.source import EncodedReader, InMemory, Reader
from paperworks.errors import InputError

MEMORY = 2 << 30
"""bytes of decoded pixels that may be kept"""
BLOCK = 64
"""images decoded ahead, at most"""
LARGE = 50_000
"""bytes of pixels from which an image is worth a thread, about 128 x 128 RGB"""


def cache_folder() -> Path:
    """Where things that can be made again are kept: $PAPERWORKS_CACHE, else paperworks/ in the user's cache folder."""
    chosen = os.environ.get("PAPERWORKS_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "paperworks"


def verified(
    reader: Reader, *, name: str, strict: bool = False, memory: int = MEMORY
) -> tuple[Reader, Tensor, list[tuple[str, str]]]:
    """(reader to use from now on, positions in `reader` of the good images int64, skipped as (key, reason)).

    The reader returned holds the good images only, decoded, if they fit in `memory` bytes; else it is `reader` itself.
    Raises InputError when no image is good, or for the first bad one when `strict`.
    """
    note = _note(reader, memory)
    known = _recall(note)
    if known is not None and not (strict and known):
        usable = torch.ones(len(reader), dtype=torch.bool)
        usable[[position for position, _, _ in known]] = False
        return reader, usable.nonzero().squeeze(1), [(key, reason) for _, key, reason in known]

    kept = _Kept(len(reader), memory)
    good: list[int] = []
    bad_ones: list[tuple[int, str, str]] = []
    for position, outcome in watched(_outcomes(reader), len(reader), f"reading {name}"):
        if isinstance(outcome, str):
            if strict:
                raise InputError(f"{reader.key(position)}: {outcome}; without strict such images are skipped and listed")
            bad_ones.append((position, reader.key(position), outcome))
        else:
            good.append(position)
            kept.add(outcome)
    if not good:
        _, key, reason = bad_ones[0]
        raise InputError(f"{name}: none of its {len(reader)} images can be read; the first is {key} ({reason})")
    skipped = [(key, reason) for _, key, reason in bad_ones]
    if kept.full:
        _remember(note, bad_ones)
        return reader, torch.tensor(good), skipped
    return InMemory(kept.images(), [reader.key(position) for position in good]), torch.tensor(good), skipped


class _Kept:
    """Collects decoded images until they exceed the budget: one tensor as long as all have the size of the first."""

    def __init__(self, count: int, budget: int):
        self.count = count
        self.budget = budget
        self.used = 0
        self.full = False
        self.stack: Tensor | None = None  # the system hands out its pages only as they are written
        self.filled = 0
        self.loose: list[Tensor] | None = None

    def add(self, image: Tensor) -> None:
        self.used += image.numel()
        if self.full or self.used > self.budget:
            self.full, self.stack, self.loose = True, None, None
            return
        if self.loose is None and self.stack is None:
            if image.numel() * self.count <= self.budget:
                self.stack = torch.empty((self.count, *image.shape), dtype=torch.uint8)
            else:
                self.loose = []
        if self.stack is not None and image.shape != self.stack.shape[1:]:
            self.loose = [row.clone() for row in self.stack[: self.filled]]
            self.stack = None
        if self.stack is not None:
            self.stack[self.filled] = image
            self.filled += 1
        elif self.loose is not None:
            self.loose.append(image)

    def images(self) -> Tensor | list[Tensor]:
        if self.stack is not None:
            # a source with many bad images should not hold on to their share of the memory
            return self.stack[: self.filled] if self.filled == self.count else self.stack[: self.filled].clone()
        return self.loose or []


def _outcomes(reader: Reader) -> Iterator[tuple[int, Tensor | str]]:
    """(position, pixels or the reason why there are none), in order. Small images are decoded faster than they are handed
    to a thread, so threads join only when images are large."""

    def attempt(position: int) -> Tensor | str:
        try:
            return reader.read(position)
        except Unreadable as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        threads = False
        for start in range(0, len(reader), BLOCK):
            block = range(start, min(start + BLOCK, len(reader)))
            pixels = 0
            for position, outcome in zip(block, pool.map(attempt, block) if threads else map(attempt, block)):
                pixels += outcome.numel() if isinstance(outcome, Tensor) else 0
                yield position, outcome
            threads = pixels > LARGE * len(block)


# --- the memory of earlier verifications ------------------------------------------------------------------------------


def fingerprint(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def file_stamp(path: Path) -> tuple[str, int, int]:
    """What changes when a file changes."""
    status = path.stat() if path.exists() else None
    return str(path), status.st_size if status else -1, status.st_mtime_ns if status else 0


def _note(reader: Reader, memory: int) -> Path | None:
    if not isinstance(reader, EncodedReader):
        return None
    return cache_folder() / "verified" / (fingerprint([reader.fingerprint(), reader.channels, memory]) + ".json")


def _recall(note: Path | None) -> list[tuple[int, str, str]] | None:
    """The images skipped the last time, if this source was verified before and did not fit in memory."""
    if note is None or not note.is_file():
        return None
    try:
        return [(int(position), str(key), str(reason)) for position, key, reason in json.loads(note.read_text())]
    except (ValueError, OSError):
        return None


def _remember(note: Path | None, skipped: list[tuple[int, str, str]]) -> None:
    if note is None:
        return
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        aside = note.with_name(f"{note.name}.{os.getpid()}")
        aside.write_text(json.dumps(skipped))
        os.replace(aside, note)
    except OSError:  # a read-only home only costs time
        return
