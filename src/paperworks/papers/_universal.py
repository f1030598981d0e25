"""UniRepLKNet on series, sounds, videos and point clouds: small real or made data, one network class, a baseline beside each.

Series are real (statsmodels' CO2, sunspots, Nile, El Nino and macro-economic tables), videos show real digits that move, sounds
are synthesised and points are sampled from solids: no recorded speech or scanned objects come with any package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.modalities import (
    PointHead,
    PointProjection,
    audio_image,
    log_mel,
    mosaic,
    rotations,
    standardised,
    viewed,
)
from paperworks.backbones.series import SeriesForecaster
from paperworks.backbones.unireplknet import UniRepLKNet
from paperworks.data import open_images
from paperworks.errors import InputError
from paperworks.paper import Run, first_process
from paperworks.reporting import Report
from paperworks.reporting.style import styled
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit
from paperworks.training.objective import Batch, Context, Losses, Objective

LENGTH, HORIZON = 48, 24


@dataclass(frozen=True)
class UniversalConfig:
    steps: int = 250
    seed: int = 0
    made: float = 1.0
    """of the sounds, videos and clouds: this share of the usual numbers"""

    def counts(self, train: int, test: int) -> tuple[int, int]:
        return max(1, round(self.made * train)), max(1, round(self.made * test))


class Samples:
    """Columns of equal length as a data set of dicts."""

    def __init__(self, **columns: Tensor):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class Answer(Objective):
    """Cross-entropy for integer answers, squared error for others. network: input -> logits or forecast."""

    needs = {"input": "float", "answer": "labels or numbers"}

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        made, answer = self.network(batch["input"]), batch["answer"]
        if answer.is_floating_point():
            # windows have scales of their own; each counts alike
            spread = batch["input"].std(1, keepdim=True).clamp(min=1e-5)
            return Losses.mean(((made - answer) / spread).square().mean(), len(made))
        return Losses.mean(F.cross_entropy(made, answer, label_smoothing=0.1), len(made))


def train_config(steps: int, seed: int, batch: int = 32, lr: float = 2e-3) -> TrainConfig:
    optimizer = OptimizerConfig("adamw", lr=lr, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.1))
    return TrainConfig(steps, batch, optimizers={"main": optimizer}, clip=5.0, seed=seed, checkpoint_every=100)


def _network(channels: int, classes: int, stem_stride: int = 4) -> UniRepLKNet:
    return UniRepLKNet(channels, classes, (1, 1, 1), (24, 48, 96), (3, 13, 13), stem_stride=stem_stride, layer_scale=1.0)


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


# --- series -----------------------------------------------------------------------------------------------------------


def real_series() -> dict[str, Tensor]:
    """Float series [L] without gaps."""
    try:
        import statsmodels.api as sm
    except ImportError:
        raise InputError("the real series come with statsmodels: pip install statsmodels") from None
    tables = {
        name: getattr(sm.datasets, name).load_pandas().data for name in ("co2", "sunspots", "nile", "elnino", "macrodata")
    }
    co2 = tables["co2"]["co2"].interpolate().dropna().to_numpy()
    weeks = torch.tensor(co2.copy(), dtype=torch.float32)
    found = {
        "CO2 in the air (fortnights)": weeks[::2],
        "sunspots (years)": torch.tensor(tables["sunspots"]["SUNACTIVITY"].to_numpy().copy(), dtype=torch.float32),
        "Nile (years)": torch.tensor(tables["nile"]["volume"].to_numpy().copy(), dtype=torch.float32),
        "El Nino sea temperature (months)": torch.tensor(
            tables["elnino"].iloc[:, 1:].to_numpy().copy(), dtype=torch.float32
        ).flatten(),
    }
    for name in ("realgdp", "unemp", "infl"):
        found[f"{name} (quarters)"] = torch.tensor(tables["macrodata"][name].to_numpy().copy(), dtype=torch.float32)
    return found


def series_windows(split: str) -> dict[str, Tensor]:
    """Windows and what follows them. Each series' last quarter is for testing, with windows that start inside it or just
    before, so that no value to be forecast was ever trained on."""
    inputs, answers = [], []
    for series in real_series().values():
        border = int(0.75 * len(series))
        part = series[:border] if split == "train" else series[max(0, border - LENGTH) :]
        rows = part.unfold(0, LENGTH + HORIZON, 1) if len(part) >= LENGTH + HORIZON else part[:0].view(0, LENGTH + HORIZON)
        rows = rows[:: max(1, len(rows) // 150)]  # no series outweighs the others
        inputs.append(rows[:, :LENGTH, None])
        answers.append(rows[:, LENGTH:, None])
    return {"input": torch.cat(inputs), "answer": torch.cat(answers)}


def series_error(made: Tensor, part: Mapping[str, Tensor]) -> float:
    """Mean squared error in units of each window's deviation."""
    spread = part["input"].std(1, keepdim=True).clamp(min=1e-5)
    return float(((made - part["answer"]) / spread).square().mean())


def train_series(config: UniversalConfig, run: Run) -> dict[str, Any]:
    train, test = series_windows("train"), series_windows("test")
    objective = Answer(seeded(config.seed, SeriesForecaster))
    fit(objective, Samples(**train), train_config(config.steps, config.seed), run.stage_folder("series"), label="series")
    objective.eval()
    with torch.no_grad():
        made = objective.network(test["input"])
    chosen = torch.linspace(0, len(made) - 1, 4).long()
    torch.save(
        {"window": test["input"][chosen], "truth": test["answer"][chosen], "made": made[chosen]},
        run.stage_folder("series") / "shown.pt",
    )
    last = test["input"][:, -1:].expand_as(test["answer"])
    return {
        "what": "squared error of 24 steps, in units of the window's deviation",
        "network": series_error(made, test),
        "baseline": series_error(last, test),
        "baseline is": "the last value goes on",
        "better": "lower",
        "data": f"{len(real_series())} real series of statsmodels, {len(test['input'])} test windows",
    }


# --- sound ------------------------------------------------------------------------------------------------------------

SOUNDS = ("steady", "rising", "falling", "trill", "octave", "fifth", "beats", "clicks")


def sound(kind: int, generator: torch.Generator, rate: int = 8000) -> Tensor:
    """Half a second of one of eight patterns at a random pitch, with harmonics and noise: [samples]."""
    times = torch.arange(rate // 2) / rate
    draws = torch.rand(4, generator=generator)
    pitch = 250.0 * 2 ** float(1.5 * draws[0])
    curve = {
        "rising": 1 + 0.6 * times / times[-1],
        "falling": 1.6 - 0.6 * times / times[-1],
        "trill": 1 + 0.15 * torch.sign(torch.sin(2 * math.pi * 10 * times)),
    }.get(SOUNDS[kind], torch.ones_like(times))
    phase = 2 * math.pi * torch.cumsum(pitch * curve, 0) / rate
    wave = _harmonics(phase)
    second = {"octave": 2.0, "fifth": 1.5, "beats": 1.02}.get(SOUNDS[kind])
    if second is not None:
        wave = wave + _harmonics(second * phase)
    if SOUNDS[kind] == "clicks":
        wave = wave * (torch.sin(2 * math.pi * 12 * times) > 0)
    loud = 0.1 + 0.3 * draws[1]
    noise = torch.randn(len(times), generator=generator) * (0.02 + 0.25 * draws[2])
    return (loud * (wave + noise)).clamp(-1, 1)


def _harmonics(phase: Tensor) -> Tensor:
    return torch.sin(phase) + torch.sin(2 * phase) / 2 + torch.sin(3 * phase) / 3


Statistics = tuple[float, float]
"""mean and deviation"""


def sounds(count: int, seed: int, statistics: Statistics | None = None) -> tuple[dict[str, Tensor], Statistics]:
    """Samples, and the statistics they were standardised with: those given, or their own for the training data."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(SOUNDS), (count,), generator=generator)
    waves = torch.stack([sound(int(kind), generator) for kind in labels])
    energies = log_mel(waves, rate=8000, bands=48)
    mean, deviation = statistics or (float(energies.mean()), float(energies.std()))
    images = audio_image(standardised(energies, mean, deviation), bands=48)
    return {"input": images, "answer": labels}, (mean, deviation)


# --- video ------------------------------------------------------------------------------------------------------------


def videos(count: int, seed: int, split: str) -> dict[str, Tensor]:
    """Real digits drifting in one of eight directions over nine frames of 24 pixels, noise on every frame."""
    generator = torch.Generator().manual_seed(seed)
    source = open_images("default", split="train" if split == "train" else "test", channels=3)
    labels = torch.randint(8, (count,), generator=generator)
    clips = torch.zeros(count, 3, 9, 24, 24)
    for row, kind in enumerate(labels.tolist()):
        digit = source[int(torch.randint(len(source), (), generator=generator))]["image"][None].float() / 255
        digit = F.interpolate(digit, size=(14, 14), mode="bilinear", antialias=True)[0]
        angle = 2 * math.pi * kind / 8
        begin = 5 + 5.2 * (torch.rand(2, generator=generator) - 0.5)  # a place by itself says nothing about the direction
        for frame in range(9):
            along = (frame - 4) * 0.6
            top, left = round(float(begin[0]) - along * math.sin(angle)), round(float(begin[1]) + along * math.cos(angle))
            top, left = min(max(top, 0), 10), min(max(left, 0), 10)
            clips[row, :, frame, top : top + 14, left : left + 14] = digit
    clips += 0.15 * torch.randn(clips.shape, generator=generator)
    return {"input": mosaic(clips), "answer": labels}


# --- points -----------------------------------------------------------------------------------------------------------

SOLIDS = ("sphere", "cube", "cylinder", "cone", "torus", "disc")


def solid(kind: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3] points on a solid's surface, stretched a little, turned about the vertical axis, with noise."""
    u, v = torch.rand(2, count, generator=generator)
    angle = 2 * math.pi * u
    ring = torch.stack((angle.cos(), angle.sin()), 1)
    match SOLIDS[kind]:
        case "sphere":
            height = 2 * v - 1
            points = torch.cat((ring * (1 - height**2).clamp(min=0).sqrt()[:, None], height[:, None]), 1)
        case "cube":
            points = 2 * torch.rand(count, 3, generator=generator) - 1
            side = torch.randint(3, (count,), generator=generator)
            points[torch.arange(count), side] = points[torch.arange(count), side].sign()
        case "cylinder":
            points = torch.cat((ring, 2 * v[:, None] - 1), 1)
        case "cone":
            points = torch.cat((ring * v.sqrt()[:, None], 1 - 2 * v.sqrt()[:, None]), 1)
        case "torus":
            tube = 2 * math.pi * v
            points = torch.cat((ring * (0.7 + 0.3 * tube.cos())[:, None], 0.3 * tube.sin()[:, None]), 1)
        case _:
            points = torch.cat((ring * v.sqrt()[:, None], torch.zeros(count, 1)), 1)
    points = points * (0.8 + 0.4 * torch.rand(3, generator=generator))
    turn = 2 * math.pi * float(torch.rand((), generator=generator))
    about = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    return points @ about.T + 0.03 * torch.randn(count, 3, generator=generator)


def clouds(count: int, seed: int, points: int = 256) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(SOLIDS), (count,), generator=generator)
    return {"input": torch.stack([solid(int(kind), points, generator) for kind in labels]), "answer": labels}


class PointNetwork(nn.Module):
    """Clouds [N, P, 3] -> logits: fixed views, projected, through the image network, their maps side by side."""

    def __init__(self, classes: int, views: int = 2, size: int = 48):
        super().__init__()
        self.views = views
        self.project = PointProjection(8, 8, 16, 16, size, size)
        self.network = _network(3, 0)
        self.head = PointHead(views * self.network.num_features, classes, views)

    def pictures(self, points: Tensor) -> Tensor:
        turned = viewed(points, rotations(self.views).to(points))
        return self.project(points.repeat_interleave(self.views, 0), turned)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.network.forward_features(self.pictures(points)))


# --- stages -----------------------------------------------------------------------------------------------------------


def _classified(
    config: UniversalConfig,
    run: Run,
    name: str,
    build: Callable[[], nn.Module],
    train: dict[str, Tensor],
    test: dict[str, Tensor],
) -> dict[str, Any]:
    """Trains a classifier; the baseline is logistic regression on the raw numbers."""
    from sklearn.linear_model import LogisticRegression

    objective = Answer(seeded(config.seed, build))
    fit(objective, Samples(**train), train_config(config.steps, config.seed), run.stage_folder(name), label=name)
    objective.eval()
    with torch.no_grad():
        answers = torch.cat([objective.network(part).argmax(1) for part in test["input"].split(100)])
    linear = LogisticRegression(C=0.01, max_iter=100).fit(train["input"].flatten(1).numpy(), train["answer"].numpy())
    shown = test["input"][:8]
    with torch.no_grad():
        pictures = objective.network.pictures(shown) if isinstance(objective.network, PointNetwork) else shown
    torch.save({"input": pictures, "answer": test["answer"][:8]}, run.stage_folder(name) / "shown.pt")
    return {
        "what": "share recognised",
        "network": float((answers == test["answer"]).float().mean()),
        "baseline": float(linear.score(test["input"].flatten(1).numpy(), test["answer"].numpy())),
        "baseline is": "a linear classifier on the raw numbers",
        "better": "higher",
    }


def train_sound(config: UniversalConfig, run: Run) -> dict[str, Any]:
    count, held_out = config.counts(2000, 500)
    train, statistics = sounds(count, 2 * config.seed)
    test, _ = sounds(held_out, 2 * config.seed + 1, statistics)
    found = _classified(config, run, "sound", lambda: _network(1, len(SOUNDS)), train, test)
    return found | {"data": f"eight synthesised patterns ({', '.join(SOUNDS)}), noise"}


def train_video(config: UniversalConfig, run: Run) -> dict[str, Any]:
    count, held_out = config.counts(2000, 500)
    train, test = videos(count, 2 * config.seed, "train"), videos(held_out, 2 * config.seed + 1, "test")
    found = _classified(config, run, "video", lambda: _network(3, 8), train, test)
    return found | {"data": "real digits drifting from any place in eight directions, nine frames as one picture"}


def train_points(config: UniversalConfig, run: Run) -> dict[str, Any]:
    count, held_out = config.counts(1500, 400)
    train, test = clouds(count, 2 * config.seed), clouds(held_out, 2 * config.seed + 1)
    found = _classified(config, run, "points", lambda: PointNetwork(len(SOLIDS)), train, test)
    return found | {"data": f"256 points on {', '.join(SOLIDS)}, turned and noisy"}


MODALITIES: dict[str, Callable[[UniversalConfig, Run], dict[str, Any]]] = {
    "series": train_series,
    "sound": train_sound,
    "video": train_video,
    "points": train_points,
}


def train_modality(name: str, config: UniversalConfig, run: Run) -> Mapping[str, Any]:
    return MODALITIES[name](config, run)


def write_report(config: UniversalConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    found = {name: run.result(name) for name in MODALITIES}
    page = Report("UniRepLKNet on four kinds of data", "one network class; only the first layer's input channels differ")
    page.figures({name: f"{part['network']:.3g}" for name, part in found.items()})
    rows = [
        [name, part["data"], part["what"], f"{part['network']:.3f}", f"{part['baseline']:.3f} ({part['baseline is']})"]
        for name, part in found.items()
    ]
    page.table("Beside a baseline", ["data", "made of", "measured", "network", "baseline"], rows)
    page.figure("Forecasts on held-out years", _forecasts(torch.load(run.folder / "series" / "shown.pt")))
    for name, title in (
        ("sound", "Sounds as the network sees them"),
        ("video", "Videos as mosaics"),
        ("points", "Clouds, two views each"),
    ):
        shown = torch.load(run.folder / name / "shown.pt")["input"].float()
        low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
        page.images(title, ((shown - low) / (high - low)).expand(-1, 3, -1, -1))
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return {name: {"network": part["network"], "baseline": part["baseline"]} for name, part in found.items()}


def _forecasts(shown: Mapping[str, Tensor]) -> Any:
    with styled() as pyplot:
        figure, axes = pyplot.subplots(2, 2, figsize=(7.0, 4.0))
        for row, place in enumerate(axes.flat):
            window, truth, made = (shown[name][row, :, 0].tolist() for name in ("window", "truth", "made"))
            after = range(LENGTH, LENGTH + HORIZON)
            place.plot(range(LENGTH), window, color="grey")
            place.plot(after, truth, label="what came")
            place.plot(after, made, label="forecast", linestyle="--")
        axes.flat[0].legend(fontsize=8)
        figure.tight_layout()
    return figure
