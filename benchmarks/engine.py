"""What the training engine costs over the loop a careful user would write by hand: the same model, batches, optimiser,
clipping and precision, a loss read every 20 steps, the weights saved at the end. Both sides include their set-up."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, compare
from paperworks.data import Loader
from paperworks.training import Batch, Context, Losses, Objective, OptimizerConfig, ScheduleConfig, TrainConfig, autocast, fit
from paperworks.training.precision import Precision

STEPS = 100  # the set-up and the checkpoint count too: a run shorter than this is mostly those


class Random:
    """Digits-sized data held in memory."""

    def __init__(self, count: int, size: int):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, 10, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}


class Classify(Objective):
    needs = {"image": "float NCHW in [0, 1]", "label": "int64 [B]"}

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        return Losses.mean(F.cross_entropy(self.model(batch["image"]).float(), batch["label"]), len(batch["label"]))


def transformer() -> nn.Module:
    """6 blocks of 192, 64 tokens."""
    block = nn.TransformerEncoderLayer(192, 6, 768, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    stem = nn.Sequential(nn.Conv2d(3, 192, 4, stride=4), nn.Flatten(2))
    return nn.Sequential(
        stem, _Swap(), nn.TransformerEncoder(block, 6, enable_nested_tensor=False), _Mean(), nn.Linear(192, 10)
    )


def convolutions() -> nn.Module:
    """Ten 3x3 convolutions with batch normalisation: many small tensors, many buffers."""
    layers: list[nn.Module] = []
    widths = [3, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128]
    for number, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, 2 if number in (2, 5) else 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class _Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@dataclass(frozen=True)
class Job:
    make: Callable[[], nn.Module]
    data: Random
    batch: int
    folder: Path
    steps: int = STEPS
    precision: Precision = "auto"


def engine(job: Job) -> nn.Module:
    torch.manual_seed(0)
    constant = OptimizerConfig(lr=1e-3, weight_decay=0.05, schedule=ScheduleConfig("constant"))
    config = TrainConfig(job.steps, job.batch, clip=1.0, optimizers={"main": constant}, precision=job.precision)
    with tempfile.TemporaryDirectory(dir=job.folder) as run:
        return fit(Classify(job.make()), job.data, config, run, label="").objective


def by_hand(job: Job) -> nn.Module:
    torch.manual_seed(0)
    model = job.make().train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    batches = Loader(job.data, job.batch, seed=0).forever()
    for step in range(job.steps):
        drawn = next(batches)
        images = drawn["image"].float().div_(255)
        with autocast(job.precision):
            loss = F.cross_entropy(model(images).float(), drawn["label"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            float(loss.detach())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, job.folder / "by_hand.pt")
    return model


def run() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for what, make, size, batch in (
            ("transformer 6x192, 64 tokens, batch 32", transformer, 32, 32),
            ("ten convolutions with batch norm, 32x32, batch 32", convolutions, 32, 32),
        ):
            job = Job(make, Random(512, size), batch, folder)
            exact = replace(job, steps=1, precision="32")  # later steps of Adam enlarge rounding of gradients near zero
            ours, peer = engine(exact).state_dict(), by_hand(exact).state_dict()
            for name, value in peer.items():
                torch.testing.assert_close(ours[f"model.{name}"], value, rtol=1e-3, atol=1e-4)
            ratio = compare(partial(engine, job), partial(by_hand, job), rounds=5, warmup=1)
            rows.append(Row(f"{STEPS} steps: {what}", "training.fit", "bare loop", ratio, target=0.95))
    return rows
