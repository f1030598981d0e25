"""KimiaNet's first stage: slides to mosaics of tiles, in parts that share no patient."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paperworks.data import ImageSource
from paperworks.data.mosaic import Mosaic, MosaicConfig, make_mosaic
from paperworks.data.patch_lists import PARTS, PatchList, find_patch_lists, listed_tiles, read_patch_list
from paperworks.data.progress import watched
from paperworks.data.slide_set import MADE, SlideEntry, SlideSet, list_slides, made_slides, read_sites
from paperworks.data.slides import Tiles, TilingConfig, tile_slide
from paperworks.errors import InputError
from paperworks.paper import Run, write_json
from paperworks.training import TrainConfig

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
    """share of each class's patients whose slides are searched; 1 for all of them, where nothing is learned"""
    validation: float = 0.0
    """share of each class's other patients whose slides say which step's weights are kept; 0 for none: the last step's"""
    tiling: TilingConfig = field(default_factory=TilingConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    lists: str = ""
    """folder of KimiaNet's released lists of patches: slides are cut as they say, and belong to the part in whose list they
    stand, whatever the shares above; slides in none of the lists are left out"""
    sites: str = ""
    """csv file of rows `class,site`: the tumour site of each class, for the search for sites and that within them"""
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


# --- slides and their parts ---------------------------------------------------------------------------------------------


def open_set(config: SlidesConfig) -> SlideSet:
    if config.data in MADE:
        made = config.made
        return made_slides(made.patients, made.slides, config.seed, made.size, made.tumour)
    return list_slides(config.data, config.scanned_at)


def read_lists(config: SlidesConfig) -> dict[str, PatchList]:
    """The released lists by part; none where the run goes without."""
    if not config.lists:
        return {}
    lists = {part: read_patch_list(path) for part, path in find_patch_lists(config.lists).items()}
    seen: dict[str, str] = {}
    for part, patches in lists.items():
        for slide in patches:
            if slide in seen:
                raise InputError(f"{config.lists}: {slide} stands in two lists, {seen[slide]} and {part}: take it out of one")
            seen[slide] = part
    return lists


def parts_of(slides: SlideSet, config: SlidesConfig) -> tuple[dict[str, SlideSet], list[tuple[str, str]]]:
    """({"train", "validation" and "test", as far as there are any: slides}, what belongs to no part, with the reason)."""
    if config.lists:
        return _listed_parts(slides, read_lists(config))
    if not (0 < config.held_out <= 1 and 0 <= config.validation < 1):
        wrong = f"held_out {config.held_out}, validation {config.validation}"
        raise InputError(f"{wrong}: shares of the patients, the first above 0 and up to 1, the second below 1")
    if config.held_out == 1:
        return {"test": slides}, []
    learn, test = slides.split(config.held_out, config.seed)
    if not config.validation:
        return {"train": learn, "test": test}, []
    try:
        learn, validation = learn.split(config.validation, config.seed)
    except InputError:
        raise InputError(
            f"{slides.name}: with validation slides every class needs three patients; add some, or --set validation=0"
        ) from None
    return {"train": learn, "validation": validation, "test": test}, []


def _listed_parts(slides: SlideSet, lists: Mapping[str, PatchList]) -> tuple[dict[str, SlideSet], list[tuple[str, str]]]:
    """A slide that was tested with must not be learned from, so the lists decide."""
    part_of = {slide: part for part, patches in lists.items() for slide in patches}
    found = [part_of.get(Path(entry.path).name) for entry in slides.entries]
    parts = {}
    for part in PARTS:
        chosen = [number for number, name in enumerate(found) if name == part]
        if chosen:
            parts[part.lower()] = slides.subset(chosen)
        elif part != "Validation":
            raise InputError(f"{slides.name} holds no slide of the released list {part}: add some, or leave the lists out")
    stray = [entry.name for entry, part in zip(slides.entries, found) if part is None]
    return parts, [(name, "stands in none of the lists") for name in stray]


# --- mosaics ------------------------------------------------------------------------------------------------------------

Corners = Mapping[str, Sequence[tuple[int, int]]]
"""slide file -> corners of its patches"""


def listed_corners(config: SlidesConfig) -> Corners:
    """Of all released lists together."""
    return {slide: corners for patches in read_lists(config).values() for slide, corners in patches.items()}


def slide_mosaic(entry: SlideEntry, config: SlidesConfig, listed: Corners | None = None) -> Mosaic:
    """The mosaic of a slide, or what a list names of it: InputError where that is nothing."""
    slide = entry.open()
    corners = (listed or {}).get(Path(entry.path).name)
    if corners is None:
        return make_mosaic(tile_slide(slide, config.tiling), config.mosaic)
    tiles = listed_tiles(slide, corners, config.tiling)
    everything = torch.arange(len(tiles))
    unknown = torch.full((len(tiles),), torch.nan)  # nuclei were measured before the list was made
    return Mosaic(tiles, torch.zeros_like(everything), unknown, everything)


@dataclass
class Chosen:
    """Slides that could be used, with the tiles that were chosen of each."""

    slides: SlideSet
    rows: list[dict[str, Any]]
    """per slide: corners, share of nuclei (None for listed tiles) and side of its tiles, size of its mosaic and of itself"""
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
    listed = listed_corners(config)
    for number, entry in enumerate(watched(slides.entries, len(slides), label)):
        try:
            mosaic = slide_mosaic(entry, config, listed)
        except InputError as error:
            skipped.append((entry.name, str(error)))
            continue
        used.append(number)
        best, slide = mosaic.best, mosaic.tiles.slide
        size += len(best) * 3 * best.size**2
        if size <= IN_MEMORY:
            images.append(best.images())
        cells = mosaic.cells[mosaic.kept].tolist()
        rows.append(
            {
                "corners": best.corners.tolist(),
                "cells": [round(value, 4) if value == value else None for value in cells],
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


# --- the stage ----------------------------------------------------------------------------------------------------------


def choose_tiles(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """The first stage: mosaics of all slides, part by part."""
    everything = open_set(config)
    if len(everything.classes) < 2:
        raise InputError(
            f"{everything.name} has {len(everything.classes)} class: slides of at least two, one sub-folder for each"
        )
    sites = read_sites(config.sites, everything.classes) if config.sites else []
    parts, skipped = parts_of(everything, config)
    skipped += everything.skipped
    folder = run.stage_folder("mosaics")
    result: dict[str, Any] = {}
    for part, slides in parts.items():
        found = collect(slides, config, f"mosaics, {part}")
        write_json(folder / f"{part}.json", {"slides": [asdict(entry) for entry in found.slides.entries], "tiles": found.rows})
        if found.images is not None:
            save_file({"images": found.images}, folder / f"{part}.safetensors")
        skipped += found.skipped
        result |= {f"{part} slides": len(found.slides), f"{part} tiles": len(found.owners)}
        result[f"{part} mosaic"] = sum(row["mosaic"] for row in found.rows)
    about = {"source": everything.name, "classes": everything.classes, "sites": sites, "parts": list(parts)}
    return result | about | {"skipped": skipped}


def chosen(run: Run, part: str) -> Chosen:
    """What the first stage left of a part."""
    about, folder = run.result("mosaics"), run.folder / "mosaics"
    saved = json.loads((folder / f"{part}.json").read_text())
    entries = [SlideEntry(**{**entry, "made": tuple(entry["made"])}) for entry in saved["slides"]]
    file = folder / f"{part}.safetensors"
    images = load_file(file)["images"] if file.is_file() else None
    return Chosen(SlideSet(entries, about["classes"], about["source"]), saved["tiles"], images)


def sites_of(run: Run, classes: Sequence[str]) -> list[str]:
    """The tumour site of each of these classes; none where the run was not told, or knows other classes."""
    about = run.result("mosaics")
    known = dict(zip(about["classes"], about.get("sites") or ()))
    return [known[name] for name in classes] if all(name in known for name in classes) else []
