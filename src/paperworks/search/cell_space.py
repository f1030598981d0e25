"""NASNet's space (1707.07012, section 3.1): a normal and a reduction cell, five decisions for each of their blocks."""

from __future__ import annotations

from collections.abc import Sequence

from paperworks.backbones.genotype import COMBINATIONS, OPERATIONS, Block, CellPlan, Genotype, unread
from paperworks.errors import InputError
from paperworks.search.space import Arch, Choice, Space

CELLS = ("normal", "reduction")


class CellSpace(Space):
    """For block b of a cell: two of the 2 + b states there are, an operation for each, and how the results are combined.

    A cell returns all states that none of its blocks reads.
    """

    def __init__(self, blocks: int = 5, operations: Sequence[str] = OPERATIONS, combinations: Sequence[str] = COMBINATIONS):
        if blocks < 1:
            raise InputError(f"cells of {blocks} blocks: at least 1")
        self.blocks = blocks
        self.operations, self.combinations = tuple(operations), tuple(combinations)
        choices = []
        for cell in CELLS:
            for number in range(blocks):
                where, states = f"{cell}.{number}", tuple(range(2 + number))
                choices += [
                    Choice(f"{where}.left", states, "state"),
                    Choice(f"{where}.right", states, "state"),
                    Choice(f"{where}.left_op", self.operations, "operation"),
                    Choice(f"{where}.right_op", self.operations, "operation"),
                    Choice(f"{where}.combine", self.combinations, "combination"),
                ]
        super().__init__(choices)

    def genotype(self, arch: Sequence[int]) -> Genotype:
        normal, reduction = (_plan(blocks) for blocks in self._cells(self.check(arch)))
        return Genotype(normal, reduction)

    def arch(self, genotype: Genotype) -> Arch:
        """The decisions that lead to a genotype; its concat lists are not among them."""
        numbers: list[int] = []
        for plan in (genotype.normal, genotype.reduction):
            if len(plan.blocks) != self.blocks:
                raise InputError(f"a cell of {len(plan.blocks)} blocks in a space of cells with {self.blocks}")
            numbers += self._numbers(plan.blocks)
        return self.check(numbers)

    def canonical(self, arch: Arch) -> Arch:
        """The two branches of a block may change places, and so may blocks that do not read one another."""
        return tuple(number for blocks in self._cells(arch) for number in self._numbers(sort_blocks(blocks)))

    def _cells(self, arch: Arch) -> list[tuple[Block, ...]]:
        half = len(arch) // 2
        return [self._blocks(arch[:half]), self._blocks(arch[half:])]

    def _blocks(self, numbers: Arch) -> tuple[Block, ...]:
        found = []
        for start in range(0, len(numbers), 5):
            left, right, left_op, right_op, combine = numbers[start : start + 5]
            found.append(
                Block(left, right, self.operations[left_op], self.operations[right_op], self.combinations[combine])  # type: ignore[arg-type]
            )
        return tuple(found)

    def _numbers(self, blocks: Sequence[Block]) -> list[int]:
        numbers: list[int] = []
        for block in blocks:
            for word, known in (
                (block.left_op, self.operations),
                (block.right_op, self.operations),
                (block.combine, self.combinations),
            ):
                if word not in known:
                    raise InputError(f"{word!r} is not in this space: it has {', '.join(known)}")
            numbers += [block.left, block.right, self.operations.index(block.left_op), self.operations.index(block.right_op)]
            numbers.append(self.combinations.index(block.combine))
        return numbers


def _plan(blocks: tuple[Block, ...]) -> CellPlan:
    return CellPlan(blocks, unread(blocks))


def sort_blocks(blocks: Sequence[Block]) -> list[Block]:
    """The same cell with its branches and blocks in one fixed order: by how deep a block lies, then by what it computes."""
    depth, says = [0, 0], ["0", "1"]
    for block in blocks:
        branches = sorted(f"{operation}({says[state]})" for state, operation in block.branches)
        says.append(f"{block.combine}[{';'.join(branches)}]")
        depth.append(1 + max(depth[state] for state, _ in block.branches))
    order = sorted(range(2, len(says)), key=lambda state: (depth[state], says[state]))
    renamed = {0: 0, 1: 1} | {state: 2 + place for place, state in enumerate(order)}
    result = []
    for state in order:
        block = blocks[state - 2]
        (left, left_op), (right, right_op) = sorted((renamed[s], operation) for s, operation in block.branches)
        result.append(Block(left, right, left_op, right_op, block.combine))
    return result
