"""Losses that compare samples of the whole batch (contrastive, dual-tower), with the memory of one micro-batch and exact
gradients: for the towers and for the parameters the loss uses directly, such as a temperature.

Pass 1 encodes every micro-batch without a graph. The loss is computed once on all features, of all processes, and gives
the gradient with respect to this process's features and to the loss's own parameters. Pass 2 encodes again, with the same
random draws, and pulls that gradient back through each micro-batch (gradient caching: Gao et al. 2021; BASIC, sec. 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paperworks.training.objective import Batch, Context, Losses, Objective
from paperworks.training.precision import Precision, autocast
from paperworks.training.seeds import mixed_seed, seed_global

if TYPE_CHECKING:
    from paperworks.training.turn import Gear

Features = dict[str, Tensor]


class TwoPass(Objective):
    """An objective split into `encode`, which looks at samples one by one, and `pair_loss`, which compares them all."""

    needs_full_batch = True

    def encode(self, batch: Batch, phase: str, ctx: Context) -> Features:
        """Features by name, first dimension the samples of `batch`."""
        raise NotImplementedError

    def pair_loss(self, mine: Features, everyone: Features, first: int, phase: str, ctx: Context) -> Losses:
        """The loss of this process's samples `mine` against `everyone` (all processes' samples, where mine begin at row
        `first`). A local loss only: a similarity matrix is [mine, everyone], never [everyone, everyone]."""
        raise NotImplementedError

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        mine = self.encode(batch, phase, ctx)
        return self.pair_loss(mine, mine, 0, phase, ctx)

    def forward(self, batch: Batch, phase: str, ctx: Context, pull: Any = None) -> Any:
        """What the distributed wrappers hook into: the loss; with `pull="encode"` the features; with `pull=(gradients of
        the features, gradients of parameters)` a scalar whose gradient is theirs."""
        if pull is None:
            return super().forward(batch, phase, ctx)
        features = self.encode(batch, phase, ctx)
        if pull == "encode":
            return features
        wanted, direct = pull
        pulled = sum((features[name].float() * gradient.float()).sum() for name, gradient in wanted.items())
        return pulled + sum((self.get_parameter(name) * gradient).sum() for name, gradient in direct.items())


def two_pass(gear: Gear, micros: Sequence[Batch], phase: str, parameters: Mapping[str, nn.Parameter], ctx: Context) -> Losses:
    """Adds the gradient of the (scaled) total to the parameters' `.grad` and returns the detached losses."""
    module, objective, precision = gear.module, gear.objective, gear.precision
    assert isinstance(objective, TwoPass)
    features = _encode_all(module, objective, micros, phase, ctx, precision)
    mine = {name: feature.requires_grad_() for name, feature in features.items()}
    ctx.micro = 0
    with autocast(precision, ctx.device):
        everyone = {name: _gathered(feature, ctx.world) for name, feature in mine.items()}
        first = ctx.rank * len(next(iter(mine.values())))
        losses = objective.pair_loss(mine, everyone, first, phase, ctx)

    # autograd.grad rather than backward(): the parameters' hooks must fire once, in pass 2.
    gradients = torch.autograd.grad(losses.total * gear.scale.scale, [*mine.values(), *parameters.values()], allow_unused=True)
    of_features = {name: g for name, g in zip(mine, gradients) if g is not None}
    direct = {name: g for name, g in zip(parameters, gradients[len(mine) :]) if g is not None}

    size = len(next(iter(mine.values()))) // len(micros)
    for index, micro in enumerate(micros):
        last = index + 1 == len(micros)
        _at(ctx, index)
        piece = slice(index * size, (index + 1) * size)
        wanted = {name: g[piece] for name, g in of_features.items()}
        with gear.processes.accumulating(module, not last):
            with autocast(precision, ctx.device):
                pulled = module(micro, phase, ctx, (wanted, direct if last else {}))
            if isinstance(pulled, Tensor) and pulled.requires_grad:
                pulled.backward()
    return Losses(losses.total.detach(), losses.count, losses.logs)


@torch.no_grad()
def _encode_all(
    module: nn.Module, objective: TwoPass, micros: Sequence[Batch], phase: str, ctx: Context, precision: Precision
) -> Features:
    """Pass 1. Buffers (running statistics) are put back: pass 2 is the one that counts."""
    before = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    pieces = []
    for index, micro in enumerate(micros):
        _at(ctx, index)
        with autocast(precision, ctx.device):
            pieces.append(module(micro, phase, ctx, "encode"))
    for buffer, value in before:
        buffer.copy_(value)
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _at(ctx: Context, index: int) -> None:
    """Both passes of a micro-batch draw the same random numbers, from `ctx.rng` and from torch's global generators."""
    ctx.micro = index
    seed_global(mixed_seed(ctx.seed, "two_pass", ctx.step, ctx.rank, index), ctx.device)


def _gathered(feature: Tensor, world: int) -> Tensor:
    """All processes' features in order of rank; the gradient flows back to each process from all of them."""
    return feature if world == 1 else _Gather.apply(feature)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.float().contiguous()  # every process's loss depends on my features
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()].to(gradient.dtype)
