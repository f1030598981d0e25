"""The processes of a run, through Lightning Fabric: one without any launcher, several under torchrun, with gradients
averaged (DDP) or parameters, gradients and optimiser state sharded (fully_shard)."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paperworks.training.objective import Objective

T = TypeVar("T")


class Processes:
    """Who takes part, and what they do together."""

    def __init__(self, parallel: str):
        # Fabric is imported late: it takes a second, and only training needs it.
        from lightning.fabric import Fabric
        from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
        from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy

        launched = TorchElasticEnvironment.detect()
        self.world = int(os.environ["WORLD_SIZE"]) if launched else 1
        per_node = int(os.environ["LOCAL_WORLD_SIZE"]) if launched else 1
        self.sharded = parallel == "shard" and self.world > 1
        strategy: Any = "auto"
        if self.sharded:
            strategy = ModelParallelStrategy(shard, data_parallel_size=self.world, tensor_parallel_size=1)
        elif self.world > 1:
            # A phase freezes what it does not train and a loss may leave out parts of a network (supernets do so at
            # random), so DDP has to look which gradients will not come.
            strategy = DDPStrategy(find_unused_parameters=True)
            warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified.*")
        self.fabric = Fabric(
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=per_node,
            num_nodes=self.world // per_node,
            strategy=strategy,
            plugins=[TorchElasticEnvironment() if launched else LightningEnvironment()],
        )
        self.fabric.launch()
        self.rank: int = self.fabric.global_rank
        self.device: torch.device = self.fabric.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, objective: Objective) -> nn.Module:
        """The objective on this process's device, its forward and backward connected to the other processes."""
        wrapped = self.fabric.setup_module(objective)
        return wrapped if self.world > 1 else objective  # Fabric's own wrapper has nothing to do for one process

    @contextmanager
    def usable(self, objective: nn.Module) -> Iterator[None]:
        """Within the block a sharded objective's parts can be called without going through the objective itself."""
        if not self.sharded:
            yield
            return
        from torch.distributed.fsdp import FSDPModule

        assert isinstance(objective, FSDPModule)
        objective.unshard()  # what lies outside the blocks; blocks gather their own when called
        try:
            yield
        finally:
            objective.reshard()

    def accumulating(self, module: nn.Module, more_to_come: bool) -> AbstractContextManager[Any]:
        """Without exchange of gradients while more micro-batches follow."""
        return self.fabric.no_backward_sync(module) if self.world > 1 and more_to_come else nullcontext()

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on all of them."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def agree(self, mine: bool, look: bool = True) -> bool:
        """Whether it is true for any process; False without asking when `look` is False (the same on all of them)."""
        if self.world == 1:
            return mine
        return look and bool(self.summed(torch.tensor(float(mine), device=self.device)))

    def share(self, value: T) -> T:
        """The first process's value, on all of them."""
        return self.fabric.broadcast(value) if self.world > 1 else value

    def means(self, sums: dict[str, tuple[float, float]]) -> dict[str, float]:
        """Means from (sum, weight) pairs over all processes; names without any weight become NaN."""
        everyone: list[Any] = [sums]
        if self.world > 1:
            everyone = [None] * self.world
            torch.distributed.all_gather_object(everyone, sums)
        total = {name: 0.0 for part in everyone for name in part}
        weight = dict(total)
        for part in everyone:
            for name, (value, count) in part.items():
                total[name], weight[name] = total[name] + value, weight[name] + count
        return {name: total[name] / weight[name] if weight[name] else math.nan for name in total}

    def wait(self) -> None:
        if self.world > 1:
            self.fabric.barrier()


def first_to_be_started() -> bool:
    """Whether this is the first process, before any is set up."""
    return os.environ.get("RANK", "0") == "0"


def shard(objective: nn.Module, mesh: Any) -> nn.Module:
    """fully_shard on every block of every outermost list of blocks, then on the whole: one block's parameters are gathered
    at a time, and the network's own file knows nothing of it."""
    from torch.distributed.fsdp import fully_shard

    data = mesh["data_parallel"]
    for block in _blocks(objective):
        fully_shard(block, mesh=data)
    fully_shard(objective, mesh=data)
    return objective


def _blocks(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        parts = list(child.children())
        alike = isinstance(child, nn.Sequential) and len(parts) > 1 and len({type(part) for part in parts}) == 1
        if isinstance(child, nn.ModuleList) or alike:
            found += [part for part in parts if next(part.parameters(), None) is not None]
        else:
            found += _blocks(child)
    return found


# --- whole tensors of sharded modules -------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor with all its parts (every process must take part when it is sharded), on the CPU."""
    tensor = tensor.detach()
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.to("cpu", copy=True, memory_format=torch.contiguous_format)


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Write a whole tensor into a target that may be sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements)
    target.copy_(value)
