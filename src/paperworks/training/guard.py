"""What is not finite never reaches the weights: updates are held back, buffers put back, and a hopeless run is stopped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.training.config import TrainConfig
from paperworks.training.objective import Objective


class DivergedError(InputError):
    """Training cannot go on: losses or gradients are not finite any more."""


class Guard:
    """Counts on the device, so that nothing waits for it; read back on a CPU, where that is free, and when logging."""

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device):
        self.mode, self.limit = config.non_finite, config.max_skipped
        self.eager = device.type == "cpu" or self.mode == "stop"
        self.skipped = torch.zeros((), device=device)
        """updates held back so far"""
        self.in_a_row = torch.zeros((), device=device)
        """of which the last ones, without an update in between"""
        self._step_is_fine = torch.ones((), dtype=torch.bool, device=device)
        self._where = _changing_buffers(objective)
        self._live = [module.get_buffer(name) for module, name, _ in self._where]
        self._kept = [tensor.clone() for tensor in self._live]

    def begin_step(self) -> None:
        """Remember the buffers: running statistics see a bad batch before its loss is known."""
        self._step_is_fine.fill_(True)
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def record(self, finite: Tensor, phase: str, step: int) -> None:
        """Whether a phase's loss and gradient were finite (a tensor, perhaps still being computed)."""
        bad = (~finite).float()
        self.skipped += bad
        self.in_a_row = (self.in_a_row + bad) * bad
        self._step_is_fine &= finite
        if self.eager:
            self.check(phase, step)

    def end_step(self) -> None:
        """Put the buffers back when something in the step was not finite."""
        if not self._live:
            return
        if self.eager:
            if not bool(self._step_is_fine):
                torch._foreach_copy_(self._live, self._kept)
        else:
            for live, kept in zip(self._live, self._kept):
                torch.where(self._step_is_fine, live, kept, out=live)

    def check(self, phase: str, step: int) -> None:
        """Raises DivergedError when there is no point in going on. Reads from the device."""
        row = int(self.in_a_row)
        if row and (self.mode == "stop" or row > self.limit):
            raise DivergedError(
                f"the loss or gradient of phase {phase!r} was not finite at step {step}"
                + (f" nor in the {row - 1} updates before" if row > 1 else "")
                + "; the weights were kept. Lower the learning rate, set clip, or use precision '32'"
            )

    def check_buffers(self) -> None:
        """Raises when an objective has replaced a buffer: the average and the guard would watch a dead tensor."""
        for (module, name, full), live in zip(self._where, self._live):
            if module.get_buffer(name) is not live:
                raise RuntimeError(f"buffer {full} was replaced by a new tensor; write into it with copy_()")

    def state_dict(self) -> dict[str, float]:
        return {"skipped": float(self.skipped), "in_a_row": float(self.in_a_row)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.skipped.fill_(state["skipped"])
        self.in_a_row.fill_(state["in_a_row"])


def _changing_buffers(objective: Objective) -> list[tuple[nn.Module, str, str]]:
    """(owner, name, full name) of the persistent float buffers."""
    return [
        (module, name, f"{prefix}.{name}" if prefix else name)
        for prefix, module in objective.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and name not in module._non_persistent_buffers_set
    ]
