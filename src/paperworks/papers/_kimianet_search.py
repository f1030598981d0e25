"""KimiaNet's second half: barcodes of held-out slides, and the search among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paperworks.analysis.retrieval import SearchScores, barcodes, distances, pack, search_scores, unpack
from paperworks.data import ImageSource
from paperworks.data.slide_set import SlideSet
from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers._kimianet_recipe import Chosen, SlidesConfig, build, chosen, load_network, look, prepared


def per_slide(values: Tensor, owners: Tensor, count: int) -> list[Tensor]:
    return [values[owners == number] for number in range(count)]


def evaluate(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """The third stage: barcodes of the held-out slides, and a search that leaves each query's patient out."""
    found = chosen(run, "test")
    size = config.tiling.size
    slides, owners, tiles = found.slides, found.owners, found.tiles(size)
    network = load_network(run)
    features, logits = look(prepared(network, torch.rand(2, 3, size, size)), tiles, batch_of(size))
    codes = barcodes(features)
    folder = run.stage_folder("evaluate")
    save_file({"codes": pack(codes), "owners": owners, "logits": logits}, folder / "atlas.safetensors")
    result: dict[str, Any] = {"bits": codes.shape[1], "tiles": len(tiles), "slides": len(slides)}
    table = distances(per_slide(codes, owners, len(slides)))
    for top in sorted({1, config.top, 5}):
        scores = searched(table, slides, top)
        if scores is not None:
            result[f"top-{top} F1"], result[f"top-{top} accuracy"] = scores.macro_f1, scores.accuracy
    learned = run.result("train")["tiles"] > 0
    if learned:  # else the last layer is a random one
        result["tile accuracy"] = float((logits.argmax(1) == slides.labels[owners]).double().mean())
        voted = torch.stack([part.softmax(1).mean(0) for part in per_slide(logits, owners, len(slides))]).argmax(1)
        result["slide accuracy"] = float((voted == slides.labels).double().mean())
    for name, other in baselines(config, tiles, len(slides.classes), learned).items():
        scores = searched(distances(per_slide(other, owners, len(slides))), slides, config.top)
        result[f"{name}, top-{config.top} F1"] = None if scores is None else scores.macro_f1
    result["bytes of barcodes a slide"] = pack(codes).numel() / len(slides)
    result["bytes of pixels a slide"] = mean(3.0 * row["pixels"] for row in found.rows)
    return result


def searched(table: Tensor, slides: SlideSet, top: int) -> SearchScores | None:
    """None where there are not enough slides of other patients."""
    try:
        return search_scores(table, slides.labels, len(slides.classes), top, slides.patients)
    except InputError:
        return None


def baselines(config: SlidesConfig, tiles: ImageSource, classes: int, learned: bool) -> dict[str, Tensor]:
    """Barcodes of the same tiles without training: the network as it began where it learned, and colours alone."""
    colours = torch.stack([_colours(tiles.read(number)) for number in range(len(tiles))])
    found = {"histogram of colours": barcodes(colours)}
    if not learned:
        return found
    features, _ = look(prepared(build(config, classes)), tiles, batch_of(config.tiling.size))
    start = "network before training" if not config.weights else "weights before training"
    return {start: barcodes(features), **found}


def _colours(tile: Tensor, bins: int = 16) -> Tensor:
    """float [3 x bins]: histograms of red, green and blue."""
    return torch.cat([plane.float().histc(bins, 0, 255) for plane in tile])


def batch_of(size: int) -> int:
    """Tiles at once: 4 at 1000 pixels hold about a gigabyte of maps."""
    return max(1, min(64, 64 * 256**2 // size**2))


@dataclass
class Atlas:
    """Held-out slides with their barcodes, to be searched."""

    found: Chosen
    codes: list[Tensor]
    table: Tensor
    """distances from every slide to every other"""

    @classmethod
    def of(cls, run: Run) -> Atlas:
        found = chosen(run, "test")
        saved = load_file(run.folder / "evaluate" / "atlas.safetensors")
        codes = unpack(saved["codes"], run.result("evaluate")["bits"])
        parts = per_slide(codes, saved["owners"], len(found.slides))
        return cls(found, parts, distances(parts))
