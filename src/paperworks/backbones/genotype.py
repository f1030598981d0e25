"""Cells as data (1707.07012, section 3): which state a block reads, what it does to it, and which states a cell returns.

A cell has two states to begin with, 0 the current map and 1 the previous one; block b adds state 2 + b. The published cells
return an explicit list of states, which is not quite the search's rule "all states that no block reads": hence `concat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paperworks.errors import InputError, nearest

OPERATIONS = (
    "identity",
    "conv_1x3_3x1",
    "conv_1x7_7x1",
    "dil_conv_3x3",
    "avg_pool_3x3",
    "max_pool_3x3",
    "max_pool_5x5",
    "max_pool_7x7",
    "conv_1x1",
    "conv_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
)
"""what a block may do to each of its inputs (section 3.1)"""

COMBINATIONS = ("add", "concat")
Combination = Literal["add", "concat"]


@dataclass(frozen=True)
class Block:
    """Two states, an operation on each, and how the results become one state."""

    left: int
    right: int
    left_op: str
    right_op: str
    combine: Combination = "add"

    @property
    def branches(self) -> tuple[tuple[int, str], tuple[int, str]]:
        return (self.left, self.left_op), (self.right, self.right_op)


@dataclass(frozen=True)
class CellPlan:
    """Blocks in order, and the states that are concatenated to the cell's output: at least those that no block reads."""

    blocks: tuple[Block, ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for number, block in enumerate(self.blocks):
            for state, operation in block.branches:
                if not 0 <= state < 2 + number:
                    raise InputError(f"block {number} reads state {state}: it may read 0 to {1 + number}")
                if operation not in OPERATIONS:
                    raise InputError(f"block {number}: no operation {operation!r}{nearest(operation, OPERATIONS)}")
            if block.combine not in COMBINATIONS:
                raise InputError(f"block {number}: no combination {block.combine!r}; there are 'add' and 'concat'")
        if not self.blocks or not self.concat:
            raise InputError("a cell needs at least one block, and at least one state in its concat list")
        for state in self.concat:
            if not 0 <= state < self.states:
                raise InputError(f"the concat list names state {state}: there are 0 to {self.states - 1}")
        if len(set(self.concat)) < len(self.concat):
            raise InputError(f"the concat list {list(self.concat)} names a state twice")
        lost = [state for state in self.unread() if state not in self.concat]
        if lost:
            raise InputError(
                f"state {lost[0]} is read by no block and missing in the concat list {list(self.concat)}: add it, or leave the "
                "list out to return all states that no block reads"
            )

    @property
    def states(self) -> int:
        return 2 + len(self.blocks)

    def unread(self) -> tuple[int, ...]:
        """States that no block reads: what a cell returns during the search."""
        return unread(self.blocks)

    def to_plain(self) -> dict[str, Any]:
        rows = [[b.left, b.right, b.left_op, b.right_op, b.combine] for b in self.blocks]
        return {"blocks": rows, "concat": list(self.concat)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> CellPlan:
        """{"blocks": [[left, right, left_op, right_op(, combine)], ...], "concat": [...]}; without a list, what is unread."""
        try:
            blocks = tuple(Block(*row) for row in plain["blocks"])
            concat = tuple(plain.get("concat") or unread(blocks))
        except (KeyError, TypeError, AttributeError):
            raise InputError(
                'a cell is {"blocks": [[left, right, left_op, right_op, combine], ...], "concat": [states]}'
            ) from None
        return cls(blocks, concat)


def unread(blocks: Sequence[Block]) -> tuple[int, ...]:
    read = {state for block in blocks for state, _ in block.branches}
    return tuple(state for state in range(2 + len(blocks)) if state not in read)


@dataclass(frozen=True)
class Genotype:
    """The two cells of a network: one that keeps the map's size and one that halves it."""

    normal: CellPlan
    reduction: CellPlan

    def to_plain(self) -> dict[str, Any]:
        return {"normal": self.normal.to_plain(), "reduction": self.reduction.to_plain()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Genotype:
        missing = [name for name in ("normal", "reduction") if name not in plain]
        if missing:
            raise InputError(f"a genotype holds the cells 'normal' and 'reduction'; {missing[0]!r} is missing")
        return cls(CellPlan.from_plain(plain["normal"]), CellPlan.from_plain(plain["reduction"]))


NASNET_A = Genotype(
    normal=CellPlan(
        (
            Block(0, 1, "sep_conv_5x5", "sep_conv_3x3"),
            Block(1, 1, "sep_conv_5x5", "sep_conv_3x3"),
            Block(0, 1, "avg_pool_3x3", "identity"),
            Block(1, 1, "avg_pool_3x3", "avg_pool_3x3"),
            Block(0, 0, "sep_conv_3x3", "identity"),
        ),
        concat=(1, 2, 3, 4, 5, 6),
    ),
    reduction=CellPlan(
        (
            Block(0, 1, "sep_conv_5x5", "sep_conv_7x7"),
            Block(0, 1, "max_pool_3x3", "sep_conv_7x7"),
            Block(0, 1, "avg_pool_3x3", "sep_conv_5x5"),
            Block(3, 2, "identity", "avg_pool_3x3"),
            Block(2, 0, "sep_conv_3x3", "max_pool_3x3"),
        ),
        concat=(3, 4, 5, 6),
    ),
)
"""figure 4"""

GENOTYPES = {"A": NASNET_A}


def genotype_of(given: str | Mapping[str, Any] | Genotype) -> Genotype:
    """A genotype by name, from its plain form, or as it is."""
    if isinstance(given, Genotype):
        return given
    if isinstance(given, str):
        if given not in GENOTYPES:
            raise InputError(f"no genotype {given!r}: there is {', '.join(GENOTYPES)}, or give a table of cells")
        return GENOTYPES[given]
    return Genotype.from_plain(given)
