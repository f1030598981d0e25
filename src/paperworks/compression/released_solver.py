"""The allocation solver as RD-prune's authors released it, for reproducing their numbers. Use `knapsack.solve` otherwise.

It fills one cell per kept weight and differs from the problem it is meant to solve (Akimoto-Cris/RD_VIT_PRUNE,
tools/algo.py, observed behaviour):
- cells run from 0 to budget - 1, and a choice needs strictly more room than it keeps, while the room it takes is rounded
  down: the answer can keep a few weights more than the budget;
- the smallest layer takes the ratio nearest to the room it has, whatever its distortion and its earlier ratio;
- with no room at all, the second layer's entry leaves out the first layer's distortion;
- cells are filled in pieces of 4096 and the first cell of every later piece stays empty;
- a cell that no choice reaches stands for the first ratio (nothing pruned).
Everything is float32, layers go from the smallest to the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paperworks.errors import InputError

PIECE = 4096


def released_choices(
    sizes: Sequence[int],
    ratios: npt.ArrayLike,
    distortions: Sequence[npt.ArrayLike],
    previous: Sequence[float],
    target: float,
) -> list[int]:
    """Index into `ratios` per layer. previous: ratio that each layer has already; target: sparsity asked for."""
    grid = np.asarray(ratios, dtype=np.float32)
    order = np.argsort(np.asarray(sizes))
    budget = int((1 - target) * sum(sizes))
    if budget < 1:
        raise InputError(f"a sparsity of {target} leaves no weight; the released solver needs at least one")
    kept_share = np.float32(1) - grid
    cell = np.arange(budget)
    unfilled = (cell % PIECE == 0) & (cell > 0)
    value = np.full(budget, np.inf, dtype=np.float32)
    tables: list[npt.NDArray[np.int64]] = []
    for position, layer in enumerate(order):
        size, curve = sizes[layer], np.asarray(distortions[layer], dtype=np.float32)
        room = (kept_share * np.float32(size)).astype(np.float32)
        taken = room.astype(np.int64)
        after, table = np.full(budget, np.inf, dtype=np.float32), np.zeros(budget, dtype=np.int64)
        if position == 0:
            share = cell.astype(np.float32) / np.float32(size)
            table = np.abs(kept_share[None] - share[:, None]).argmin(1)
            after = curve[table]
        else:
            for choice in range(len(grid)):
                if grid[choice] < np.float32(previous[layer]):
                    continue
                fits = np.flatnonzero(cell.astype(np.float32) > room[choice])
                candidate = curve[choice] + value[fits - taken[choice]]
                better = candidate < after[fits]
                after[fits[better]], table[fits[better]] = candidate[better], choice
        after[unfilled], table[unfilled] = np.inf, 0
        everything = int(np.flatnonzero(grid == 1)[0])
        after[0] = curve[everything] + (value[0] if position > 1 else np.float32(0))
        table[0] = np.abs(grid - np.float32(1)).argmin()
        full = min(sum(sizes[i] for i in order[: position + 1]), budget)
        after[full:], table[full:] = after[full - 1], table[full - 1]
        value = after
        tables.append(table)
    choices = [0] * len(sizes)
    left = budget
    for layer, table in zip(order[::-1], tables[::-1]):
        choice = int(table[max(0, left - 1)])
        choices[layer] = choice
        left = max(0, left - int(kept_share[choice] * np.float32(sizes[layer])))
    return choices
