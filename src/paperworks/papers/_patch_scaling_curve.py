"""The law of patchification, small: networks that differ in nothing but the patch size, trained alike, test loss over
tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from paperworks.analysis.counting import count_macs
from paperworks.backbones.adventurer import Adventurer
from paperworks.data import Mix, Transformed, open_images
from paperworks.data.transforms import eval_crop, train_crop
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify, score
from paperworks.paper import Bench, Run, first_process, write_json
from paperworks.papers._classification import DIGITS, _some, in_order
from paperworks.reporting import Report
from paperworks.reporting.style import draw_curves, legend_above, styled
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

NETWORKS = ("Adventurer", "ViT")
WIDTH, DEPTH = 64, 4


@dataclass(frozen=True)
class CurveConfig:
    """What all points of the curve share, and where they are."""

    data: str = "default"
    size: int = 16
    """pixels"""
    patches: tuple[int, ...] = (8, 4, 2, 1)
    networks: tuple[str, ...] = NETWORKS
    images: int = 3000
    """of training at most"""
    test_images: int = 1000
    epochs: float = 4
    batch: int = 64
    lr: float = 2e-3
    seed: int = 0

    def words(self, seeds: Sequence[int]) -> str:
        """The scale that is printed with a result."""
        return (
            f"width {WIDTH}, {DEPTH} blocks, {self.images} images of {self.data}, {self.size} pixels, {self.epochs:g} epochs, "
            f"{len(seeds)} seeds"
        )


def build(kind: str, patch: int, size: int, num_classes: int) -> nn.Module:
    """An Adventurer or a DeiT-like ViT of the same width and depth; only the patch and the table of positions vary."""
    if size % patch:
        raise InputError(f"patches of {patch} do not divide an image of {size} pixels")
    if kind == "Adventurer":
        return Adventurer(size, patch, WIDTH, DEPTH, mamba_d_state=16, headdim=32, num_classes=num_classes)
    if kind == "ViT":
        return VisionTransformer(
            img_size=size, patch_size=patch, embed_dim=WIDTH, depth=DEPTH, num_heads=2, num_classes=num_classes
        )
    raise InputError(f"no network {kind!r}; there are {' and '.join(NETWORKS)}")


def tokens(size: int, patch: int) -> int:
    """Patches of an image; the class token is not counted."""
    return (size // patch) ** 2


def point(config: CurveConfig, kind: str, patch: int, seed: int, folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """One network trained: "top1" in percent, "loss" (cross-entropy on the test images), "tokens", "milliseconds" per step,
    "mega_macs" of an image. Kept in the folder, so that an interrupted curve goes on."""
    folder = folder / f"{kind.lower()}-p{patch}-{seed}"
    result = folder / "point.json"
    if result.is_file():
        return json.loads(result.read_text())
    train, test = (
        _some(open_images(config.data, split=split, labels="required", channels=3), count)  # type: ignore[arg-type]
        for split, count in (("train", config.images), ("test", config.test_images))
    )
    assert train.classes is not None
    classes = len(train.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = Classify(build(kind, patch, config.size, classes))
    data = Transformed(train, train_crop(config.size, flip=config.data not in DIGITS), seed=seed)
    batch = min(config.batch, len(train))
    steps = max(1, round(config.epochs * len(train) / batch))
    schedule = ScheduleConfig("cosine", warmup=0.1)
    optimizer = OptimizerConfig("adamw", lr=config.lr, weight_decay=0.05, schedule=schedule)
    training = TrainConfig(steps, batch, optimizers={"main": optimizer}, clip=5.0, seed=seed)
    # no smoothing and no mixing: the law is about the cross-entropy itself
    mix = Mix(classes, mixup=0.0, cutmix=0.0, smoothing=0.0)
    fitted = fit(objective, data, training, folder, batch_transform=mix, label=f"{kind}, patch {patch}, seed {seed}")
    objective.eval()
    found = score(objective.logits, in_order(test, eval_crop(config.size)), classes)
    with torch.device("meta"):
        macs = count_macs(build(kind, patch, config.size, classes), torch.zeros(1, 3, config.size, config.size))
    numbers = {
        "top1": 100 * found.top1,
        "loss": found.loss,
        "tokens": tokens(config.size, patch),
        "mega_macs": macs / 1e6,
        "milliseconds": 1e3 * fitted.seconds / fitted.step,
    }
    write_json(result, numbers)
    say(f"{kind}, patch {patch}, seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    return numbers


def all_points(config: CurveConfig, bench: Bench) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Per network and patch size the points of all seeds."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {
        kind: {patch: [] for patch in config.patches} for kind in config.networks
    }
    for seed in bench.seeds:
        for kind in config.networks:
            for patch in config.patches:
                found[kind][patch].append(point(config, kind, patch, seed, bench.folder, bench.say))
    return found


# --- the recipe's stages ----------------------------------------------------------------------------------------------------


def measure(config: CurveConfig, run: Run) -> Mapping[str, Any]:
    """All networks of the curve with one seed."""
    for patch in config.patches:
        for kind in config.networks:
            build(kind, patch, config.size, 2)  # what does not fit is said before an hour has gone by
    bench = Bench(run.stage_folder("curve"), (config.seed,), config.data)
    found = all_points(config, bench)
    return {kind: {str(patch): runs[0] for patch, runs in by_patch.items()} for kind, by_patch in found.items()}


def report(config: CurveConfig, run: Run) -> Mapping[str, Any]:
    """report.html: loss and accuracy over the number of tokens, and what the tokens cost."""
    if not first_process():
        return {}
    found = run.result("curve")
    words = f"{config.images} images of {config.data}, {config.size} pixels, {config.epochs:g} epochs for every point"
    page = Report("Scaling laws in patchification", words)
    best = min((point["loss"], kind, patch) for kind, row in found.items() for patch, point in row.items())
    page.figures({"lowest test loss": f"{best[0]:.3f}", "by": f"{best[1]}, patch {best[2]}"})
    caption = "Only the patch size changes from left to right; width, depth, data and epochs are the same."
    for name, label in (("loss", "cross-entropy on held-out images"), ("top1", "top-1 %")):
        page.figure(f"{label[0].upper()}{label[1:]} over tokens", _over_tokens(found, name, label), caption)
    columns = ["network", "patch", "tokens", "test loss", "top-1", "million MACs an image", "ms a step"]
    rows = [
        [
            kind,
            f"{patch} x {patch}",
            f"{point['tokens']:.0f}",
            f"{point['loss']:.3f}",
            f"{point['top1']:.1f} %",
            f"{point['mega_macs']:.2f}",
            f"{point['milliseconds']:.0f}",
        ]
        for kind, row in found.items()
        for patch, point in row.items()
    ]
    page.table("The points in numbers", columns, rows)
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return {"networks": list(found)}


def _over_tokens(found: Mapping[str, Mapping[str, Mapping[str, float]]], name: str, label: str) -> Any:
    with styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.2, 3.6))
        series = {
            kind: ([point["tokens"] for point in row.values()], [point[name] for point in row.values()])
            for kind, row in found.items()
        }
        draw_curves(axes, series)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="tokens", ylabel=label)
        legend_above(figure, list(series))
    return figure
