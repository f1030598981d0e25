"""Patch sizes on dense prediction: which pixels belong to a digit, in scenes of digits on photos, by a plain and by a
convolutional decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch

from paperworks.backbones.adventurer import Adventurer
from paperworks.data.loader import Loader
from paperworks.data.scenes import SceneConfig, open_scenes
from paperworks.layers.dense_heads import ConvolutionalDecoder, LinearDecoder
from paperworks.objectives.segment import Segment, mean_iou
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._patch_scaling_curve import DEPTH, WIDTH
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

SCENES = SceneConfig(32, ((14, 20), (14, 20)), told_apart=False)
PATCHES = (8, 4, 2)
DECODERS = {"linear": LinearDecoder, "convolutional": ConvolutionalDecoder}
TRAIN, TEST, EPOCHS, BATCH = 2000, 400, 5, 32

Runs = Mapping[str, Mapping[int, Sequence[float]]]
"""per decoder and patch the mean intersection over union of every seed, in percent"""


def smaller_patches(bench: Bench) -> Measured:
    """Points gained from patches of 8 to 2 with the linear decoder, per seed."""
    found = _all(bench, ("linear",))
    gains = [small - large for large, small in zip(found["linear"][8], found["linear"][2])]
    return _measured(bench, found, gains)


def decoder_gaps(bench: Bench) -> Measured:
    """Points by which the convolutional decoder's lead shrinks from patches of 8 to 2, per seed."""
    found = _all(bench, tuple(DECODERS))
    lead = {
        patch: [ours - plain for ours, plain in zip(found["convolutional"][patch], found["linear"][patch])] for patch in PATCHES
    }
    return _measured(bench, found, [large - small for large, small in zip(lead[8], lead[2])])


def rises(measured: Measured) -> bool:
    """Means over seeds: intersection over union rises from patches of 8 to 4 to 2."""
    row = measured.numbers["means"]["linear"]
    return row["8"] < row["4"] < row["2"]


def _measured(bench: Bench, found: Runs, values: list[float]) -> Measured:
    means = {kind: {str(patch): mean(runs) for patch, runs in row.items()} for kind, row in found.items()}
    words = "; ".join(
        f"{kind} decoder " + ", ".join(f"p{patch} {value:.1f} %" for patch, value in row.items()) for kind, row in means.items()
    )
    numbers: dict[str, Any] = {"means": means, "runs": {kind: dict(row) for kind, row in found.items()}}
    scale = (
        f"Adventurer of width {WIDTH}, {DEPTH} blocks, {TRAIN} scenes of {SCENES.size} pixels with two digits on a photo, "
        f"{EPOCHS} epochs, {len(bench.seeds)} seeds"
    )
    detail = f"mean intersection over union: {words}"
    return Measured(mean(values), scale, detail, values, list(bench.seeds), numbers, "points")


def _all(bench: Bench, decoders: Sequence[str]) -> Runs:
    found: dict[str, dict[int, list[float]]] = {kind: {patch: [] for patch in PATCHES} for kind in decoders}
    for seed in bench.seeds:
        for kind in decoders:
            for patch in PATCHES:
                found[kind][patch].append(_trained(bench, kind, patch, seed))
    return found


def _trained(bench: Bench, kind: str, patch: int, seed: int) -> float:
    folder = bench.folder / f"dense-{kind}-p{patch}-{seed}"
    result = folder / "iou.json"
    if result.is_file():
        return json.loads(result.read_text())["iou"]
    train = open_scenes(bench.data, "train", TRAIN, SCENES, seed=1000 + seed)
    test = open_scenes(bench.data, "test", TEST, SCENES, seed=7)
    classes = len(train.classes) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = Adventurer(SCENES.size, patch, WIDTH, DEPTH, mamba_d_state=16, headdim=32, num_classes=0)
        objective = Segment(body, DECODERS[kind](WIDTH, classes, patch))
    optimizer = OptimizerConfig("adamw", lr=2e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.1))
    config = TrainConfig(EPOCHS * TRAIN // BATCH, BATCH, optimizers={"main": optimizer}, clip=5.0, seed=seed)
    fit(objective, train, config, folder, label=f"{kind} decoder, patch {patch}, seed {seed}")
    iou = mean_iou(objective, Loader(test, 100, seed=0, shuffle=False, drop_last=False), classes)
    write_json(result, {"iou": iou})
    bench.say(f"{kind} decoder, patch {patch}, seed {seed}: {iou:.1f} %")
    return iou
