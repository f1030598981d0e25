"""Runs in processes of its own: `python -m tests.training.worker FOLDER CASE[@STEP] ...`, alone or below torchrun.
With @STEP the run is broken off in that step and what it left is copied to half-CASE."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from paperworks.training import Batch, Context, Fitted, Objective, OptimizerConfig, TrainConfig, fit
from tests.training.tiny import ADVERSARIAL, SGD, Adversarial, Contrast, Masked, Pictures, config


class Sharded(Masked):
    """Makes sure that it is sharded when there are several processes."""

    def after_step(self, ctx: Context) -> None:
        from torch.distributed.tensor import DTensor

        assert all(isinstance(parameter, DTensor) == (ctx.world > 1) for parameter in self.parameters())


def adversarial() -> Objective:
    return Adversarial(noise=False)


CASES: dict[str, tuple[Callable[[], Objective], TrainConfig]] = {
    "ddp": (Masked, config(5, clip=0.5, ema=0.9, optimizers={"main": OptimizerConfig("adamw", weight_decay=0.1)})),
    "ddp-micro": (Masked, config(5, micro_batch=2, optimizers={"main": SGD})),
    "ddp-phases": (adversarial, config(8, micro_batch=3, ema=0.9, optimizers=ADVERSARIAL, checkpoint_every=3)),
    "ddp-two-pass": (Contrast, config(4, micro_batch=3, optimizers={"main": SGD})),
    "shard": (Sharded, config(5, micro_batch=3, clip=0.5, ema=0.9, parallel="shard", checkpoint_every=2)),
    "shard-phases": (adversarial, config(8, ema=0.9, optimizers=ADVERSARIAL, parallel="shard", checkpoint_every=4)),
}


class BrokenOff(Exception):
    pass


def breaks_off(at: int | None) -> Callable[[Batch, torch.Generator], Batch]:
    """A batch transform that changes nothing and raises BrokenOff when called for the `at`-th time."""
    steps = 0

    def count(batch: Batch, generator: torch.Generator) -> Batch:
        nonlocal steps
        steps += 1
        if steps == at:
            raise BrokenOff
        return batch

    return count


def run(folder: Path, case: str, stop: int | None = None) -> Fitted:
    make, settings = CASES[case]
    return fit(make(), Pictures(), settings, folder, batch_transform=breaks_off(stop), evaluate=evaluate, label="")


def evaluate(objective: Objective, ctx: Context) -> dict[str, float]:
    """Calls `loss` itself, not through the wrapped module."""
    images = Pictures(24).images.float() / 255
    ctx.values = {"noise": 0.0}
    losses = objective.loss({"image": images}, objective.phases()[0].name, ctx)
    return {"loss": float(losses.total / losses.count)}


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def main() -> None:
    root = Path(sys.argv[1])
    for argument in sys.argv[2:]:
        case, _, stop = argument.partition("@")
        try:
            fitted = run(root / case, case, int(stop) if stop else None)
        except BrokenOff:
            if rank() == 0:
                shutil.copytree(root / case, root / f"half-{case}")
            if dist.is_initialized():
                dist.barrier()
            continue
        for name, objective in (("raw", fitted.objective), ("averaged", fitted.averaged)):
            tensors: dict[str, Any] = {key: value.clone() for key, value in objective.state_dict().items()}
            assert all(type(value) is Tensor for value in tensors.values())
            save_file(tensors, root / f"{case}-{name}-{rank()}.safetensors")


if __name__ == "__main__":
    main()
