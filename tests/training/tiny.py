"""Small objectives and data that the training tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.training import Batch, Context, Losses, Objective, OptimizerConfig, Phase, ScheduleConfig, TrainConfig, TwoPass

SGD = OptimizerConfig("sgd", lr=0.5, momentum=0.0, schedule=ScheduleConfig("constant"))


def config(steps: int, batch_size: int = 12, **fields: Any) -> TrainConfig:
    """float32, so that results can be compared exactly."""
    return TrainConfig(**{"steps": steps, "batch_size": batch_size, "precision": "32", "log_every": 1} | fields)


class Pictures:
    """Random 8x8 pictures whose label is their brightest column."""

    def __init__(self, count: int = 60, seed: int = 0):
        self.images = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        self.labels = self.images.float().sum((1, 2)).argmax(-1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter drawn anew from a seed of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


class Classify(Objective):
    """Cross-entropy; with `norm` and `dropout` the network keeps statistics and draws global random numbers."""

    needs = {"image": "float NCHW in [0, 1]", "label": "int64 [B]"}

    def __init__(self, norm: bool = False, dropout: float = 0.0):
        super().__init__()
        self.model = seeded(
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(64, 24),
                nn.BatchNorm1d(24) if norm else nn.Identity(),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(24, 8),
            )
        )

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        loss = F.cross_entropy(self.model(batch["image"]), batch["label"])
        return Losses.mean(loss, len(batch["label"]))


class Masked(Objective):
    """Reconstructs the bright pixels only: every sample, so every micro-batch and process, has another number of items."""

    def __init__(self, depth: int = 2):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(depth))
        self.out = nn.Linear(64, 64)
        seeded(self)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        image = batch["image"].flatten(1)
        mask = image > 0.2 + 0.6 * image.mean(1, keepdim=True)
        hidden = image
        for block in self.blocks:
            hidden = hidden + block(hidden)
        errors = (self.out(hidden) - image).square()[mask]
        return Losses(errors.sum(), mask.sum(), {"error": errors.detach().mean()})


class Adversarial(Objective):
    """A generator and a discriminator that starts late and trains every second step, a frozen network, a teacher that
    follows the generator, a buffer that counts, and a Python number: everything a checkpoint has to carry."""

    teacher_steps: Tensor

    def __init__(self, noise: bool = True) -> None:
        super().__init__()
        self.noise = noise
        self.generator = seeded(nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 64)), 1)
        self.discriminator = seeded(nn.Sequential(nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 1)), 2)
        self.frozen = seeded(nn.Linear(64, 4), 3).requires_grad_(False)
        self.teacher = seeded(nn.Linear(64, 16), 1).requires_grad_(False)
        self.register_buffer("teacher_steps", torch.zeros(()))
        self.turns = 0

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("g", modules=("generator",), optimizer="g"),
            Phase("d", modules=("discriminator",), optimizer="d", every=2, start=3),
        )

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        real = batch["image"].flatten(1)
        given = real + torch.randn(real.shape, generator=ctx.rng("noise")) * ctx.values["noise"] if self.noise else real
        fake = self.generator(given)
        if phase == "g":
            reconstruction = F.mse_loss(self.frozen(fake), self.frozen(real), reduction="none").mean(1)
            errors = reconstruction - 0.01 * self.discriminator(fake)[:, 0]
        else:
            errors = F.relu(1 - self.discriminator(real))[:, 0] + F.relu(1 + self.discriminator(fake.detach()))[:, 0]
        return Losses(errors.sum(), len(real), {"loss": errors.detach().mean()})

    def after_step(self, ctx: Context) -> None:
        for kept, live in zip(self.teacher.parameters(), self.generator[0].parameters()):  # type: ignore[index]
            kept.lerp_(live, 0.1)
        self.teacher_steps += 1
        self.turns += 1

    def schedules(self) -> dict[str, Any]:
        return {"noise": lambda step, total: 0.1 * (1 - step / total)}

    def extra_state(self) -> dict[str, Any]:
        return {"turns": self.turns}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.turns = state["turns"]


ADVERSARIAL = {"g": OptimizerConfig("adamw", lr=3e-3, weight_decay=0.05), "d": OptimizerConfig("sgd", lr=1e-2, nesterov=True)}


class Contrast(TwoPass):
    """Pictures against their mirror images, with a learned temperature and dropout that both passes must draw alike."""

    def __init__(self, dropout: float = 0.0, norm: bool = False):
        super().__init__()
        self.tower = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.Tanh(), nn.Linear(16, 8)
        )
        seeded(self)
        self.dropout = dropout
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def encode(self, batch: Batch, phase: str, ctx: Context) -> dict[str, Tensor]:
        image = F.dropout(batch["image"], self.dropout)  # draws from the global generator
        return {"left": F.normalize(self.tower(image)), "right": F.normalize(self.tower(image.flip(-1)))}

    def pair_loss(self, mine: dict[str, Tensor], everyone: dict[str, Tensor], first: int, phase: str, ctx: Context) -> Losses:
        target = torch.arange(first, first + len(mine["left"]), device=ctx.device)
        scale = self.temperature.exp()
        total = F.cross_entropy(scale * mine["left"] @ everyone["right"].T, target, reduction="sum")
        total = total + F.cross_entropy(scale * mine["right"] @ everyone["left"].T, target, reduction="sum")
        return Losses(total, len(target), {"loss": total.detach() / len(target)})


def largest_difference(first: nn.Module | dict[str, Tensor], second: nn.Module | dict[str, Tensor]) -> float:
    one = first.state_dict() if isinstance(first, nn.Module) else first
    other = second.state_dict() if isinstance(second, nn.Module) else second
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def equal(first: nn.Module | dict[str, Tensor], second: nn.Module | dict[str, Tensor]) -> bool:
    return largest_difference(first, second) == 0.0
