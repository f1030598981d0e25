"""NASNet's search on a small test bed: a controller trained with PPO against random search, then the best of both longer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paperworks.backbones.genotype import NASNET_A, Genotype
from paperworks.backbones.nasnet import NASNet
from paperworks.config import to_plain
from paperworks.data import ImageSource, Transformed, open_images
from paperworks.data.transforms import eval_crop
from paperworks.errors import InputError
from paperworks.paper import Run, write_json
from paperworks.papers._classification import in_order
from paperworks.search.archive import Archive, Record
from paperworks.search.cell_space import CellSpace
from paperworks.search.ppo import PPOConfig, PPOSearch
from paperworks.search.searcher import RandomSearch, Searcher, evaluated, search
from paperworks.search.short_training import ShortTraining
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig
from paperworks.training.progress import TrainingProgress

LAST = 20
"""proposals at the end of a search whose mean reward says what it has learned"""


def short(steps: int, batch: int = 50, lr: float = 5e-3) -> TrainConfig:
    schedule = ScheduleConfig("cosine", warmup=0.1)
    optimizer = OptimizerConfig("adamw", lr=lr, weight_decay=0.05, schedule=schedule)
    return TrainConfig(steps, batch, optimizers={"main": optimizer}, clip=5.0, precision="32")


@dataclass(frozen=True)
class SearchConfig:
    data: str = "default"
    image_size: int = 16
    """pixels; images are resized and cut to it"""
    margin: float = 1.125
    """the shorter side before cutting, as a multiple of that"""
    held_out: float = 0.25
    """share of the training images on which rewards are measured"""
    blocks: int = 5
    """of a cell"""
    num_cells: int = 2
    """normal cells of a child"""
    reductions: int = 1
    filters: int = 8
    stem_stride: int = 2
    evaluations: int = 50
    """children of each of the two searches"""
    batch: int = 5
    """children between two updates of the controller"""
    controller: PPOConfig = field(default_factory=lambda: PPOConfig(lr=1e-2))
    """the paper's learning rate is for 20,000 children; this one was set on made-up rewards, without any training"""
    child: TrainConfig = field(default_factory=lambda: short(40))
    top: int = 3
    """cells of each search that are then trained longer, to find the one that stays best"""
    longer: TrainConfig = field(default_factory=lambda: short(120))
    seed: int = 0


class TestBed:
    """Images in memory, the space, and networks from its architectures."""

    __test__ = False  # pytest takes it for a test otherwise

    def __init__(self, config: SearchConfig):
        if config.top < 1:
            raise InputError(f"top={config.top}: at least the best cell of a search is trained longer")
        self.config = config
        self.space = CellSpace(config.blocks)
        train = open_images(config.data, split="train", labels="required", channels=3)
        test = open_images(config.data, split="test", labels="required", channels=3)
        if not 0 < config.held_out < 1 or train.classes is None:
            raise InputError(f"held_out={config.held_out}: it is a share of the training images, above 0 and below 1")
        self.classes = len(train.classes)
        self.frame = frame = eval_crop(config.image_size, margin=config.margin)
        chosen = torch.rand(len(train), generator=torch.Generator().manual_seed(config.seed)) < config.held_out
        self.train, self.all = self._samples(train.subset(~chosen)), train
        self.judged = list(in_order(train.subset(chosen), frame, 250))
        self.test = list(in_order(test, frame, 250))

    def _samples(self, source: ImageSource) -> list[dict[str, Any]]:
        data = Transformed(source, self.frame, seed=0)
        return [{name: sample[name] for name in ("image", "label")} for sample in map(data.__getitem__, range(len(data)))]

    def build(self, arch: Sequence[int]) -> NASNet:
        c = self.config
        return NASNet(
            self.space.genotype(arch).to_plain(),
            num_cells=c.num_cells,
            reductions=c.reductions,
            filters=c.filters,
            stem="cifar",
            stem_stride=c.stem_stride,
            num_classes=self.classes,
        )

    def reward(self, training: TrainConfig) -> ShortTraining:
        """Judges a child on held-out training images."""
        return ShortTraining(self.build, self.train, self.judged, self.classes, training)

    def final(self) -> ShortTraining:
        """Trains on all training images for longer, judges on test images."""
        return ShortTraining(self.build, self._samples(self.all), self.test, self.classes, self.config.longer)

    def archive(self, path: Path, training: TrainConfig) -> Archive:
        c = self.config
        network = [c.num_cells, c.reductions, c.filters, c.stem_stride]
        key = {"data": c.data, "pixels": c.image_size, "margin": c.margin, "held_out": c.held_out, "seed": c.seed}
        return Archive(path, self.space, key | {"network": network, "training": to_plain(training)})


def search_stage(config: SearchConfig, run: Run) -> Mapping[str, Any]:
    """Both searches; each evaluation is on disk before the next one begins."""
    bed = TestBed(config)
    found = {name: searched(bed, name, run.stage_folder("search")) for name in ("ppo", "random")}
    return {
        "train_images": len(bed.train),
        "held_out": sum(len(batch["label"]) for batch in bed.judged),
        "space": float(bed.space.size()),
        "rewards": {name: [record.reward for record in records] for name, records in found.items()},
        "evaluated_seconds": {name: sum(record.seconds for record in records) for name, records in found.items()},
    }


def searched(bed: TestBed, name: str, folder: Path) -> list[Record]:
    """The proposals of one searcher, "ppo" or "random", in order."""
    c = bed.config
    searcher: Searcher
    searcher = PPOSearch(bed.space, c.controller, c.seed) if name == "ppo" else RandomSearch(bed.space, c.seed)
    archive = bed.archive(folder / f"{name}.jsonl", c.child)
    label = {"ppo": "controller", "random": "random search"}[name]
    with TrainingProgress(label, c.evaluations, 0) as progress:

        def told(done: int, record: Record) -> None:
            progress.losses({"reward": record.reward, "best": archive.best()[0].reward})
            progress.advance(done)

        return search(searcher, bed.reward(c.child), archive, c.evaluations, batch=c.batch, told=told)


def longer_stage(config: SearchConfig, run: Run) -> Mapping[str, Any]:
    """The best cells of each search trained for longer and judged on the same held-out images as before; then what comes out
    first of either, and the published cells where the space has them, trained alike on all images and judged on test images."""
    bed, folder = TestBed(config), run.stage_folder("longer")
    judge, tried = bed.reward(config.longer), bed.archive(folder / "tried.jsonl", config.longer)
    known = {
        name: bed.archive(run.stage_folder("search") / f"{name}.jsonl", config.child).best(config.top)
        for name in ("ppo", "random")
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in known}
    with TrainingProgress("trained longer", sum(map(len, known.values())), 0) as progress:
        for name, record in [(name, record) for name, best in known.items() for record in best]:
            rows[name].append(_row(evaluated(record.arch, judge, tried)))
            progress.losses({"reward": rows[name][-1]["reward"]})
            progress.advance(sum(map(len, rows.values())))
    chosen = {name: max(found, key=lambda row: row["reward"])["arch"] for name, found in rows.items()}
    write_json(run.folder / "cell.json", bed.space.genotype(chosen["ppo"]).to_plain())
    cells = {"controller's best": chosen["ppo"], "random search's best": chosen["random"]}
    if config.blocks == len(NASNET_A.normal.blocks):
        cells["NASNet-A"] = bed.space.arch(NASNET_A)
    archive, final = bed.archive(folder / "final.jsonl", config.longer), bed.final()
    shown = {name: _row(evaluated(bed.space.check(arch), final, archive)) for name, arch in cells.items()}
    return {"tried": rows, "chosen": chosen, "final": shown}


def _row(record: Record) -> dict[str, Any]:
    return {"arch": list(record.arch), "reward": record.reward, **record.metrics}


def read_cell(path: str) -> dict[str, Any]:
    """A genotype that a search left (cell.json), in its plain form."""
    file = Path(path)
    if file.is_dir():
        file /= "cell.json"
    if not file.is_file():
        raise InputError(f"{path}: no such file of a cell; `paperworks run nasnet --recipe search` leaves cell.json")
    try:
        return Genotype.from_plain(json.loads(file.read_text())).to_plain()
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is not a cell's table: {error}") from None
