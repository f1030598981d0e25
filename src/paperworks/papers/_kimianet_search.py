"""KimiaNet's third stage: barcodes of slides, the search among them, and what classifiers make of the same features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paperworks.analysis.retrieval import SearchScores, barcodes, distances, pack, search_scores, unpack, vertical_scores
from paperworks.data import ImageSource
from paperworks.data.slide_set import SlideSet
from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers._kimianet_probe import KINDS, probes
from paperworks.papers._kimianet_recipe import batch_of, build, load_network, look, prepared
from paperworks.papers._kimianet_slides import Chosen, SlidesConfig, chosen, sites_of

OURS = "this network"


def per_slide(values: Tensor, owners: Tensor, count: int) -> list[Tensor]:
    return [values[owners == number] for number in range(count)]


def evaluate(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """The third stage: barcodes of the slides that are searched, and a search that leaves each query's patient out."""
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
    others = baselines(config, tiles, len(slides.classes), learned)
    for name, other in others.items():
        scores = searched(distances(per_slide(barcodes(other), owners, len(slides))), slides, config.top)
        result[f"{name}, top-{config.top} F1"] = None if scores is None else scores.macro_f1
    result["classifiers"] = [
        {"features": name, **probe_row(values, slides, owners)} for name, values in {OURS: features, **others}.items()
    ]
    result |= by_site(table, slides, sites_of(run, slides.classes), config.top)
    result["bytes of barcodes a slide"] = pack(codes).numel() / len(slides)
    result["bytes of pixels a slide"] = mean(3.0 * row["pixels"] for row in found.rows)
    return result


def searched(table: Tensor, slides: SlideSet, top: int) -> SearchScores | None:
    """None where there are not enough slides of other patients."""
    try:
        return search_scores(table, slides.labels, len(slides.classes), top, slides.patients)
    except InputError:
        return None


def by_site(table: Tensor, slides: SlideSet, sites: Sequence[str], top: int) -> dict[str, Any]:
    """Where the tumour site of every class is known, the paper's two searches: among all slides for the site (horizontal), and
    among the slides of a site for the class (vertical). Nothing where no site is known."""
    if not sites:
        return {}
    names = sorted(set(sites))
    numbers = torch.tensor([names.index(site) for site in sites])[slides.labels]
    try:
        across = search_scores(table, numbers, len(names), top, slides.patients)
    except InputError:
        across = None
    within = vertical_scores(table, numbers, slides.labels, len(slides.classes), top, slides.patients)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        there = slides.labels[numbers == number]
        subtypes, inside = len(there.unique()), within.get(number)
        rows.append(
            {
                "site": name,
                "slides": len(there),
                "classes": subtypes,
                "site F1": across.f1[number] if across and len(there) else None,
                "class F1": inside.macro_f1 if inside and subtypes > 1 else None,  # a single one is always right
            }
        )
    told = [row["class F1"] for row in rows if row["class F1"] is not None]
    return {
        f"tumour site, top-{top} F1": across.macro_f1 if across else None,
        f"class within its site, top-{top} F1": mean(told) if told else None,
        "sites": rows,
    }


def probe_row(features: Tensor, slides: SlideSet, owners: Tensor) -> dict[str, float | None]:
    """Share of tiles right by kind of classifier; None where a class has too few patients."""
    patients = slides.patients
    found = probes(features, slides.labels[owners], [patients[owner] for owner in owners.tolist()])
    return {kind: found[kind] if found else None for kind in KINDS}


def baselines(config: SlidesConfig, tiles: ImageSource, classes: int, learned: bool) -> dict[str, Tensor]:
    """Features of the same tiles without training: the network as it began where it learned, and colours alone."""
    found = {"histogram of colours": torch.stack([_colours(tiles.read(number)) for number in range(len(tiles))])}
    if not learned:
        return found
    features, _ = look(prepared(build(config, classes)), tiles, batch_of(config.tiling.size))
    start = "network before training" if not config.weights else "weights before training"
    return {start: features, **found}


def _colours(tile: Tensor, bins: int = 16) -> Tensor:
    """float [3 x bins]: histograms of red, green and blue."""
    return torch.cat([plane.float().histc(bins, 0, 255) for plane in tile])


@dataclass
class Atlas:
    """The slides that are searched, with their barcodes."""

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
