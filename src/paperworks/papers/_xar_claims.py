"""What xAR's claims are measured on: counts, single passes, and one watched step of training and sampling."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.analysis.timing import alternate
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import EntityKind, NextEntityTransformer
from paperworks.generators.next_entity_sampling import sample
from paperworks.layers.adaln_transformer import cached
from paperworks.layers.kv_cache import KVCache
from paperworks.objectives.flow_matching import EntityFlow
from paperworks.paper import Measured
from paperworks.papers._dit_cost import DiTCost
from paperworks.training.objective import Context

KINDS: tuple[EntityKind, ...] = ("token", "cell", "subsample", "scale", "image")


def five_entities() -> Measured:
    works = 0
    counts: dict[str, int] = {}
    for kind in KINDS:
        torch.manual_seed(0)
        model = NextEntityTransformer(3, 4, 2, 16, 1, 2, entity=kind, entity_size=2)
        latents = torch.randn(4, 2, 4, 4)
        same = torch.equal(model.entities.merge(model.entities.split(latents), 4, 4), latents)
        batch = {"latents": latents, "label": torch.tensor([0, 1, 2, 0])}
        losses = EntityFlow(model).loss(batch, "main", Context(0, 1, 0))
        losses.total.backward()
        learns = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        made = sample(model.eval(), torch.tensor([0, 1]), Draws.seeded(0, 2), steps=3, guidance=2.0)
        counts[kind] = len(model.entities.sizes)
        works += same and learns and bool(made.latents.isfinite().all()) and made.passes == 3 * counts[kind]
    detail = "entities of a 4 x 4 grid: " + ", ".join(f"{kind} {count}" for kind, count in counts.items())
    return Measured(works, "any", detail, numbers=counts, unit="kinds")


# --- sizes, operations, time ------------------------------------------------------------------------------------------


def _base() -> NextEntityTransformer:
    return NextEntityTransformer(1000, 16, 16, 768, 8, 12)


def base_size() -> Measured:
    with torch.device("meta"):
        return Measured(count_parameters(_base()) / 1e6, "any", "xAR-B, built and counted")


def larger_models() -> Measured:
    with torch.device("meta"):
        count, ours = count_parameters(DiTCost()) / 1e6, count_parameters(_base()) / 1e6
    return Measured(count, "any", f"{count / ours:.2f} times xAR-B's; SiT-XL is the same network", numbers={"xAR-B": ours})


def operations(steps: int = 40, diffusion_steps: int = 250) -> Measured:
    """Multiply-accumulates of an image: both branches everywhere, but for xAR's first entity; every entity's first pass also
    takes the clean one before it. Beside it the time of the same from single passes, where all of xAR's count as the most
    expensive one, that of the last entity in both branches."""
    with torch.device("meta"):
        dit = count_macs(DiTCost(), torch.zeros(1, 256, 16)) * 2 * diffusion_steps
        whole = count_macs(_Pass(_base(), 256), torch.zeros(1, 256, 16))
    entity = whole / 4
    passes = steps * (1 + 2 * 3) + 2 * 3
    ours = entity * passes
    took = single_passes()
    by_time = took["DiT-XL/2"] * diffusion_steps / (took["xAR-B"] * (4 * steps + 3))
    milliseconds = {name: 1e3 * value for name, value in took.items()}
    words = ", ".join(f"{name} {value:.0f} ms" for name, value in milliseconds.items())
    detail = (
        f"DiT-XL/2 {dit / 1e12:.1f} T in {diffusion_steps} steps, xAR-B {ours / 1e12:.2f} T in 4 x {steps} passes; single "
        f"passes with random weights on a CPU: {words}, which makes {by_time:.1f} times for an image"
    )
    numbers = {"DiT-XL/2": dit, "xAR-B": ours, "by time": by_time, "milliseconds": milliseconds}
    return Measured(dit / ours, "256 pixels, guided; operations counted, single passes timed", detail, numbers=numbers)


def both_at_least_five(found: Measured) -> bool:
    return found.value >= 5 and found.numbers["by time"] >= 5


def single_passes(rounds: int = 3) -> dict[str, float]:
    """Seconds of one pass of both branches for an image, random weights, in turns: DiT-XL/2 on its 256 tokens, without its
    modulation, and xAR-B on the 64 of the last entity, with it, against the cache of all earlier ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit, xar, tokens = DiTCost().eval(), _base().eval(), torch.randn(2, 256, 16)
    with torch.inference_mode():
        works = {"DiT-XL/2": partial(dit, tokens), "xAR-B": partial(last_pass, xar, _full_cache(xar, 2))}
        return {name: median(values) for name, values in alternate(works, rounds=rounds, warmup=1).items()}


def last_pass(model: NextEntityTransformer, cache: KVCache) -> Tensor:
    """Velocities of the last entity at a time of 0.5."""
    rows, new = cache.store.shape[2], model.side**2 - cache.used
    times = torch.full((rows, 1), 0.5)
    tokens = torch.zeros(rows, new, model.channels)
    where = slice(cache.used, model.side**2)
    return model.velocity(torch.zeros(rows, dtype=torch.int64), tokens, times, where, partial(cached, cache))


def _full_cache(model: NextEntityTransformer, rows: int) -> KVCache:
    """Up to the last entity."""
    cache = KVCache(2 * model.depth, rows, model.heads, model.side**2, model.dim // model.heads)
    cache.store.zero_()
    cache.commit(model.side**2 - model.entities.sizes[-1])
    return cache


class _Pass(nn.Module):
    def __init__(self, model: NextEntityTransformer, length: int):
        super().__init__()
        self.model, self.length = model, length

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.model.z_proj_ln(self.model.z_proj(tokens))
        condition = torch.zeros(1, 4, self.model.dim, device=x.device)
        entity = torch.arange(4, device=x.device).repeat_interleave(self.length // 4)
        for block in (*self.model.encoder_blocks, *self.model.decoder_blocks):
            modulation = tuple(part[:, entity] for part in block.modulation(condition))
            x = block(x, modulation, _attend, self.model.rotary)
        return self.model.pred(self.model.decoder_embed(x))


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)


# --- what training and sampling look at -------------------------------------------------------------------------------


class RecordedBatch(dict[str, Any]):
    """A batch that notes which of its columns are read."""

    def __init__(self, **columns: Any):
        super().__init__(columns)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


@contextmanager
def running_modules() -> Iterator[list[tuple[nn.Module, tuple[Any, ...]]]]:
    """Every module that is called within, wherever it belongs, with what it was given."""
    ran: list[tuple[nn.Module, tuple[Any, ...]]] = []
    handle = register_module_forward_pre_hook(lambda module, given: ran.append((module, given)))
    try:
        yield ran
    finally:
        handle.remove()


def no_teacher(settings: Iterable[str], flow: type[EntityFlow] = EntityFlow) -> Measured:
    """A training step and a sample, watched: a batch offers an image and a foundation model's features too, and any network
    may run. settings: names of what a recipe says about sampling."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NextEntityTransformer(3, 4, 2, 16, 1, 2, entity="cell", entity_size=2)
        latents, image, features = torch.randn(4, 2, 4, 4), torch.rand(4, 3, 16, 16), torch.randn(4, 8)
        objective = flow(model)
    batch = RecordedBatch(latents=latents, label=torch.tensor([0, 1, 2, 0]), image=image, features=features)
    before = model.pred.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with running_modules() as ran:
        objective.loss(batch, "main", Context(0, 1, 0)).total.backward()
        optimizer.step()
        training = len(ran)
        labels = torch.tensor([0, 1])
        made = sample(model.eval(), labels, Draws.seeded(0, len(labels)), steps=3, guidance=2.0)
    own = set(model.modules())
    foreign = sorted({type(module).__name__ for module, _ in ran if module not in own})
    rows = [len(given[0]) for module, given in ran[training:] if module is model.z_proj]
    # no interval: after the first entity, which has no guidance, both branches run at every time
    first = 3 * [len(labels)]
    always = rows == first + [2 * len(labels)] * (made.passes - len(first))
    options = [name for name, value in inspect.signature(sample).parameters.items() if value.kind is value.KEYWORD_ONLY]
    known = {"steps", "guidance", "method", "images"}
    checks = {
        "reads latents and labels alone": batch.read == {"latents", "label"},
        "runs one network": not foreign,
        "learns": not torch.equal(before, model.pred.weight),
        "is guided at every time": always,
        "has no further option": set(options) | set(settings) <= known,
    }
    failed = [name for name, passed in checks.items() if not passed]
    detail = (
        f"a step read {' and '.join(sorted(batch.read))}; networks besides the generator: {', '.join(foreign) or 'none'}; "
        f"sampling takes {', '.join(options)} and ran both branches in {rows.count(2 * len(labels))} of {made.passes} passes, "
        "all but the first entity's" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return Measured(int(not failed), "any", detail, numbers={"read": sorted(batch.read), "rows": rows, "options": options})
