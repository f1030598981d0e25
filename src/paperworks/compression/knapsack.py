"""The one knapsack: a choice per layer, least summed distortion, summed cost within a budget.

    minimise  sum_l D_l(c_l)   subject to   sum_l cost_l(c_l) <= budget

RD-prune (arXiv 2308.10438, section 3) chooses pruning ratios this way; bit widths, N:M patterns and ranks are the same
problem with other costs. Costs are whole numbers (weights, bits, bytes, MACs), and no answer ever spends more than the budget.

How it is solved:
1. Min-plus dynamic programming over budget cells, one vector operation per choice: time is layers x choices x cells.
   When every unit of budget fits in a cell this is exact. Otherwise costs are rounded UP to cells, so the answer is
   admissible but may leave some budget over.
2. In the second case the left-over is spent, and the answer is closed against the Lagrangian bound: choices whose reduced
   cost exceeds the gap cannot be in a better answer, and what survives is enumerated by undominated partial sums. Nearly
   always that proves the optimum; `Solution.exact` says so, and `Solution.gap` bounds the error when it does not.

Among equally good answers the cell-exact mode returns the lexicographically smallest choices, which is the first that a
brute-force enumeration in layer order meets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from paperworks.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EXACT_WORK = 300_000_000
"""additions up to which "auto" gives every unit of budget its own cell (about half a second)"""
EXACT_TABLE = 20_000_000
"""table entries (8 bytes each) up to which "auto" does so"""
MOST_STATES = 200_000
"""undominated partial sums kept while closing the gap; beyond it the answer stands with its bound"""


@dataclass(frozen=True)
class Solution:
    choices: tuple[int, ...]
    """index of the choice per layer, in the order given"""
    objective: float
    cost: int
    budget: int
    lower_bound: float
    """no admissible answer has a smaller objective"""
    operations: int
    """additions made by the dynamic programme"""

    @property
    def gap(self) -> float:
        """Largest possible distance from the optimum."""
        return max(0.0, self.objective - self.lower_bound)

    @property
    def exact(self) -> bool:
        return self.gap <= 1e-12 * abs(self.objective)


@dataclass(frozen=True)
class _Layer:
    """The choices worth considering: those not dominated by another (as cheap and better, or equal and earlier)."""

    index: Ints
    value: Floats
    cost: Ints
    """above the layer's cheapest choice"""


@dataclass(frozen=True)
class _Problem:
    layers: tuple[_Layer, ...]
    base: int
    """cost of every layer's cheapest choice together; spent whatever is chosen"""


def solve(
    distortions: Sequence[npt.ArrayLike],
    costs: Sequence[npt.ArrayLike],
    budget: int,
    *,
    lower: Sequence[int] | None = None,
    cells: int = 10_000,
    method: Literal["auto", "exact", "bucketed"] = "auto",
    close: bool = True,
) -> Solution:
    """The best choice per layer within the budget.

    distortions, costs: one vector per layer (lengths may differ); an infinite distortion forbids a choice.
    lower: smallest choice index allowed per layer (a layer pruned before may not grow back).
    method: "exact" gives every unit of budget a cell, "bucketed" uses `cells` cells with costs rounded up, "auto" decides.
    close: after "bucketed", spend the left-over and close the gap to the bound (off: the plain linear-time programme).
    Raises InputError when the cheapest choices together exceed the budget, or an input is malformed.
    """
    problem = _prepare(distortions, costs, lower)
    free = int(budget) - problem.base
    if free < 0:
        raise InputError(
            f"a budget of {budget:,} cannot be met: the cheapest choices allowed already cost {problem.base:,}; "
            "raise the budget or allow cheaper choices"
        )
    free = min(free, sum(int(layer.cost.max()) for layer in problem.layers))
    unit = math.gcd(*(int(cost) for layer in problem.layers for cost in layer.cost))  # 0 when there is nothing to choose
    exact_cells = free // unit if unit else 0
    work = (exact_cells + 1) * sum(len(layer.index) for layer in problem.layers)
    table = (exact_cells + 1) * (len(problem.layers) + 1)
    if method == "exact" or exact_cells == 0 or (method == "auto" and work <= EXACT_WORK and table <= EXACT_TABLE):
        scaled = [layer.cost // max(unit, 1) for layer in problem.layers]
        picks, operations = _dynamic_programme(problem.layers, scaled, exact_cells)
        return _answer(problem, picks, budget, None, operations)
    scaled = [-(-layer.cost * cells // free) for layer in problem.layers]  # ceil, in integers: rounding cannot overspend
    picks, operations = _dynamic_programme(problem.layers, scaled, cells)
    bound = math.fsum(float(layer.value.min()) for layer in problem.layers)
    if close:
        picks = _spend_leftover(problem.layers, picks, free)
        picks, bound = _close_gap(problem.layers, picks, free)
    return _answer(problem, picks, budget, bound, operations)


@dataclass(frozen=True)
class Front:
    """The best objective for every budget at once."""

    budgets: Ints
    objectives: Floats
    """non-increasing; entry i is reached within budgets[i]"""
    _problem: _Problem
    _scaled: tuple[Ints, ...]
    _rows: Floats

    def choices(self, budget: int) -> tuple[int, ...]:
        """The choices behind the largest entry that fits the budget."""
        if budget < self.budgets[0]:
            raise InputError(f"a budget of {budget:,} is below the cheapest choices' {int(self.budgets[0]):,}")
        cell = int(np.searchsorted(self.budgets, budget, side="right")) - 1
        return _original(self._problem.layers, _trace(self._problem.layers, self._scaled, self._rows, cell))


def front(
    distortions: Sequence[npt.ArrayLike],
    costs: Sequence[npt.ArrayLike],
    *,
    lower: Sequence[int] | None = None,
    cells: int = 10_000,
) -> Front:
    """Every budget from the cheapest choices to the dearest, in at most `cells` steps (costs rounded up where needed)."""
    problem = _prepare(distortions, costs, lower)
    span = sum(int(layer.cost.max()) for layer in problem.layers)
    steps = min(cells, span)
    scaled = tuple(-(-layer.cost * steps // max(span, 1)) for layer in problem.layers)
    rows, _ = _rows(problem.layers, scaled, steps)
    budgets = problem.base + np.arange(steps + 1, dtype=np.int64) * span // max(steps, 1)
    return Front(budgets, rows[0], problem, scaled, rows)


# --- the dynamic programme ----------------------------------------------------------------------------------------------


def _rows(layers: Sequence[_Layer], scaled: Sequence[Ints], cells: int) -> tuple[Floats, int]:
    """rows[l, b]: least distortion of layers l.. when they may use b cells. Built from the last layer backwards, so that
    reading the choices off forwards takes the earliest of equals."""
    rows = np.zeros((len(layers) + 1, cells + 1))
    candidate = np.empty(cells + 1)
    operations = 0
    for l in range(len(layers) - 1, -1, -1):
        row, after = rows[l], rows[l + 1]
        row.fill(np.inf)
        for value, cost in _cheapest_per_cell(layers[l].value, scaled[l], cells):
            reach = cells + 1 - cost
            np.add(after[:reach], value, out=candidate[:reach])
            np.minimum(row[cost:], candidate[:reach], out=row[cost:])
            operations += reach
    return rows, operations


def _cheapest_per_cell(value: Floats, cost: Ints, cells: int) -> list[tuple[float, int]]:
    """Where rounding gave several choices the same cost, only the best can matter; nor can one beyond the last cell."""
    best: dict[int, float] = {}
    for v, c in zip(value.tolist(), cost.tolist()):
        if c <= cells and v < best.get(c, math.inf):
            best[c] = v
    return [(v, c) for c, v in best.items()]


def _trace(layers: Sequence[_Layer], scaled: Sequence[Ints], rows: Floats, cell: int) -> list[int]:
    """The first choice per layer that attains the row's value (the same additions, so equality is exact)."""
    picks = []
    for l, layer in enumerate(layers):
        fits = scaled[l] <= cell
        reached = np.where(fits, layer.value + rows[l + 1, np.where(fits, cell - scaled[l], 0)], np.inf)
        pick = int(np.argmax(reached == rows[l, cell]))
        picks.append(pick)
        cell -= int(scaled[l][pick])
    return picks


def _dynamic_programme(layers: Sequence[_Layer], scaled: Sequence[Ints], cells: int) -> tuple[list[int], int]:
    rows, operations = _rows(layers, scaled, cells)
    return _trace(layers, scaled, rows, cells), operations


# --- closing the gap that rounding left ---------------------------------------------------------------------------------


def _spend_leftover(layers: Sequence[_Layer], picks: list[int], free: int) -> list[int]:
    """Take the single change that lowers the objective most while it still fits, until none does."""
    picks = list(picks)
    left = free - sum(int(layer.cost[p]) for layer, p in zip(layers, picks))
    while True:
        best, change = 0.0, None
        for l, layer in enumerate(layers):
            gain = np.where(layer.cost - layer.cost[picks[l]] <= left, layer.value[picks[l]] - layer.value, 0.0)
            pick = int(np.argmax(gain))
            if gain[pick] > best:
                best, change = float(gain[pick]), (l, pick)
        if change is None:
            return picks
        l, pick = change
        left -= int(layers[l].cost[pick] - layers[l].cost[picks[l]])
        picks[l] = pick


def _multiplier(layers: Sequence[_Layer], free: int) -> tuple[float, float]:
    """The price per unit of budget with the best Lagrangian bound found, and that bound.

    bound(price) = sum_l min_c (D + price * cost) - price * free is concave in the price; its slope is the cost of the
    minimising choices minus the budget, so bisection on the slope's sign finds the top. Any price >= 0 gives a valid bound.
    """

    def at(price: float) -> tuple[float, int]:
        bound, spent = -price * free, 0
        for layer in layers:
            priced = layer.value + price * layer.cost
            pick = int(np.argmin(priced))
            bound += float(priced[pick])
            spent += int(layer.cost[pick])
        return bound, spent

    best_price, (best, spent) = 0.0, at(0.0)
    if spent <= free:
        return best_price, best
    low, high = 0.0, 1e-30
    while at(high)[1] > free:
        low, high = high, high * 16
    for _ in range(100):
        middle = (low + high) / 2
        bound, spent = at(middle)
        if bound > best:
            best_price, best = middle, bound
        low, high = (middle, high) if spent > free else (low, middle)
    return best_price, best


def _close_gap(layers: Sequence[_Layer], picks: list[int], free: int) -> tuple[list[int], float]:
    """Look for anything better than `picks` among what the bound does not exclude. Returns picks and a proven lower bound."""
    price, bound = _multiplier(layers, free)
    best = sum(float(layer.value[p]) for layer, p in zip(layers, picks))
    reduced = [layer.value + price * layer.cost for layer in layers]
    reduced = [r - r.min() for r in reduced]
    slack = best - bound + 1e-12 * (abs(best) + price * free)  # rounding of the sums must not exclude the answer we have
    keep = [np.flatnonzero(r <= max(slack, r[p])) for r, p in zip(reduced, picks)]
    spare = np.cumsum([0] + [int(layer.cost[k].min()) for layer, k in zip(layers[::-1], keep[::-1])])[::-1]
    cost, over, history = np.zeros(1, np.int64), np.zeros(1), []
    for l, (layer, k) in enumerate(zip(layers, keep)):
        # Every partial sum of choices: its cost, and its excess over the bound so far (sum of reduced costs).
        cost2 = (cost[:, None] + layer.cost[k]).ravel()
        over2 = (over[:, None] + reduced[l][k]).ravel()
        alive = np.flatnonzero((over2 <= slack) & (cost2 + spare[l + 1] <= free))
        order = alive[np.lexsort((over2[alive] - price * cost2[alive], cost2[alive]))]
        value = over2[order] - price * cost2[order]  # true distortion up to a constant: what dominance is about
        first = np.ones(len(order), dtype=bool)
        first[1:] = value[1:] < np.minimum.accumulate(value)[:-1]
        order = order[first]
        if not len(order) or len(order) > MOST_STATES:
            return picks, bound if len(order) else best
        history.append((order // len(k), k[order % len(k)]))
        cost, over = cost2[order], over2[order]
    state = int(np.argmin(over - price * cost))
    better = []
    for parents, chosen in reversed(history):
        better.append(int(chosen[state]))
        state = int(parents[state])
    better.reverse()
    found = sum(float(layer.value[p]) for layer, p in zip(layers, better))
    return (better, found) if found < best else (picks, best)


# --- input and output ---------------------------------------------------------------------------------------------------


def _prepare(distortions: Sequence[npt.ArrayLike], costs: Sequence[npt.ArrayLike], lower: Sequence[int] | None) -> _Problem:
    if not len(distortions) or len(distortions) != len(costs):
        raise InputError(f"{len(distortions)} distortion curves for {len(costs)} cost curves; one of each per layer is needed")
    if lower is not None and len(lower) != len(costs):
        raise InputError(f"{len(lower)} lower bounds for {len(costs)} layers")
    layers, base = [], 0
    for l, (d, c) in enumerate(zip(distortions, costs)):
        value, cost = np.asarray(d, dtype=np.float64), np.asarray(c)
        if value.ndim != 1 or value.shape != cost.shape or not len(value):
            raise InputError(f"layer {l}: distortions {value.shape} and costs {cost.shape} must be equally long vectors")
        if np.isnan(value).any() or (value == -np.inf).any():
            raise InputError(f"layer {l}: a distortion is not a number")
        if (np.asarray(cost, dtype=np.float64) != np.rint(cost)).any() or (cost < 0).any():
            raise InputError(f"layer {l}: costs are whole numbers from 0 up (weights, bits, bytes; give times in nanoseconds)")
        cost = cost.astype(np.int64)
        allowed = np.isfinite(value)
        if lower is not None:
            allowed[: lower[l]] = False
        index = np.flatnonzero(allowed)
        if not len(index):
            raise InputError(f"layer {l}: no choice is allowed")
        cheapest = int(cost[index].min())
        index = _undominated(index, value, cost)
        layers.append(_Layer(index, value[index], cost[index] - cheapest))
        base += cheapest
    return _Problem(tuple(layers), base)


def _undominated(index: Ints, value: Floats, cost: Ints) -> Ints:
    """Drop a choice when another costs no more and is better, or is equally good and comes earlier."""
    order = index[np.lexsort((index, value[index], cost[index]))]
    kept, best, earliest = [], math.inf, -1
    for i in order.tolist():
        if value[i] < best:
            best, earliest = float(value[i]), i
            kept.append(i)
        elif value[i] == best and i < earliest:
            earliest = i
            kept.append(i)
    return np.array(sorted(kept), dtype=np.int64)


def _original(layers: Sequence[_Layer], picks: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(layer.index[p]) for layer, p in zip(layers, picks))


def _answer(problem: _Problem, picks: Sequence[int], budget: int, bound: float | None, operations: int) -> Solution:
    objective = math.fsum(float(layer.value[p]) for layer, p in zip(problem.layers, picks))
    cost = problem.base + sum(int(layer.cost[p]) for layer, p in zip(problem.layers, picks))
    assert cost <= budget, "a solver may never overspend"
    bound = objective if bound is None else min(bound, objective)
    return Solution(_original(problem.layers, picks), objective, cost, int(budget), bound, operations)
