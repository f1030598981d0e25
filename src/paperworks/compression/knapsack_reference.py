"""Two other ways to solve the same knapsack, to check and to time the dynamic programme against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paperworks.errors import InputError


def brute_force(
    distortions: Sequence[npt.ArrayLike],
    costs: Sequence[npt.ArrayLike],
    budget: int,
    *,
    lower: Sequence[int] | None = None,
    limit: int = 5_000_000,
) -> tuple[tuple[int, ...], float]:
    """Every combination, in layer order; the first of equally good ones is returned with its objective."""
    start = lower or [0] * len(costs)
    values = [np.asarray(d, dtype=np.float64).tolist() for d in distortions]
    prices = [np.asarray(c).tolist() for c in costs]
    combinations = math.prod(len(v) - s for v, s in zip(values, start))
    if combinations > limit:
        raise InputError(f"{combinations:,} combinations are too many to enumerate (at most {limit:,})")
    best, chosen = math.inf, None
    for choice in itertools.product(*(range(s, len(v)) for v, s in zip(values, start))):
        if sum(price[c] for price, c in zip(prices, choice)) <= budget:
            objective = sum(value[c] for value, c in zip(values, choice))
            if objective < best:
                best, chosen = objective, choice
    if chosen is None:
        raise InputError(f"a budget of {budget:,} cannot be met")
    return chosen, best


def integer_programme(
    distortions: Sequence[npt.ArrayLike],
    costs: Sequence[npt.ArrayLike],
    budget: int,
    *,
    relative_gap: float = 0.0,
    seconds: float | None = None,
) -> tuple[tuple[int, ...], float]:
    """The same problem as 0/1 variables for scipy's HiGHS: one per layer and choice, one equality per layer, one budget row."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    lengths = [len(np.asarray(d)) for d in distortions]
    value = np.concatenate([np.asarray(d, dtype=np.float64) for d in distortions])
    cost = np.concatenate([np.asarray(c, dtype=np.float64) for c in costs])
    layer = np.repeat(np.arange(len(lengths)), lengths)
    one_each = csr_array((np.ones(len(value)), (layer, np.arange(len(value)))))
    scale = value.max() or 1.0  # HiGHS's tolerances are absolute
    options = {"mip_rel_gap": relative_gap} | ({"time_limit": seconds} if seconds else {})
    found = milp(
        value / scale,
        integrality=np.ones(len(value)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost[None], -np.inf, budget)],
        options=options,
    )
    if found.x is None:
        raise InputError(f"no integer solution: {found.message}")
    picks = np.split(found.x, np.cumsum(lengths)[:-1])
    choices = tuple(int(np.argmax(p)) for p in picks)
    return choices, math.fsum(float(np.asarray(d)[c]) for d, c in zip(distortions, choices))
