"""ResGen beside the usual generator of residual tokens, an RQ-Transformer: the same tokens, as many seconds of training."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.metrics import frechet_distance
from paperworks.analysis.timing import alternate
from paperworks.generators.draws import Draws
from paperworks.generators.residual_autoregressive import RQTransformer
from paperworks.generators.residual_autoregressive import sample_tokens as sample_one_by_one
from paperworks.generators.residual_masked import ResidualMaskedTransformer
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._generation import TensorSet, framed, open_test
from paperworks.papers._generation_report import Judge, in_batches
from paperworks.papers._resgen_claims import trained_tokenizer
from paperworks.papers._token_recipe import Kit, as_maps
from paperworks.training import fit

DEPTHS = (2, 4, 8)
SECONDS = 40.0
"""of training for each generator"""
DIM, BLOCKS, HEADS = 128, 4, 2
LEVEL_BLOCKS = 1
"""of the RQ-Transformer, which brings it to ResGen's number of parameters within a fifth"""
IMAGES, TIMED = 500, 100
"""made for the distance, and in each timing"""
SIDES = ("resgen", "rq-transformer")


@dataclass(frozen=True)
class Given:
    """What both sides learn from and are judged by."""

    config: Any
    kit: Kit
    tokenizer: Any
    tokens: TensorSet
    judge: Judge
    real: Tensor
    """features of held-out images"""


def measured(bench: Bench, kit: Kit, config: Any) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Distance and seconds an image: by depth, seed and side."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for depth in DEPTHS:
        given = _given(bench, kit, config, depth)
        found[str(depth)] = {str(seed): _both(bench, given, depth, seed) for seed in bench.seeds}
    return found


def distance_claim(bench: Bench, kit: Kit, config: Any) -> Measured:
    """Largest ratio of Frechet distances, ResGen's over the RQ-Transformer's, at depths 4 and 8."""
    found = measured(bench, kit, config)
    ratios = [max(_ratio(found[depth][str(seed)], "distance") for depth in ("4", "8")) for seed in bench.seeds]
    return Measured(mean(ratios), _scale(), _words(found, "distance", "{:.2f}"), ratios, list(bench.seeds), found, "x")


def depth_claim(bench: Bench, kit: Kit, config: Any) -> Measured:
    """Largest over the depths of the better of both ratios, distance and seconds an image."""
    found = measured(bench, kit, config)
    ratios = [
        max(min(_ratio(row[str(seed)], "distance"), _ratio(row[str(seed)], "seconds")) for row in found.values())
        for seed in bench.seeds
    ]
    detail = f"distance: {_words(found, 'distance', '{:.2f}')}; ms an image: {_words(found, 'seconds', '{:.1f}', 1e3)}"
    return Measured(mean(ratios), _scale(), detail, ratios, list(bench.seeds), found, "x")


def _given(bench: Bench, kit: Kit, config: Any, depth: int) -> Given:
    config = replace(
        config,
        copies=2,
        tokenizer=replace(config.tokenizer, depth=depth),
        tokenizer_training=replace(config.tokenizer_training, steps=400),
    )
    tokenizer, tokens = trained_tokenizer(bench, kit, config, f"tokenizer-depth{depth}")
    judge = Judge.of(config.data, bench.folder / "judge")
    images = framed(open_test(config.data, channels=config.channels), config.image_size)[: judge.limit]
    return Given(config, kit, tokenizer, tokens, judge, judge.features(images))


def _learner(given: Given, side: str, depth: int, seed: int) -> TokenPrediction:
    """Weights as drawn from the seed."""
    torch.manual_seed(seed)
    spec = given.tokenizer.spec
    positions = spec.tokens // depth
    if side == "resgen":
        channels = given.config.tokenizer.embed_dim
        masked = ResidualMaskedTransformer(10, positions, depth, channels, DIM, BLOCKS, HEADS, 64)
        return given.kit.objective(given.config, masked, given.tokenizer, given.tokens)
    return TokenPrediction(RQTransformer(10, positions, depth, spec.vocab_size, DIM, BLOCKS, HEADS, level_blocks=LEVEL_BLOCKS))


def _both(bench: Bench, given: Given, depth: int, seed: int) -> dict[str, dict[str, float]]:
    """Each side's distance, steps and seconds; what is timed is sampling alone, both sides in turns."""
    path = bench.folder / f"sides-depth{depth}-seed{seed}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    models = {side: _trained(bench, given, side, depth, seed) for side in SIDES}
    labels = torch.arange(IMAGES) % 10
    found: dict[str, dict[str, float]] = {}
    for side, (model, numbers) in models.items():
        made = in_batches(partial(_images, given, model, seed), labels)
        found[side] = {"distance": frechet_distance(given.judge.features(made), given.real), **numbers}
    works = {side: partial(_tokens, given, model, seed, labels[:TIMED], 0) for side, (model, _) in models.items()}
    for side, seconds in alternate(works, rounds=5, warmup=1).items():
        found[side]["seconds"] = median(seconds) / TIMED
        words = f"distance {found[side]['distance']:.2f}, {1e3 * found[side]['seconds']:.1f} ms an image"
        bench.say(f"  {side}, depth {depth}, seed {seed}: {words}")
    write_json(path, found)
    return found


def _trained(bench: Bench, given: Given, side: str, depth: int, seed: int) -> tuple[nn.Module, dict[str, float]]:
    """A side's network after its seconds of training, and what they were spent on."""
    base = replace(given.config.generator_training, checkpoint_every=10**9, seed=seed)
    pace = _pace(bench.folder / f"pace-{side}-depth{depth}", given, side, depth)
    steps, folder = max(20, round(SECONDS / pace)), bench.folder / f"{side}-depth{depth}-seed{seed}"
    label = f"{side}, depth {depth}, seed {seed}"
    fitted = fit(_learner(given, side, depth, seed), given.tokens, replace(base, steps=steps), folder, label=label)
    best = fitted.averaged
    assert isinstance(best, TokenPrediction)
    return best.model.eval(), {"steps": float(steps), "trained": fitted.seconds}


def _pace(folder: Path, given: Given, side: str, depth: int) -> float:
    """Seconds a step, from a few of them; kept, so that both a resumed check and all seeds take the same number of steps."""
    path = folder / "seconds.json"
    if not path.is_file():
        few = replace(given.config.generator_training, steps=20, checkpoint_every=10**9)
        write_json(path, fit(_learner(given, side, depth, 0), given.tokens, few, folder / "run", label="pace").seconds / 20)
    return float(json.loads(path.read_text()))


@torch.inference_mode()
def _tokens(given: Given, model: nn.Module, seed: int, labels: Tensor, first: int) -> Tensor:
    part, draws = given.config.sampling, Draws.seeded(seed, len(labels), first)
    if isinstance(model, RQTransformer):
        return sample_one_by_one(model, labels, draws, guidance=part.guidance, top_p=part.top_p)
    return given.kit.sample(given.config, model, given.tokenizer, labels, draws)


@torch.inference_mode()
def _images(given: Given, model: nn.Module, seed: int, labels: Tensor, first: int) -> Tensor:
    return given.tokenizer.decode(as_maps(given.tokenizer, _tokens(given, model, seed, labels, first)))


def _ratio(row: dict[str, dict[str, float]], key: str) -> float:
    ours, theirs = (row[side][key] for side in SIDES)
    return ours / theirs


def _words(found: dict[str, dict[str, dict[str, dict[str, float]]]], key: str, form: str, unit: float = 1.0) -> str:
    parts = []
    for depth, rows in found.items():
        ours, theirs = (mean(row[side][key] for row in rows.values()) * unit for side in SIDES)
        parts.append(f"depth {depth} {form.format(ours)} against {form.format(theirs)}")
    return ", ".join(parts)


def _scale() -> str:
    sides = f"{BLOCKS} layers x {DIM}, {SECONDS:g} s of training on each side"
    return f"digits as 16 positions of 64 codes a level; {sides}; sampling timed in turns, without decoding"
