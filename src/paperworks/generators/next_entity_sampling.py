"""Sampling from xAR (2502.20388): an entity at a time, from noise along the flow, against cached clean entities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import NextEntityTransformer
from paperworks.layers.adaln_transformer import Attend
from paperworks.layers.kv_cache import KVCache

LAST_TIME = 0.04
"""where the stochastic path ends; the last step goes straight to 0"""


@dataclass(frozen=True)
class EntitySampled:
    tokens: Tensor
    """[B, L, channels] in entity order"""
    latents: Tensor
    """[B, channels, side, side]"""
    passes: int


@torch.no_grad()
def sample(
    model: NextEntityTransformer,
    labels: Tensor,
    draws: Draws,
    *,
    steps: int = 40,
    guidance: float = 2.7,
    method: Literal["sde", "ode"] = "sde",
) -> EntitySampled:
    """Latents of labels [B] in entities x steps passes. guidance: total weight on the class, 1 for none; it grows from 1 at the
    first entity, whose null branch is skipped. "sde" adds noise on the way (Euler-Maruyama), "ode" does not."""
    if model.training:
        raise InputError("the network is in train mode, where dropout falsifies samples: call model.eval() first")
    if guidance < 1:
        raise InputError(f"guidance={guidance} is the total weight on the class: 1 switches it off")
    if steps < 2:
        raise InputError(f"steps={steps} must be at least 2")
    if method not in ("sde", "ode"):
        raise InputError(f"method={method!r}: there are 'sde' and 'ode'")
    with torch.autocast(labels.device.type, enabled=False):
        return _EntityLoop(model, labels, draws, steps, guidance, method).run()


class _EntityLoop:
    def __init__(self, model: NextEntityTransformer, labels: Tensor, draws: Draws, steps: int, guidance: float, method: str):
        self.model, self.labels, self.draws, self.method = model, labels, draws, method
        self.guidance, self.passes = guidance, 0
        null = torch.full_like(labels, model.num_classes)
        self.both = torch.cat((labels, null)) if guidance > 1 else labels
        weight = model.pred.weight
        self.cache = KVCache(
            2 * model.depth,
            len(self.both),
            model.heads,
            model.side**2,
            model.dim // model.heads,
            device=weight.device,
            dtype=weight.dtype,
        )
        if method == "sde":
            self.times = [*torch.linspace(1, LAST_TIME, steps, dtype=torch.float64).tolist(), 0.0]
        else:
            self.times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()

    def run(self) -> EntitySampled:
        sizes, rows = self.model.entities.sizes, len(self.labels)
        done: list[Tensor] = []
        begin = 0
        for number, size in enumerate(sizes):
            shape = (rows, size, self.model.channels)
            x = self.draws.normal(f"start_{number}", shape).double()
            weight = 1 + (self.guidance - 1) * number / max(1, len(sizes) - 1)
            guided = weight > 1
            before = done[-1] if done else None
            for step, (now, following) in enumerate(zip(self.times, self.times[1:])):
                fresh = before if step == 0 else None
                velocity = self._velocity(x, now, begin, size, fresh, guided)
                x = self._step(x, velocity, now, following, weight, f"eps_{number}_{step}")
            done.append(x.float())
            begin += size
        tokens = torch.cat(done, 1)
        return EntitySampled(tokens, self.model.entities.merge(tokens, self.model.side, self.model.side), self.passes)

    def _velocity(self, x: Tensor, now: float, begin: int, size: int, before: Tensor | None, guided: bool) -> Tensor:
        """Velocities of the class rows, then (guided) of the null rows. `before`: the clean entity just finished, whose keys
        and values enter the cache in this pass."""
        model = self.model
        # rows of the cache must stay together, so the null rows also run when they have a clean entity to store
        labels = self.both if guided or before is not None else self.labels
        copies = len(labels) // len(self.labels)
        tokens = x.to(model.pred.weight.dtype).repeat(copies, 1, 1)
        times = torch.full((len(labels), 1), now)
        old = 0
        if before is not None:
            old = before.shape[1]
            tokens = torch.cat((before.to(tokens.dtype).repeat(copies, 1, 1), tokens), 1)
            times = torch.cat((torch.zeros_like(times), times), 1)
        made = model.velocity(labels, tokens, times, slice(begin - old, begin + size), self._attends(len(labels), old))
        self.passes += 1
        if old:
            self.cache.commit(old)
        made = made[:, old:].double()
        return made if guided else made[: len(self.labels)]

    def _attends(self, rows: int, old: int) -> Callable[[int], Attend]:
        past = self.cache.used
        if past == 0 and old == 0:
            return lambda layer: _alone

        def of(layer: int) -> Attend:
            def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
                keys, values = self.cache.append(layer, key, value)
                if not old:
                    return F.scaled_dot_product_attention(query, keys, values, scale=scale)
                first = F.scaled_dot_product_attention(
                    query[:, :, :old], keys[:, :, : past + old], values[:, :, : past + old], scale=scale
                )
                rest = F.scaled_dot_product_attention(query[:, :, old:], keys, values, scale=scale)
                return torch.cat((first, rest), 2)

            return attend

        return of

    def _step(self, x: Tensor, velocity: Tensor, now: float, following: float, weight: float, name: str) -> Tensor:
        rows, change = len(x), following - now
        if self.method == "ode":
            drift = velocity
        else:  # the score of the linear path gives the drift that goes with noise of variance 2 t (equation of the sampler)
            both = x.repeat(len(velocity) // rows, 1, 1)
            score = -(both + (1 - now) * velocity) / now
            drift = velocity - now * score
        if weight > 1:
            drift = drift[rows:] + weight * (drift[:rows] - drift[rows:])
        x = x + drift * change
        if self.method == "sde" and following > 0:
            x = x + (2 * now) ** 0.5 * abs(change) ** 0.5 * self.draws.normal(name, tuple(x.shape)).double()
        return x


def _alone(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scale)
