"""Small networks under the training of 2015 and under ResNet-RS's: what claims about training methods compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torchvision.transforms import v2

from paperworks.data import Mix, Transformed
from paperworks.data.transforms import NoisyRandAugment, eval_crop, eval_shift, train_crop, train_shift
from paperworks.objectives.classify import Classify, score
from paperworks.paper import Bench, write_json
from paperworks.papers._classification import DIGITS, in_order
from paperworks.papers._recognition_claims import Budget, Build, test_images, training_images
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit


@dataclass(frozen=True)
class Training(Budget):
    """SGD with momentum; everything else is what the methods differ in."""

    epochs: float = 15
    lr: float = 0.05
    milestones: tuple[float, ...] = ()
    """shares of the steps at which the rate is divided by ten; one cosine without any"""
    ema: float | None = None
    magnitude: float = 0.0
    """of both RandAugment operations; 0 for none"""
    size: int | None = None
    """pixels that images are resized to and cut from; by default they are cut at 32 as they are"""

    def config(self, images: int, seed: int) -> TrainConfig:
        kind: Any = "step" if self.milestones else "cosine"
        schedule = ScheduleConfig(kind, warmup=0.03, milestones=self.milestones)
        optimizer = OptimizerConfig("sgd", lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.decay, schedule=schedule)
        steps = max(1, round(self.epochs * images / self.batch))
        return TrainConfig(
            steps, min(self.batch, images), optimizers={"main": optimizer}, ema=self.ema, seed=seed, channels_last=True
        )


BASELINE = Training(decay=1e-4, smoothing=0.0, milestones=(1 / 3, 2 / 3, 8 / 9))
RECIPE = replace(BASELINE, decay=4e-5, smoothing=0.1, milestones=(), ema=0.99, magnitude=5.0)
"""one cosine, averaged weights, label smoothing, RandAugment, and with all of that less weight decay"""


def top1(bench: Bench, sides: Mapping[str, tuple[Build, Training]]) -> dict[str, list[float]]:
    """Percent per seed; every side with one seed, then with the next."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for seed in bench.seeds:
        for name, (build, training) in sides.items():
            found[name].append(_trained(bench, name, seed, build, training))
    return found


def _trained(bench: Bench, name: str, seed: int, build: Build, training: Training) -> float:
    folder = bench.folder / f"{name}-{seed}"
    result = folder / "accuracy.json"
    if result.is_file():
        return json.loads(result.read_text())["top1"]
    source, test = training_images(bench, training), test_images(bench, training)
    assert source.classes is not None
    classes = len(source.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = Classify(build(classes))
    size, flip = training.size, bench.data not in DIGITS
    cut = train_crop(size, flip=flip) if size else train_shift(32, pad=4, flip=flip)
    transform: Any = cut
    if training.magnitude:
        augment = NoisyRandAugment(2, training.magnitude, deviation=0.0, probability=1.0)
        transform = v2.Compose([augment, cut])
    mix = Mix(classes, mixup=0.0, cutmix=0.0, smoothing=training.smoothing)
    config, data = training.config(len(source), seed), Transformed(source, transform, seed=seed)
    fitted = fit(objective, data, config, folder, batch_transform=mix, label=f"{name}, seed {seed}")
    averaged = fitted.averaged
    assert isinstance(averaged, Classify)
    averaged.eval()
    found = score(averaged.logits, in_order(test, eval_crop(size) if size else eval_shift(32)), classes)
    numbers = {"top1": 100 * found.top1, "milliseconds": 1e3 * fitted.seconds / fitted.step}
    write_json(result, numbers)
    bench.say(f"{name}, seed {seed}: top-1 {numbers['top1']:.4g}")
    return numbers["top1"]
