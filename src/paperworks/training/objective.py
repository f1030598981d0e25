"""What a method gives to the training loop: an Objective (what is learned), its phases, and a loss as sum and count.

A method never owns a loop. It says which modules it trains, what their loss on a batch is, and what happens after a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.training.seeds import mixed_seed

Batch = dict[str, Any]
"""A collated batch: tensors by name, first dimension the samples. `image` is float NCHW in [0, 1], `label` is int64."""


@dataclass
class Losses:
    """The loss of one micro-batch, as a SUM over items and their count, so that accumulation, masked tokens and
    unequal ranks are exact: the loop divides the accumulated gradient once by the count over all ranks."""

    total: Tensor
    """scalar with gradient: sum over the items of this micro-batch (use `Losses.mean` for a plain mean loss)"""
    count: Tensor | float
    """number of items summed in `total` (samples, tokens, pixels)"""
    logs: dict[str, Tensor] = field(default_factory=dict)
    """detached scalars to show, each already a mean over this micro-batch; the loop averages them by `count`"""

    @classmethod
    def mean(cls, loss: Tensor, items: int, **logs: Tensor) -> Losses:
        """From a loss that is already a mean over `items`."""
        return cls(loss * items, items, {"loss": loss.detach()} | {name: value.detach() for name, value in logs.items()})


@dataclass(frozen=True)
class Phase:
    """One optimiser's turn within a step (a generator and a discriminator are two)."""

    name: str = "main"
    modules: Sequence[str] = ("",)
    """prefixes of the parameter names this phase trains ("" means all); the rest is frozen during the phase"""
    optimizer: str = "main"
    """key into `TrainConfig.optimizers`"""
    every: int = 1
    """take part only in steps divisible by this"""
    start: int = 0
    """first step of this phase (a discriminator's warm-up)"""

    def has_turn(self, step: int) -> bool:
        return step >= self.start and step % self.every == 0


@dataclass
class Context:
    """What an objective may know about the run while it computes a loss."""

    step: int
    max_steps: int
    seed: int
    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    values: Mapping[str, float] = field(default_factory=dict)
    """current values of `Objective.schedules()`"""
    micro: int = 0
    """index of the micro-batch within the step"""

    def rng(self, name: str) -> torch.Generator:
        """A generator for one purpose in this micro-batch, a pure function of (seed, name, step, micro-batch, rank):
        resuming or evaluating in between never shifts the draws."""
        seed = mixed_seed(self.seed, name, self.step, self.micro, self.rank)
        return torch.Generator(device=self.device).manual_seed(seed)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place: statistics of a whole batch that `after_step` keeps (code books, centres)."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor


Schedule = Callable[[int, int], float]
"""A scalar over training: (step, max_steps) -> value."""


class Objective(nn.Module):
    """Owns every module that is trained or frozen for one method. Subclasses assign modules in `__init__` and write `loss`."""

    needs: Mapping[str, str] = {"image": "float NCHW in [0, 1]"}
    """batch keys and what they must be; checked against the first batch before step 0. The words "float", "int64", "uint8",
    "bool", "NCHW" and a shape such as "[B, L]" (number of dimensions) are checked too; the rest is for the reader"""
    needs_full_batch: bool = False
    """the loss compares samples of the whole batch: derive from `two_pass.TwoPass`, which makes accumulation exact"""

    def phases(self) -> Sequence[Phase]:
        return (Phase(),)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        """The loss of a micro-batch in a phase. Pure: no optimiser, no device calls, no host synchronisation. Parameters
        the loss does not reach are left as they are. Random draws come from `ctx.rng(...)`."""
        raise NotImplementedError

    def after_step(self, ctx: Context) -> None:
        """After all phases of a step (EMA teachers, code-book upkeep, clamps, masks); also after a skipped update.
        What it changes must live in parameters, persistent buffers or `extra_state`, or a resumed run forgets it."""

    def schedules(self) -> dict[str, Schedule]:
        """Scalars that change over training; read back as `ctx.values[name]`."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """State outside `state_dict()` that a resumed run needs (queues, counters): tensors, numbers, texts and
        lists, tuples or dicts of them, so that it loads without running any code from the file."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} saved no extra state but was given {sorted(state)}")

    def compiled_modules(self) -> Sequence[nn.Module]:
        """The modules whose forward `TrainConfig.compile` compiles: by default every child that is called as a module."""
        return list(self.children())

    def forward(self, batch: Batch, phase: str, ctx: Context) -> tuple[Tensor, Tensor | float, dict[str, Tensor]]:
        """`loss` as a plain tuple: what DDP and fully_shard hook into."""
        losses = self.loss(batch, phase, ctx)
        if not isinstance(losses, Losses):
            raise TypeError(f"{type(self).__name__}.loss must return Losses, not {type(losses).__name__}")
        return losses.total, losses.count, losses.logs
