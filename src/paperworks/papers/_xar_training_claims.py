"""xAR's claims that need a little training: continuous latents without codes, and what noisy context is good for."""

from __future__ import annotations

import ast
import inspect
from statistics import mean, median
from typing import Literal

import torch

from paperworks.analysis.metrics import frechet_distance
from paperworks.data import open_images
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import NextEntityTransformer
from paperworks.generators.next_entity_sampling import sample
from paperworks.objectives import flow_matching
from paperworks.objectives.flow_matching import EntityFlow, noised
from paperworks.paper import Bench, Measured
from paperworks.papers._generation import TensorSet, adamw, framed
from paperworks.training import TrainConfig, fit, read_metrics

SIDE = 8
STEPS = 600


def latents(split: Literal["train", "test"], limit: int) -> TensorSet:
    """Digits shrunk to 8 x 8 with mean 0 and deviation 1 over all: continuous latents, no codebook anywhere."""
    source = open_images("default", split=split, channels=1, labels="required")
    images = torch.nn.functional.interpolate(framed(source, 32, limit), size=(SIDE, SIDE), mode="area")
    assert source.labels is not None
    return TensorSet(latents=(images - 0.13) / 0.25, label=source.labels[: len(images)])


def trained(bench: Bench, seed: int, context: Literal["noisy", "clean"]) -> tuple[NextEntityTransformer, list[float]]:
    """A small network on the digits and its losses on the way."""
    folder = bench.folder / f"{context}-{seed}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = EntityFlow(NextEntityTransformer(10, SIDE, 1, 96, 2, 3, entity="cell", entity_size=4), context=context)
    config = TrainConfig(STEPS, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99, seed=seed)
    fitted = fit(objective, latents("train", 4000), config, folder, label=f"{context} context, seed {seed}")
    best = fitted.averaged
    assert isinstance(best, EntityFlow) and isinstance(best.model, NextEntityTransformer)
    losses = [row["loss"] for row in read_metrics(folder) if "loss" in row]
    return best.model.eval(), losses


@torch.no_grad()
def continuous(bench: Bench) -> Measured:
    """Loss at the end over loss at the start; samples are finite, and closer to the digits than the untrained network's."""
    ratios, distances, before, good = [], [], [], True
    real = latents("test", 1000).columns["latents"].flatten(1)
    for seed in bench.seeds:
        model, losses = trained(bench, seed, "noisy")
        torch.manual_seed(seed)
        start = NextEntityTransformer(10, SIDE, 1, 96, 2, 3, entity="cell", entity_size=4).eval()
        labels = torch.arange(500) % 10
        found = []
        for network in (model, start):
            made = sample(network, labels, Draws.seeded(seed, len(labels)), steps=20, guidance=1.0).latents.flatten(1)
            good = good and bool(made.isfinite().all())
            found.append(frechet_distance(made, real))
        distances.append(found[0])
        before.append(found[1])
        good = good and found[0] < 0.33 * found[1]
        ratios.append(mean(losses[-3:]) / losses[0])
    detail = f"Frechet distance of 8 x 8 latents {median(distances):.2f}, untrained {median(before):.1f}; nothing is quantised"
    numbers = {"distance": distances, "untrained": before}
    scale = f"digits at 8 x 8, {STEPS} steps"
    return Measured(median(ratios) if good else 9.0, scale, detail, ratios if good else [9.0], list(bench.seeds), numbers)


@torch.no_grad()
def _errors(model: NextEntityTransformer, data: TensorSet, disturbance: float, seed: int) -> float:
    """Squared velocity error of the entities after the first, each given its predecessors as sampling gives them: at time 0,
    but off by `disturbance` deviations."""
    generator = torch.Generator().manual_seed(seed)
    clean = model.entities.split(data.columns["latents"])
    labels, begin, errors = data.columns["label"], model.entities.sizes[0], []
    count = len(model.entities.sizes)
    noise = torch.randn(clean.shape, generator=generator)
    off = clean + disturbance * torch.randn(clean.shape, generator=generator)
    moments = torch.rand(len(clean), count, generator=generator)
    for number, size in enumerate(model.entities.sizes[1:], 1):
        times = torch.zeros(len(clean), count)
        times[:, number] = moments[:, number]
        given, wanted = noised(clean, noise, times[:, model.entity_of, None])
        own = slice(begin, begin + size)
        given[:, :begin] = off[:, :begin]
        made = model(labels, given, times)
        errors.append(float((made[:, own] - wanted[:, own]).square().mean()))
        begin += size
    return mean(errors)


def exposure(bench: Bench, disturbance: float = 0.3) -> Measured:
    """Growth of the error under disturbed context: trained on noisy context over trained on clean context."""
    data = latents("test", 1000)
    contexts: tuple[Literal["noisy", "clean"], ...] = ("noisy", "clean")
    ratios: list[float] = []
    growths: dict[str, list[float]] = {context: [] for context in contexts}
    for seed in bench.seeds:
        for context in contexts:
            model, _ = trained(bench, seed, context)
            growth = _errors(model, data, disturbance, 99) - _errors(model, data, 0.0, 99)
            growths[context].append(growth)
            bench.say(f"  {context} context, seed {seed}: error grows by {growth:.4f}")
        ratios.append(growths["noisy"][-1] / growths["clean"][-1])
    words = ", ".join(f"{name} {mean(values):.4f}" for name, values in growths.items())
    detail = f"squared error of the velocity grows by: {words}, when earlier entities are off by {disturbance} deviations"
    return Measured(mean(ratios), f"digits at 8 x 8, {STEPS} steps", detail, ratios, list(bench.seeds), growths)


def no_teacher(bench: Bench) -> Measured:
    """What training reads and sampling offers: latents and labels, no other network, no interval of guidance."""
    read = {
        node.slice.value
        for node in ast.walk(ast.parse(inspect.getsource(flow_matching)))
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
    }
    options = set(inspect.signature(sample).parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = EntityFlow(NextEntityTransformer(3, 4, 2, 16, 1, 2, entity="cell", entity_size=2))
    others = [name for name, _ in objective.named_children() if name != "model"]
    untrained = [name for name, parameter in objective.named_parameters() if not parameter.requires_grad]
    clean = not others and not untrained and not any("interval" in name or "teacher" in name for name in options | read)
    needs = ", ".join(sorted(objective.needs))
    detail = f"training reads {needs} and owns one network; sampling takes {', '.join(sorted(options))}"
    return Measured(int(clean), "any", detail)
