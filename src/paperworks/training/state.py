"""The state of a run: collected into a checkpoint, and put back so that nothing tells that the run was ever stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.training import checkpoint
from paperworks.training.checkpoint import Checkpoint
from paperworks.training.ema import Average
from paperworks.training.objective import Objective
from paperworks.training.optimizers import load_optimizer_state, optimizer_state
from paperworks.training.processes import Processes, assign, whole
from paperworks.training.turn import Gear, Turn


class RunState:
    """Everything that changes during training, and the numbers that sum it up."""

    def __init__(self, turns: list[Turn], average: Average | None, loader: Any, gear: Gear):
        self.turns, self.average, self.loader, self.gear = turns, average, loader, gear
        self.objective: Objective = gear.objective
        self.step = 0
        self.seconds = 0.0
        self.best: tuple[float, int] | None = None

    def save(self, folder: Path, keep: int) -> Checkpoint:
        """Write a checkpoint and delete superseded ones. Every process calls it; the first one writes."""
        processes = self.gear.processes
        weights = gathered(self.objective, processes)
        averaged = None
        if self.average:
            with self.average.applied():
                averaged = gathered(self.objective, processes)
        optimizers = {turn.phase.name: _whole_state(turn, processes) for turn in self.turns}
        if processes.first:
            state = {
                "optimizers": optimizers,
                "loader": self.loader.state_dict(),
                "objective": self.objective.extra_state(),
                "module_extra": {k: v for k, v in self.objective.state_dict().items() if not isinstance(v, Tensor)},
                "guard": self.gear.guard.state_dict(),
                "running": self.gear.running.state_dict(),
                "scale": self.gear.scale.state_dict(),
                "ema_updates": self.average.updates if self.average else 0,
            }
            summary = {
                "seconds": self.seconds,
                "skipped": int(self.gear.guard.skipped),
                "best": list(self.best) if self.best else None,
            }
            checkpoint.write(folder, self.step, weights, averaged, state, summary)
            checkpoint.prune(folder, keep, self.best[1] if self.best else None)
        processes.wait()
        return Checkpoint(checkpoint.path_of(folder, self.step), self.step)

    def load(self, saved: Checkpoint) -> None:
        """Back from `save`, on every process."""
        state, summary = saved.state(), saved.summary()
        extra = state["module_extra"]
        averaged = saved.averaged()
        if self.average and averaged is not None:
            load_weights(self.objective, averaged, extra)
            self.average.capture()
            self.average.updates = state["ema_updates"]
        load_weights(self.objective, saved.weights(), extra)
        for turn in self.turns:
            load_optimizer_state(turn.optimizer, _placed(state["optimizers"][turn.phase.name], turn.named))
        self.loader.load_state_dict(state["loader"])
        self.objective.load_extra_state(state["objective"])
        self.gear.guard.load_state_dict(state["guard"])
        if self.gear.processes.first:
            self.gear.running.load_state_dict(state["running"], self.gear.processes.device)
        self.gear.scale.load_state_dict(state["scale"])
        self.step, self.seconds = saved.step, summary["seconds"]
        self.best = tuple(summary["best"]) if summary["best"] else None

    def note_best(self, key: str | None, numbers: Mapping[str, float]) -> bool:
        """Whether this evaluation is the best so far by `key` ("-name": less is better)."""
        if key is None:
            return False
        name = key.removeprefix("-")
        if name not in numbers:
            raise InputError(f"best={key!r}: evaluate returns {', '.join(numbers) or 'nothing'}")
        value = float(numbers[name])
        better = self.best is None or (value < self.best[0] if key.startswith("-") else value > self.best[0])
        if better:
            self.best = (value, self.step)
        return better


# --- weights in and out ---------------------------------------------------------------------------------------------------


def gathered(objective: nn.Module, processes: Processes) -> dict[str, Tensor]:
    """The whole state dict on the first process's CPU; empty on the others."""
    found: dict[str, Tensor] = {}
    if not (processes.first or processes.sharded):
        return found
    for name, value in objective.state_dict().items():
        if isinstance(value, Tensor):
            tensor = whole(value)
            if processes.first:
                found[name] = tensor
    return found


@torch.no_grad()
def load_weights(objective: nn.Module, weights: Mapping[str, Tensor], extra: Mapping[str, Any] | None = None) -> None:
    """Write saved weights into an objective (sharded or not). Raises InputError naming the first that does not fit."""
    own = objective.state_dict(keep_vars=True)
    tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    for name in [*tensors, *weights]:
        if name not in weights or name not in tensors:
            side = "in the checkpoint but not in the model" if name in weights else "in the model but not in the checkpoint"
            raise InputError(f"the checkpoint is of another model: {name} is {side}")
        if tensors[name].shape != weights[name].shape:
            raise InputError(
                f"the checkpoint is of another model: {name} has shape {list(weights[name].shape)} there "
                f"and {list(tensors[name].shape)} here"
            )
    for name, target in tensors.items():
        assign(target, weights[name])
    if extra:
        objective.load_state_dict(dict(extra), strict=False)


def _whole_state(turn: Turn, processes: Processes) -> dict[str, Any]:
    saved = optimizer_state(turn.optimizer)
    if processes.sharded:
        saved["state"] = {
            name: {key: whole(value) if isinstance(value, Tensor) else value for key, value in state.items()}
            for name, state in saved["state"].items()
        }
    return saved


def _placed(saved: dict[str, Any], named: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Optimiser state cut up like the parameters it belongs to."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    def place(value: Any, parameter: nn.Parameter) -> Any:
        if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    state = {
        name: {key: place(value, named[name]) if name in named else value for key, value in each.items()}
        for name, each in saved["state"].items()
    }
    return {**saved, "state": state}
