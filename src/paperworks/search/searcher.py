"""Who proposes architectures, the loop around proposing and evaluating, and random search, the control of every other one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from paperworks.errors import InputError
from paperworks.search.archive import Archive, Record
from paperworks.search.space import Arch, Space

Evaluate = Callable[[Arch], Mapping[str, float]]
"""architecture -> numbers, of which "reward" is maximised; the same for an architecture whenever it is asked"""


class Searcher(Protocol):
    """Proposes from its seed and from what it was told, and from nothing else: then a search can be repeated."""

    def ask(self, count: int) -> list[Arch]: ...

    def tell(self, archs: Sequence[Arch], rewards: Sequence[float]) -> None: ...


class RandomSearch:
    """Every decision uniformly at random (section 4.3 compares with it)."""

    def __init__(self, space: Space, seed: int = 0):
        self.space = space
        self.generator = torch.Generator().manual_seed(seed)

    def ask(self, count: int) -> list[Arch]:
        return [self.space.sample(self.generator) for _ in range(count)]

    def tell(self, archs: Sequence[Arch], rewards: Sequence[float]) -> None:
        """Learns nothing."""


def search(
    searcher: Searcher,
    evaluate: Evaluate,
    archive: Archive,
    evaluations: int,
    *,
    batch: int = 10,
    told: Callable[[int, Record], None] | None = None,
) -> list[Record]:
    """`evaluations` proposals in order with their rewards; one that is in the archive already counts, but costs nothing.

    batch: proposals between two times that the searcher is told rewards. told: called after each evaluation with the number
    of proposals so far and the record.
    """
    if evaluations < 1 or batch < 1:
        raise InputError(f"{evaluations} evaluations in batches of {batch}: at least 1 of each")
    history: list[Record] = []
    while len(history) < evaluations:
        archs = searcher.ask(min(batch, evaluations - len(history)))
        records = []
        for arch in archs:
            records.append(evaluated(arch, evaluate, archive))
            if told is not None:
                told(len(history) + len(records), records[-1])
        searcher.tell(archs, [record.reward for record in records])
        history += records
    return history


def evaluated(arch: Arch, evaluate: Evaluate, archive: Archive) -> Record:
    """The archive's record of the architecture, made first where there is none."""
    record = archive.find(arch)
    if record is not None:
        return record
    started = time.monotonic()
    arch = archive.space.canonical(arch)
    numbers = dict(evaluate(arch))
    return archive.add(arch, numbers.pop("reward"), numbers, round(time.monotonic() - started, 2))
