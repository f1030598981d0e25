"""What a finished run of KimiaNet is good for: the nearest known slides of new ones, and scores on labelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paperworks.analysis.retrieval import barcodes, distances, ranking, search_scores, vote
from paperworks.data.slide_set import MADE, SlideEntry, list_slides
from paperworks.data.slides import SLIDE_SUFFIXES
from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers._kimianet_recipe import batch_of, load_network, look, prepared
from paperworks.papers._kimianet_report import neighbours_page, rows_beside, scores_row
from paperworks.papers._kimianet_search import OURS, Atlas, by_site, per_slide, probe_row
from paperworks.papers._kimianet_slides import SlidesConfig, collect, listed_corners, sites_of, slide_mosaic


def nearest_slides(run: Run, images: str, top: int, page: bool) -> list[dict[str, Any]]:
    """A row for every slide among `images`; with `page` also neighbours.html in the run's folder."""
    config: SlidesConfig = run.config(SlidesConfig)
    atlas = Atlas.of(run)
    classes = atlas.found.slides.classes
    network = prepared(load_network(run))
    rows, queries, codes, listed = [], [], [], listed_corners(config)
    for path in _slide_files(images):
        entry = SlideEntry(path.name, 0, path.name, str(path), magnification=config.scanned_at)
        try:
            best = slide_mosaic(entry, config, listed).best
        except InputError as error:
            rows.append({"slide": path.name, "not usable": str(error)})
            continue
        with torch.inference_mode():
            found = [network(part.float() / 255) for part in best.images().split(batch_of(config.tiling.size))]
        codes.append(barcodes(torch.cat([features for features, _ in found]).clone()))
        queries.append((path.name, best.slide))
        rows.append({"slide": path.name})
        if run.result("train")["tiles"]:  # else the last layer is a random one
            share, said = torch.cat([logits for _, logits in found]).softmax(1).mean(0).max(0)
            rows[-1]["classifier"] = f"{classes[int(said)]} {float(share):.0%}"
    if not codes:
        raise InputError(f"{images}: no slide can be searched for; {rows[0]['not usable']}")
    table = distances(codes, atlas.codes)
    orders = [ranking(row)[:top].tolist() for row in table]
    usable = (row for row in rows if "not usable" not in row)
    for row, line, order in zip(usable, table, orders):
        labels = atlas.found.slides.labels[ranking(line)[: config.top]].tolist()
        row["nearest slides vote"] = classes[vote(labels)]
        for place, other in enumerate(order, 1):
            row[f"{place}."] = f"{atlas.found.slides.entries[other].name} ({float(line[other]):g} bits)"
    if page:
        neighbours_page("Nearest known slides", queries, orders, table, atlas).save(run.folder / "neighbours.html")
    return rows


def _slide_files(images: str) -> list[Path]:
    path = Path(images).expanduser()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.suffix.lower() in SLIDE_SUFFIXES)
    if not files:
        raise InputError(f"{images}: no slide there; give a slide or a folder of slides (.svs, .tif, .png, ...)")
    return files


def search_labelled(run: Run, data: str, top: int) -> dict[str, Any]:
    """Scores of the search among the slides of a folder; "": among those that the run itself searched."""
    config: SlidesConfig = run.config(SlidesConfig)
    if not data:
        atlas = Atlas.of(run)
        slides, table, unused = atlas.found.slides, atlas.table, run.result("mosaics")["skipped"]
        rows = run.result("evaluate").get("classifiers", [])
        told: Mapping[str, Any] = next((row for row in rows if row["features"] == OURS), {})
    else:
        if data in MADE:
            raise InputError("the made-up slides are those of the run: leave --data out")
        listed = list_slides(data, config.scanned_at)
        found = collect(listed, config, "mosaics")
        slides, unused = found.slides, listed.skipped + found.skipped
        features, _ = look(prepared(load_network(run)), found.tiles(config.tiling.size), batch_of(config.tiling.size))
        table = distances(per_slide(barcodes(features), found.owners, len(slides)))
        told = probe_row(features, slides, found.owners)
    scores = search_scores(table, slides.labels, len(slides.classes), top, slides.patients)
    sites = by_site(table, slides, sites_of(run, slides.classes), top).get("sites", [])
    row = {"data": slides.name, "slides": len(slides), "not used": len(unused), **scores_row(scores, slides.classes)}
    return row | rows_beside(sites, told)
