"""Detection in small: the same one-stage detector on a VoVNet, a DenseNet and a ResNet of equal parameters, trained alike to
find digits of two sizes pasted on crops of photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch
from torch import nn

from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.analysis.detection import average_precision
from paperworks.analysis.timing import alternate
from paperworks.backbones.densenet import DenseNet
from paperworks.backbones.detectors import Kind, make_detector
from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import create
from paperworks.backbones.resnet import ResNet
from paperworks.backbones.vovnet import VoVNet
from paperworks.data.loader import Loader
from paperworks.data.scenes import SceneConfig, open_scenes
from paperworks.objectives.detect import Detect
from paperworks.paper import Bench, Measured, write_json
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

SCENES = SceneConfig(64, ((10, 14), (10, 14), (24, 30)), told_apart=False)
"""two small digits and a large one; which digit it is would take far longer to learn than where it is"""
TRAIN, TEST, STEPS, BATCH = 2000, 300, 600, 16
ANCHORS = ((8, 12), (16, 22), (28, 36))
AREAS = {"small": (0.0, 16.0), "large": (16.0, 64.0)}
"""sides in pixels; the small digits' boxes are at most 14 wide and high"""

BODIES: dict[str, Callable[[], Backbone]] = {
    "VoVNet": lambda: VoVNet(
        stem_chs=(16, 16, 32),
        stage_conv_chs=(16, 20, 24, 28),
        stage_out_chs=(32, 64, 96, 128),
        block_per_stage=(1, 1, 1, 1),
        stem_stride=2,
        num_classes=0,
    ),
    "DenseNet": lambda: DenseNet(12, (4, 4, 6, 6), 24, num_classes=0, stem_stride=2),
    "ResNet": lambda: ResNet("basic", (1, 1, 1, 1), (20, 32, 56, 88), stem_width=16, stem_pool="none", num_classes=0),
}
"""0.190 to 0.191 million parameters; maps at 1/4, 1/8 and 1/16 go to the head"""


def against(bench: Bench, what: str, others: tuple[str, ...]) -> Measured:
    """Points of average precision by which VoVNet leads the best of `others`, per seed. what: "all", "small" or "large"."""
    found = {name: [_trained(bench, name, seed) for seed in bench.seeds] for name in BODIES}
    leads = [
        found["VoVNet"][number][what] - max(found[other][number][what] for other in others)
        for number in range(len(bench.seeds))
    ]
    means = {name: {key: mean(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    costs = _costs()
    words = "; ".join(
        f"{name} {row['all']:.1f} (small {row['small']:.1f}, large {row['large']:.1f}), {costs[name]['milliseconds']:.1f} ms"
        for name, row in means.items()
    )
    scale = f"RetinaNet heads, {TRAIN} scenes of 64 pixels with three digits, {STEPS} steps, {len(bench.seeds)} seeds"
    numbers: dict[str, Any] = {"means": means, "runs": found, "costs": costs}
    detail = f"average precision in % and the backbone's time for an image: {words}"
    return Measured(mean(leads), scale, detail, leads, list(bench.seeds), numbers, "points")


def _trained(bench: Bench, name: str, seed: int) -> dict[str, float]:
    """Average precision on scenes of held-out digits on held-out photos."""
    folder = bench.folder / f"detect-{name.lower()}-{seed}"
    result = folder / "precision.json"
    if result.is_file():
        return json.loads(result.read_text())
    train = open_scenes(bench.data, "train", TRAIN, SCENES, seed=1000 + seed)
    test = open_scenes(bench.data, "test", TEST, SCENES, seed=7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = make_detector(BODIES[name](), "one-stage", len(train.classes), SCENES.size, ANCHORS, channels=32)
        objective = Detect(detector, background=False)
    optimizer = OptimizerConfig("adamw", lr=2e-3, weight_decay=1e-4, schedule=ScheduleConfig("cosine", warmup=0.1))
    config = TrainConfig(STEPS, BATCH, optimizers={"main": optimizer}, clip=5.0, seed=seed)
    fit(objective, train, config, folder, label=f"{name}, seed {seed}")
    objective.eval()
    detections, truth = [], []
    for batch in Loader(test, 50, seed=0, shuffle=False, drop_last=False):
        detections += objective.detect(batch["image"].float().div(255))
        truth += [{"boxes": boxes, "labels": labels} for boxes, labels in zip(batch["boxes"], batch["labels"])]
    numbers = average_precision(detections, truth, AREAS)
    write_json(result, numbers)
    bench.say(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.1f}" for key, value in numbers.items()))
    return numbers


def _costs() -> dict[str, dict[str, float]]:
    """Parameters, operations and time of the backbones alone, in turns."""
    image = torch.rand(1, 3, SCENES.size, SCENES.size)
    bodies = {name: build().eval() for name, build in BODIES.items()}

    def run(body: Backbone) -> None:
        with torch.inference_mode():
            body(image)

    times = alternate({name: lambda body=body: run(body) for name, body in bodies.items()}, rounds=15, warmup=3)  # type: ignore[misc]
    return {
        name: {
            "parameters": count_parameters(body),
            "mega_macs": count_macs(body, image) / 1e6,
            "milliseconds": 1e3 * median(times[name]),
        }
        for name, body in bodies.items()
    }


# --- both kinds of detectors on one batch -----------------------------------------------------------------------------

STEPS_ON_A_BATCH = 20


def losses_on_a_batch(name: str, kind: Kind) -> tuple[float, float]:
    """Mean loss of the first two and of the last two steps; weights, images and samples come from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = create(name, num_classes=0)
        assert isinstance(body, Backbone)
        detector = make_detector(body, kind, 3, 96, ((16,), (32,), (64,)), channels=64).train()
        images = list(torch.randn(2, 3, 96, 96))
        boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [40.0, 30.0, 90.0, 80.0]])
        targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
        optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
        losses = []
        for _ in range(STEPS_ON_A_BATCH):
            loss = sum(detector(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses[:2]) / 2, sum(losses[-2:]) / 2
