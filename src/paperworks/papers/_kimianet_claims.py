"""What KimiaNet's claims are measured with: the released lists, a tile of the published setting, and small networks that learn
from made-up slides under one budget. Trained results stay in the claim's folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paperworks.analysis.features import lite0
from paperworks.analysis.retrieval import barcodes, distances, search_scores
from paperworks.backbones.kimianet import KimiaNet
from paperworks.data import ImageSource, Transformed, open_images, random_crops
from paperworks.data.mosaic import MosaicConfig, mosaic_of
from paperworks.data.patch_lists import PatchList, find_patch_lists, grid_steps, read_patch_list
from paperworks.data.slide_set import MADE, SlideSet, list_slides, made_slides
from paperworks.data.slides import PlainSlide, TilingConfig, tile_slide
from paperworks.data.stains import Restained, cellularity
from paperworks.data.transforms import to_float, train_shift
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._kimianet_recipe import FeaturesAndLogits, WeakLabels
from paperworks.papers._kimianet_search import per_slide
from paperworks.papers._kimianet_slides import SlidesConfig
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig, fit

# --- counted ------------------------------------------------------------------------------------------------------------


def released_lists(bench: Bench) -> dict[str, PatchList]:
    """The authors' lists: below the folder given as data, else below `lists` in the claim's folder."""
    folder = bench.folder / "lists" if bench.data == "default" else Path(bench.data)
    return {part: read_patch_list(path) for part, path in find_patch_lists(folder).items()}


def part_of(parts: Mapping[str, Any], name: str) -> Any:
    if name not in parts:
        raise InputError(f"the list of {name} is not among the files, only {', '.join(parts)}")
    return parts[name]


@dataclass(frozen=True)
class Grids:
    """The two grids on which most slides of the released training list have their patches."""

    steps: list[tuple[float, int]]
    """(magnification of the scan, step in scanned pixels): slides are scanned at 40x or at 20x; the coarser step is taken for
    that of the former"""
    numbers: dict[str, float]
    words: str


def released_grids(bench: Bench) -> Grids:
    """InputError where the lists are not there: without them nothing is known of the authors' patches."""
    counted = grid_steps(part_of(released_lists(bench), "Train"))
    del counted[0]  # slides without any patch
    if not counted:
        raise InputError("the released list of Train names no patch")
    usual = sorted(step for step, _ in counted.most_common(2))
    fine, coarse, slides = usual[0], usual[-1], sum(counted.values())
    on_them = ", ".join(f"{counted[step]:,} on a grid of {step}" for step in dict.fromkeys((coarse, fine)))
    numbers = {"ratio of the grids": coarse / fine, "share of slides": sum(counted[step] for step in usual) / slides}
    words = f"of {slides:,} slides with patches in the released list {on_them} scanned pixels, which has corners and no sizes"
    return Grids([(40.0, coarse), (20.0, fine)], numbers, words)


def published_tile(config: SlidesConfig, scan: float = 40.0) -> tuple[Tensor, int]:
    """(the first tile of a slide that counts as scanned at `scan`, its side in scanned pixels). What is scanned is a smooth
    pattern, looked at in the middle of each pixel."""
    side = round(1100 * scan / 20)
    rows, columns = (np.indices((side, side), dtype=np.float32) + 0.5) * (20 / scan)
    wave = 128 + 60 * np.sin(rows / 40) * np.cos(columns / 55)
    pixels = np.stack([wave + 50, 0.5 * wave, wave], -1).round().clip(0, 255).astype(np.uint8)
    tiles = tile_slide(PlainSlide(pixels, f"made-up slide at {scan:g}x", scan), config.tiling)
    return tiles.read(0), tiles.side


# --- trained ------------------------------------------------------------------------------------------------------------

TILE, TILES, STEPS, PATIENTS, SLIDES, TUMOUR = 64, 5, 120, 12, 2, 0.15
"""pixels of a tile, tiles of each slide for every side, steps of 64 tiles, patients a class with slides each, of whose tissue
this share is tumour"""
TILING, MOSAIC = TilingConfig(TILE), MosaicConfig(share=0.4, keep=0.3, colour_size=16, cell_size=TILE)
NARROW: dict[str, Any] = {"growth_rate": 12, "block_config": (3, 4, 5, 4), "num_init_features": 24, "stem_stride": 2}
BLOCKS = {"last block": 1, "last two blocks": 2, "last three blocks": 3, "all blocks": 4}
"""the paper's configurations I to IV: dense blocks that are trained, from the last on"""
CBR = (24, 40, 64, 96)
"""widths of a stack of 5x5 convolutions with batch norm, ReLU and pooling"""

Scores = dict[str, float]


class ConvNormRelu(nn.Module):
    """A small CBR network: [N, 3, H, W] -> logits; `forward_head(forward_features(x), pre_logits=True)` gives features."""

    def __init__(self, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *CBR), CBR):
            layers += [
                nn.Conv2d(inputs, outputs, 5, padding=2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 1),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(CBR[-1], classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def slides_of(data: str, seed: int) -> tuple[SlideSet, SlideSet]:
    """(to learn from, to search), of different patients; other made-up slides for every seed."""
    if data in MADE:
        slides = made_slides(PATIENTS, SLIDES, 1000 + seed, 448, TUMOUR)
    else:
        slides = list_slides(data)
    return slides.split(0.4, seed)


def chosen_tiles(slides: SlideSet, how: str, seed: int) -> tuple[ImageSource, Tensor]:
    """(the same number of tiles of every slide with its label, the slide of each)."""
    generator = torch.Generator().manual_seed(seed)
    images, owners = [], []
    for number, entry in enumerate(slides.entries):
        tiles = tile_slide(entry.open(), TILING)
        pool = torch.arange(len(tiles)) if how == "random tiles" else mosaic_of(tiles, MOSAIC)[0]
        candidates = tiles.subset(pool)
        if how == "mosaic, most nuclei":
            order = cellularity(candidates.images()).argsort(descending=True, stable=True)
        else:
            order = torch.randperm(len(candidates), generator=generator)
        found = candidates.subset(order[:TILES]).images()
        images.append(found)
        owners += [number] * len(found)
    where = torch.tensor(owners)
    labels = slides.labels[where]
    return ImageSource.from_tensor(torch.cat(images), labels, name=how, classes=slides.classes), where


@functools.lru_cache(maxsize=1)
def searched_tiles(data: str, seed: int) -> tuple[ImageSource, Tensor]:
    """The tiles that all networks of a seed are searched with: those of most nuclei."""
    return chosen_tiles(slides_of(data, seed)[1], "mosaic, most nuclei", seed)


def photo_tiles(seed: int, each: int = 60) -> ImageSource:
    """Crops of natural photos, each photo a class; the section of tissue among them is left out."""
    photos = open_images("photos", split=None, channels=3)
    natural = [number for number in range(len(photos)) if "ihc" not in photos.key(number)]
    crops = [random_crops(photos.subset([number]), TILE, each, seed=seed).images for number in natural]
    labels = torch.arange(len(natural)).repeat_interleave(each)
    return ImageSource.from_tensor(torch.cat(crops), labels, name="crops of photos")


def studied(bench: Bench, *names: str) -> dict[str, list[Scores]]:
    """Per network and seed: F1 of the search ("search"), share of tiles whose class is right ("tiles"), in percent."""
    found: dict[str, list[Scores]] = {name: [] for name in names}
    for seed in bench.seeds:
        for name in names:
            found[name].append(_studied(bench, name, seed))
    return found


def folder_of(bench: Path, name: str, seed: int) -> Path:
    return bench / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def _studied(bench: Bench, name: str, seed: int) -> Scores:
    folder = folder_of(bench.folder, name, seed)
    result = folder / "scores.json"
    if result.is_file():
        return json.loads(result.read_text())
    learn, search = slides_of(bench.data, seed)
    tiles, owners = searched_tiles(bench.data, seed)
    if name == "ImageNet Lite0":
        features, logits = _features(lite0().features, tiles), None
    else:
        network = _trained(name, learn, folder, seed)
        with torch.inference_mode():
            parts = [network(to_float(part)) for part in tiles.images.split(64)]
        features, logits = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
    table = distances(per_slide(barcodes(features.clone()), owners, len(search)))
    scores = search_scores(table, search.labels, len(search.classes), 3, search.patients)
    numbers = {"search": 100 * scores.macro_f1}
    if logits is not None and name != "photos":
        numbers["tiles"] = 100 * float((logits.argmax(1) == search.labels[owners]).double().mean())
    folder.mkdir(parents=True, exist_ok=True)
    write_json(result, numbers)
    bench.say(f"{name}, seed {seed}: " + ", ".join(f"{kind} {value:.2f}" for kind, value in numbers.items()))
    return numbers


def _features(model: Callable[[Tensor], Tensor], tiles: ImageSource) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(to_float(part)) for part in tiles.images.split(32)])


def _trained(name: str, learn: SlideSet, folder: Path, seed: int) -> FeaturesAndLogits:
    how = "mosaic, most nuclei" if name == "CBR" or name in BLOCKS else name
    source = photo_tiles(seed) if name == "photos" else chosen_tiles(learn, how, seed)[0]
    assert source.classes is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = len(source.classes)
        network: Any = ConvNormRelu(classes) if name == "CBR" else KimiaNet(num_classes=classes, **NARROW)
    objective = Classify(network)
    if name in BLOCKS:
        start = _trained("photos", learn, folder_of(folder.parent, "photos", seed), seed).network.state_dict()
        network.load_state_dict({key: value for key, value in start.items() if "classifier" not in key}, strict=False)
        objective = WeakLabels(network, BLOCKS[name])
    optimizer = OptimizerConfig("adamw", lr=3e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.1))
    config = TrainConfig(STEPS, min(64, len(source)), optimizers={"main": optimizer}, clip=5.0, seed=seed, channels_last=True)
    data = Transformed(source, Restained(train_shift(TILE, pad=8, flip=True, mode="reflect"), 0.4), seed=seed)
    fit(objective, data, config, folder, label=f"{name}, seed {seed}")
    return FeaturesAndLogits(network).eval()


def lead(bench: Bench, found: Mapping[str, list[Scores]], better: str, worse: str) -> Measured:
    """Points of F1 by which the search with `better` is ahead of that with `worse`, per seed."""
    points = [a["search"] - b["search"] for a, b in zip(found[better], found[worse])]
    means = {name: {kind: round(mean(run[kind] for run in runs), 2) for kind in runs[0]} for name, runs in found.items()}
    searches = [[run["search"] for run in found[name]] for name in (better, worse)]
    spread = max(max(values) - min(values) for values in searches)
    numbers: dict[str, Any] = {"means": means, "runs": dict(found), "largest spread over seeds": spread}
    if all("tiles" in found[name][0] for name in (better, worse)):
        numbers["lead in classification"] = mean(a["tiles"] - b["tiles"] for a, b in zip(found[better], found[worse]))
    kinds = {"search": "F1", "tiles": "of tiles right"}
    words = "; ".join(
        f"{name} " + ", ".join(f"{value:.1f} % {kinds[kind]}" for kind, value in row.items()) for name, row in means.items()
    )
    what = "made-up slides" if bench.data in MADE else bench.data
    scale = f"{what}, {TILES} tiles of {TILE} pixels a slide, {STEPS} steps, {len(bench.seeds)} seeds"
    return Measured(mean(points), scale, words, points, list(bench.seeds), numbers, "points of F1")
