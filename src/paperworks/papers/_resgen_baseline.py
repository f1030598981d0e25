"""ResGen beside the usual generator of residual tokens, an RQ-Transformer: the same tokens, as many seconds of training."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from paperworks.analysis.metrics import frechet_distance
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
IMAGES = 500
SIDES = ("resgen", "rq-transformer")


@dataclass(frozen=True)
class Given:
    """What both sides learn from and are judged by."""

    config: Any
    kit: Kit
    tokenizer: Any
    tokens: TensorSet
    judge: Judge
    real: torch.Tensor
    """features of held-out images"""


def measured(bench: Bench, kit: Kit, config: Any) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Distance and seconds an image: by depth, seed and side."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for depth in DEPTHS:
        given = _given(bench, kit, config, depth)
        found[str(depth)] = {str(seed): {side: _one(bench, given, side, depth, seed) for side in SIDES} for seed in bench.seeds}
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


def _one(bench: Bench, given: Given, side: str, depth: int, seed: int) -> dict[str, float]:
    folder = bench.folder / f"{side}-depth{depth}-seed{seed}"
    path = folder / "numbers.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    base = replace(given.config.generator_training, checkpoint_every=10**9, seed=seed)
    pace = _pace(bench.folder / f"pace-{side}-depth{depth}", given, side, depth)
    steps = replace(base, steps=max(20, round(SECONDS / pace)))
    fitted = fit(_learner(given, side, depth, seed), given.tokens, steps, folder, label=f"{side}, depth {depth}, seed {seed}")
    best = fitted.averaged
    assert isinstance(best, TokenPrediction)
    labels = torch.arange(IMAGES) % 10
    started = time.perf_counter()
    made = in_batches(
        lambda part, start: _images(given, best.model.eval(), side, part, Draws.seeded(seed, len(part), start)), labels
    )
    seconds = (time.perf_counter() - started) / IMAGES
    distance = frechet_distance(given.judge.features(made), given.real)
    numbers = {"distance": distance, "seconds": seconds, "steps": float(steps.steps), "trained": fitted.seconds}
    bench.say(f"  {side}, depth {depth}, seed {seed}: distance {distance:.2f}, {1e3 * seconds:.1f} ms an image")
    write_json(path, numbers)
    return numbers


def _pace(folder: Path, given: Given, side: str, depth: int) -> float:
    """Seconds a step, from a few of them; kept, so that both a resumed check and all seeds take the same number of steps."""
    path = folder / "seconds.json"
    if not path.is_file():
        few = replace(given.config.generator_training, steps=20, checkpoint_every=10**9)
        write_json(path, fit(_learner(given, side, depth, 0), given.tokens, few, folder / "run", label="pace").seconds / 20)
    return float(json.loads(path.read_text()))


@torch.inference_mode()
def _images(given: Given, model: nn.Module, side: str, labels: torch.Tensor, draws: Draws) -> torch.Tensor:
    part = given.config.sampling
    if isinstance(model, RQTransformer):
        tokens = sample_one_by_one(model, labels, draws, guidance=part.guidance, top_p=part.top_p)
    else:
        tokens = given.kit.sample(given.config, model, given.tokenizer, labels, draws)
    return given.tokenizer.decode(as_maps(given.tokenizer, tokens))


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
    return f"digits as 16 positions of 64 codes a level; {BLOCKS} layers x {DIM}, {SECONDS:g} s of training on each side"
