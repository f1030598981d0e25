"""One phase's turn within a step: gradients over the micro-batches, scaled once by the global count, then one update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperworks.training.config import TrainConfig
from paperworks.training.ema import local
from paperworks.training.guard import Guard
from paperworks.training.metrics import Running
from paperworks.training.objective import Batch, Context, Losses, Objective, Phase
from paperworks.training.optimizers import build, optimizer_config, set_rates
from paperworks.training.precision import LossScale, Precision, autocast
from paperworks.training.processes import Processes
from paperworks.training.schedules import rate
from paperworks.training.two_pass import TwoPass, two_pass


@dataclass
class Gear:
    """What all phases of a run work with."""

    objective: Objective
    module: nn.Module
    """the objective as the processes wrapped it; calling it computes a loss"""
    config: TrainConfig
    processes: Processes
    precision: Precision
    scale: LossScale
    guard: Guard
    running: Running


class Turn:
    """A phase with its parameters (`named`) and its optimiser; `others` are trained by other phases only."""

    def __init__(self, phase: Phase, named: dict[str, nn.Parameter], others: list[nn.Parameter], gear: Gear):
        self.phase, self.named, self.others, self.gear = phase, named, others, gear
        self.config = optimizer_config(gear.config, phase)
        self.optimizer = build(gear.objective, named, self.config, sharded=gear.processes.sharded)
        # torch's fused optimisers scale the gradient and hold back an update inside their kernel, on the device
        self.fused = bool(self.optimizer.defaults.get("fused"))
        self.prefix = f"{phase.name}/" if len(gear.objective.phases()) > 1 else ""

    def take(self, micros: Sequence[Batch], ctx: Context) -> None:
        """Gradients and, when all is finite, the update."""
        scale = self.gear.scale
        for parameter in self.others:
            parameter.requires_grad_(False)
        for parameter in self.named.values():
            parameter.requires_grad_(True)

        losses = self._gradients(micros, ctx)
        gradients = [local(p.grad) for p in self.named.values() if p.grad is not None]
        factor, norm, fine = self._factor(gradients, losses)
        counts_as_fine = fine
        if scale.active:  # a too large scale of the loss is not the method's fault
            counts_as_fine = fine | (torch.isfinite(losses.total) & scale.explains_overflow())
        self.gear.guard.record(counts_as_fine, self.phase.name, ctx.step)
        self.gear.running.add(self.prefix + "grad_norm", norm, 1.0)
        set_rates(self.optimizer, self.config, ctx.step, ctx.max_steps)
        if gradients:
            self._update(gradients, factor, fine)
        scale.update(fine)
        for parameter in self.named.values():
            parameter.grad = None

    def learning_rate(self, step: int, total: int) -> float:
        """Before the factors of parameter groups."""
        return self.config.lr * rate(step, total, self.config.schedule)

    def _gradients(self, micros: Sequence[Batch], ctx: Context) -> Losses:
        """The gradient of the SUM of the items' losses, accumulated in `.grad` and averaged over processes."""
        gear, phase = self.gear, self.phase.name
        parts: list[Losses] = []
        if isinstance(gear.objective, TwoPass) and len(micros) * ctx.world > 1:
            parts.append(two_pass(gear, micros, phase, self.named, ctx))
        else:
            for ctx.micro, micro in enumerate(micros):
                with gear.processes.accumulating(gear.module, ctx.micro + 1 < len(micros)):
                    with autocast(gear.precision, ctx.device):
                        losses = Losses(*gear.module(micro, phase, ctx))
                    if losses.total.requires_grad:  # a loss may touch nothing that this phase trains
                        (losses.total * gear.scale.scale if gear.scale.active else losses.total).backward()
                parts.append(Losses(losses.total.detach(), losses.count, losses.logs))
        ctx.micro = 0
        for part in parts:
            logs = part.logs if "loss" in part.logs else {"loss": part.total / part.count, **part.logs}
            for name, value in logs.items():
                gear.running.add(self.prefix + name, value.detach(), part.count)
        return Losses(sum(part.total for part in parts), sum(part.count for part in parts))  # type: ignore[arg-type]

    @torch.no_grad()
    def _factor(self, gradients: list[Tensor], losses: Losses) -> tuple[Tensor, Tensor, Tensor]:
        """What the accumulated gradient is multiplied with, once, to be the gradient of the mean over all processes' items
        (clipped to the largest norm), the norm of that gradient, and whether it and the loss are finite everywhere."""
        gear = self.gear
        device, world, sharded = gear.processes.device, gear.processes.world, gear.processes.sharded
        given = losses.count
        count = given.double() if isinstance(given, Tensor) else torch.full((), given, dtype=torch.float64, device=device)
        loss_is_fine = torch.isfinite(losses.total)
        squares = torch.stack(torch._foreach_norm(gradients)).square().sum() if gradients else torch.zeros((), device=device)
        if world > 1:
            local_squares = squares.double() if sharded else torch.zeros_like(count)
            count, bad, all_squares = gear.processes.summed(torch.stack([count, (~loss_is_fine).double(), local_squares]))
            squares, loss_is_fine = all_squares if sharded else squares, bad == 0
        # DDP and fully_shard give the mean over processes; a step without any item has no gradient
        factor = torch.where(count > 0, world / (count * gear.scale.scale), 0.0).float()
        norm = squares.sqrt().float() * factor
        fine = torch.isfinite(norm) & loss_is_fine
        if gear.config.clip is not None:
            factor = factor * (gear.config.clip / (norm + 1e-6)).clamp(max=1.0)
        return factor, norm, fine

    @torch.no_grad()
    def _update(self, gradients: list[Tensor], factor: Tensor, fine: Tensor) -> None:
        if self.fused:
            self.optimizer.grad_scale = 1 / factor  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(fine):
            torch._foreach_mul_(gradients, factor)
            self.optimizer.step()
