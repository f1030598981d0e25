"""KimiaNet's first half: slides to mosaics of tiles, weak labels to a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paperworks.backbones.inference import Prepared, prepare_for_inference
from paperworks.backbones.kimianet import KimiaNet, official_name
from paperworks.backbones.registry import create
from paperworks.data import ImageSource, Loader, Transformed
from paperworks.data.mosaic import Mosaic, MosaicConfig, make_mosaic
from paperworks.data.patch_lists import find_patch_lists, listed_tiles, read_patch_list
from paperworks.data.progress import watched
from paperworks.data.slide_set import MADE, SlideEntry, SlideSet, list_slides, made_slides
from paperworks.data.slides import Tiles, TilingConfig, tile_slide
from paperworks.data.stains import Restained
from paperworks.data.transforms import to_float, train_shift
from paperworks.errors import InputError
from paperworks.layers.pretrained import load_official, read_weights
from paperworks.objectives.classify import Classify
from paperworks.paper import Run, first_process, write_json
from paperworks.training import TrainConfig, fit

IN_MEMORY = 1_000_000_000
"""bytes of training tiles up to which they are kept; larger sets are read from the slides while training"""


@dataclass(frozen=True)
class MadeConfig:
    patients: int = 20
    """of each kind of tissue"""
    slides: int = 2
    """of each patient"""
    size: int = 448
    tumour: float = 0.25


@dataclass(frozen=True)
class SlidesConfig:
    data: str = "made"
    """made-up slides, or a folder with a sub-folder of slides for each class"""
    made: MadeConfig = MadeConfig()
    scanned_at: float | None = None
    """magnification of all slides, in place of what their files say"""
    held_out: float = 0.4
    """share of each class's patients whose slides are searched"""
    tiling: TilingConfig = field(default_factory=TilingConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    lists: str = ""
    """folder of KimiaNet's released lists of patches: slides that they name are cut as they say"""
    network: dict[str, Any] = field(default_factory=dict)
    """arguments of KimiaNet in place of the published ones"""
    weights: str = ""
    """start from these: the authors' file, torchvision's DenseNet, or one of ours"""
    blocks: int = 4
    """dense blocks that learn: 1 to 4 are the paper's configurations I to IV"""
    shift: int = 0
    """pixels by which training tiles are moved; they are mirrored in any case"""
    stain: float = 0.0
    """stains of training tiles change by a factor of up to 1 + this, so that a patient's colours teach less (ours)"""
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=100, batch_size=64))
    top: int = 3
    """nearest slides that vote"""
    seed: int = 0


# --- slides and their mosaics -------------------------------------------------------------------------------------------


def open_set(config: SlidesConfig) -> SlideSet:
    if config.data in MADE:
        made = config.made
        return made_slides(made.patients, made.slides, config.seed, made.size, made.tumour)
    return list_slides(config.data, config.scanned_at)


Lists = Mapping[str, Sequence[tuple[int, int]]]
"""slide file -> corners of its patches"""


def slide_mosaic(entry: SlideEntry, config: SlidesConfig, lists: Lists | None = None) -> Mosaic:
    """The mosaic of a slide, or what a list names of it."""
    slide = entry.open()
    corners = (lists or {}).get(Path(entry.path).name)
    if not corners:
        return make_mosaic(tile_slide(slide, config.tiling), config.mosaic)
    tiles = listed_tiles(slide, corners, config.tiling)
    everything = torch.arange(len(tiles))
    return Mosaic(tiles, torch.zeros_like(everything), torch.zeros(len(tiles)), everything)


def read_lists(config: SlidesConfig) -> Lists:
    found: dict[str, Sequence[tuple[int, int]]] = {}
    for path in find_patch_lists(config.lists).values() if config.lists else ():
        found |= read_patch_list(path)
    return found


@dataclass
class Chosen:
    """Slides that could be used, with the tiles that were chosen of each."""

    slides: SlideSet
    rows: list[dict[str, Any]]
    """per slide: corners, share of nuclei and side of its tiles, size of its mosaic and of itself"""
    images: Tensor | None
    """uint8 [N, 3, size, size], all tiles one after the other, where they are few enough"""
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def owners(self) -> Tensor:
        """int64 [N]: the slide of every tile."""
        return torch.tensor([number for number, row in enumerate(self.rows) for _ in row["corners"]], dtype=torch.int64)

    def tiles(self, size: int) -> ImageSource:
        """All tiles with the labels of their slides, in memory or read from the slides when they are asked for."""
        slides, reader = self.slides, SlideTiles(self.slides, self.rows, size)
        labels = slides.labels[self.owners]
        if self.images is None:
            return ImageSource(reader, name=slides.name, labels=labels, classes=slides.classes)
        keys = [reader.key(number) for number in range(len(reader))]
        return ImageSource.from_tensor(self.images, labels, name=slides.name, classes=slides.classes, keys=keys)


def collect(slides: SlideSet, config: SlidesConfig, label: str) -> Chosen:
    """Mosaics of all slides; what cannot be used is left out and listed."""
    used, rows, images, skipped, size = [], [], [], [], 0
    lists = read_lists(config)
    for number, entry in enumerate(watched(slides.entries, len(slides), label)):
        try:
            mosaic = slide_mosaic(entry, config, lists)
        except InputError as error:
            skipped.append((entry.name, str(error)))
            continue
        used.append(number)
        best, slide = mosaic.best, mosaic.tiles.slide
        size += len(best) * 3 * best.size**2
        if size <= IN_MEMORY:
            images.append(best.images())
        rows.append(
            {
                "corners": best.corners.tolist(),
                "cells": [round(value, 4) for value in mosaic.cells[mosaic.kept].tolist()],
                "side": best.side,
                "mosaic": len(mosaic.tiles),
                "pixels": slide.width * slide.height,
            }
        )
    if not used:
        raise InputError(f"{slides.name}: no slide can be used; the first: {skipped[0][1]}")
    return Chosen(slides.subset(used), rows, torch.cat(images) if size <= IN_MEMORY else None, skipped)


class SlideTiles:
    """The chosen tiles of slides as images: opened slide by slide and read when they are asked for (a data.source.Reader)."""

    def __init__(self, slides: SlideSet, rows: list[dict[str, Any]], size: int):
        self.slides, self.size = slides, size
        self.sides = [row["side"] for row in rows]
        self.where = [(number, *corner) for number, row in enumerate(rows) for corner in row["corners"]]
        self._opened: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return len(self.where)

    def key(self, position: int) -> str:
        number, left, top = self.where[position]
        return f"{self.slides.entries[number].name}@{left},{top}"

    def read(self, position: int) -> Tensor:
        number, left, top = self.where[position]
        if self._opened is None or self._opened[0] != number:
            self._opened = (number, self.slides.entries[number].open())
        return Tiles(self._opened[1], torch.tensor([[left, top]]), self.sides[number], self.size).read(0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # workers open slides of their own


def choose_tiles(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """The first stage: mosaics of all slides, split by patient."""
    everything = open_set(config)
    if len(everything.classes) < 2:
        raise InputError(
            f"{everything.name} has {len(everything.classes)} class: slides of at least two, one sub-folder for each"
        )
    folder, skipped = run.stage_folder("mosaics"), []
    result: dict[str, Any] = {}
    for part, slides in zip(("train", "test"), everything.split(config.held_out, config.seed)):
        found = collect(slides, config, f"mosaics, {part}")
        write_json(folder / f"{part}.json", {"slides": [asdict(entry) for entry in found.slides.entries], "tiles": found.rows})
        if found.images is not None:
            save_file({"images": found.images}, folder / f"{part}.safetensors")
        skipped += found.skipped
        result |= {f"{part} slides": len(found.slides), f"{part} tiles": len(found.owners)}
        result[f"{part} mosaic"] = sum(row["mosaic"] for row in found.rows)
    return result | {"source": everything.name, "classes": everything.classes, "skipped": skipped}


def chosen(run: Run, part: str) -> Chosen:
    """What the first stage left of a part."""
    about, folder = run.result("mosaics"), run.folder / "mosaics"
    saved = json.loads((folder / f"{part}.json").read_text())
    entries = [SlideEntry(**{**entry, "made": tuple(entry["made"])}) for entry in saved["slides"]]
    file = folder / f"{part}.safetensors"
    images = load_file(file)["images"] if file.is_file() else None
    return Chosen(SlideSet(entries, about["classes"], about["source"]), saved["tiles"], images)


# --- the network --------------------------------------------------------------------------------------------------------


def build(config: SlidesConfig, classes: int) -> KimiaNet:
    """Random weights from the seed, or given ones; their last layer is dropped where the number of classes differs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            network = create("kimianet", num_classes=classes, **config.network)
        except TypeError as error:
            raise InputError(f"network: {error}") from None
    assert isinstance(network, KimiaNet)
    if not config.weights:
        return network
    weights = {official_name(key): value for key, value in read_weights(config.weights).items()}
    fresh = network.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        if name not in weights or weights[name].shape != fresh[name].shape:
            weights[name] = fresh[name]
    return load_official(network, weights)


class WeakLabels(Classify):
    """Classification of tiles by their slides' labels. Blocks that do not learn also keep their norms' statistics."""

    def __init__(self, network: KimiaNet, blocks: int):
        super().__init__(network)
        self.still: list[nn.Module] = []
        pattern = network.frozen_pattern(blocks)
        if not pattern:
            return
        for name, parameter in network.named_parameters():
            if re.match(pattern, name):
                parameter.requires_grad_(False)
        self.still = [part for name, part in network.named_modules() if name and re.match(pattern, name + ".")]

    def train(self, mode: bool = True) -> WeakLabels:
        super().train(mode)
        for part in self.still:
            part.train(False)
        return self


def train(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """The second stage: a classifier of tiles under weak labels."""
    found = chosen(run, "train")
    tiles = found.tiles(config.tiling.size)
    objective = WeakLabels(build(config, len(found.slides.classes)), config.blocks)
    moved = train_shift(config.tiling.size, pad=config.shift, flip=True, mode="reflect")
    data = Transformed(tiles, Restained(moved, config.stain) if config.stain else moved, seed=config.seed)
    training = config.training
    if training.batch_size > len(tiles):
        training = replace(training, batch_size=len(tiles))
    folder = run.stage_folder("train")
    fitted = fit(objective, data, training, folder, label="weak labels")
    if first_process():
        averaged = fitted.averaged
        assert isinstance(averaged, Classify) and isinstance(averaged.model, KimiaNet)
        averaged.model.save_pretrained(folder / "model")
    return {"parameters": sum(p.numel() for p in objective.model.parameters()), "seconds": fitted.seconds, "tiles": len(tiles)}


def take_released(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """In place of training: weights as they are."""
    network = build(config, len(run.result("mosaics")["classes"]))
    network.save_pretrained(run.stage_folder("train") / "model")
    return {"parameters": sum(p.numel() for p in network.parameters()), "seconds": 0.0, "tiles": 0}


def load_network(run: Run) -> KimiaNet:
    run.result("train")
    return KimiaNet.from_pretrained(run.folder / "train" / "model").eval()


class FeaturesAndLogits(nn.Module):
    """Tiles [N, 3, H, W] in [0, 1] -> (features [N, D], logits [N, classes])."""

    def __init__(self, network: KimiaNet):
        super().__init__()
        self.normalise, self.network = Classify(network).normalise, network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.forward_head(self.network.forward_features(self.normalise(images)), pre_logits=True)
        return features, self.network.get_classifier()(features)


def prepared(network: KimiaNet, example: Tensor | None = None) -> Prepared:
    """Faster, in float32: bits of a barcode hang on small differences."""
    return prepare_for_inference(FeaturesAndLogits(network).eval(), precision="32", example=example)


def look(network: nn.Module, tiles: ImageSource, batch: int = 64) -> tuple[Tensor, Tensor]:
    """(features, logits) of all tiles in order."""
    loader = Loader(Transformed(tiles, None, seed=0), min(batch, len(tiles)), seed=0, shuffle=False, drop_last=False)
    with torch.inference_mode():
        found = [network(to_float(part["image"])) for part in loader]
    return torch.cat([features for features, _ in found]).clone(), torch.cat([logits for _, logits in found]).clone()
