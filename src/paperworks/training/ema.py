"""Exponential moving average of the weights, kept beside them and swapped in for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from paperworks.training.objective import Objective


def warmed_up_decay(decay: float, updates: int) -> float:
    """The decay after so many updates: early averages forget faster, (1 + n) / (10 + n), up to `decay`."""
    return min(decay, (1 + updates) / (10 + updates))


class Average:
    """Averages trained parameters and persistent float buffers; starts as a copy. Parameters that nothing trains are
    shared, not averaged, and buffers that cannot be (integers, masks holding -inf) are copied as they are."""

    def __init__(self, objective: Objective, trained: set[str], decay: float, warmup: bool):
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        parameters = dict(objective.named_parameters())
        self.names: list[str] = []
        self.live: list[Tensor] = []
        seen: set[int] = set()
        for name, tensor in objective.state_dict(keep_vars=True).items():
            shared = name in parameters and name not in trained
            if not isinstance(tensor, Tensor) or shared or id(tensor) in seen:
                continue  # tied weights stand in the state dict once per name
            seen.add(id(tensor))
            self.names.append(name)
            self.live.append(local(tensor.detach()))
        self.kept = [tensor.clone() for tensor in self.live]
        smooth = [tensor.is_floating_point() and bool(torch.isfinite(tensor).all()) for tensor in self.live]
        self._smooth = _pairs(self.kept, self.live, smooth)
        self._exact = _pairs(self.kept, self.live, [not each for each in smooth])

    @torch.no_grad()
    def update(self) -> None:
        """After a step: `average += (1 - decay) * (weights - average)`."""
        decay = warmed_up_decay(self.decay, self.updates) if self.warmup else self.decay
        self.updates += 1
        torch._foreach_lerp_(*self._smooth, 1 - decay)
        if self._exact[0]:
            torch._foreach_copy_(*self._exact)

    @torch.no_grad()
    def capture(self) -> None:
        """Take the present weights as the average."""
        for kept, live in zip(self.kept, self.live):
            kept.copy_(live)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the objective holds the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for kept, live in zip(self.kept, self.live):
            aside = live.clone()
            live.copy_(kept)
            kept.copy_(aside)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor (sharing its memory), or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _pairs(first: list[Tensor], second: list[Tensor], chosen: list[bool]) -> tuple[list[Tensor], list[Tensor]]:
    return [t for t, c in zip(first, chosen) if c], [t for t, c in zip(second, chosen) if c]
