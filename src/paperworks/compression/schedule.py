"""In which steps a network is taken to its sparsity."""

from __future__ import annotations

from paperworks.errors import InputError


def iterative_targets(final: float, rate: float = 0.2, start: float = 0.0) -> list[float]:
    """1 - (1 - rate)^t of what is left at `start`, t = 1, 2, ..., the last step exactly `final`.

    RD-prune removes a fifth of the remaining weights per iteration; `rate=1` is one shot.
    """
    if not 0 < rate <= 1:
        raise InputError(f"a pruning rate of {rate}; give the share of the remaining weights to remove per iteration")
    if not 0 <= start < final < 1:
        raise InputError(f"the network is at a sparsity of {start:.4g}, asked for {final:.4g}; ask for more, and less than 1")
    targets: list[float] = []
    left = 1 - start
    while final - (1 - left) > 1e-9:
        left *= 1 - rate
        targets.append(min(final, 1 - left))
    return targets
