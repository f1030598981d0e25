"""KimiaNet's page: tiles and mosaics on the slides, what was kept, neighbours of slides and of tiles, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.analysis.retrieval import SearchScores, allowed_pairs, barcodes, ranking
from paperworks.data.embedded import package_file
from paperworks.data.mosaic import Mosaic, MosaicConfig, make_mosaic
from paperworks.data.slides import Slide, Tiles, TilingConfig, open_slide, thumbnail, tile_slide
from paperworks.data.stains import tissue_mask, unmix
from paperworks.data.transforms import to_float
from paperworks.errors import InputError
from paperworks.paper import Run, first_process
from paperworks.papers._classification_report import confusion_figure
from paperworks.papers._kimianet_probe import FOLDS, KINDS
from paperworks.papers._kimianet_recipe import load_network, prepared
from paperworks.papers._kimianet_search import Atlas, searched
from paperworks.papers._kimianet_slides import SlidesConfig, listed_corners, slide_mosaic
from paperworks.reporting import Report

GREEN, BLUE, GREY = (0.0, 0.62, 0.25), (0.0, 0.30, 0.85), (0.55, 0.55, 0.58)
OVERVIEW, SMALL, NEIGHBOURS = 260, 150, 5
FOUND = ("site F1", "class F1")


def overview(slide: Slide, longest: int = OVERVIEW) -> Tensor:
    """The whole slide on a white square, float [3, longest, longest]."""
    image = to_float(thumbnail(slide, longest))
    return F.pad(image, (0, longest - image.shape[2], 0, longest - image.shape[1]), value=1.0)


def framed(image: Tensor, tiles: Tiles, colour: tuple[float, float, float], line: int = 1) -> Tensor:
    """The overview with frames where the tiles are."""
    image = image.clone()
    factor = min(1.0, image.shape[-1] / max(tiles.slide.width, tiles.slide.height))
    ink = image.new_tensor(colour).view(3, 1, 1)
    for left, top in (tiles.corners * factor).round().long().tolist():
        side = max(2 * line + 1, round(tiles.side * factor) - 1)
        box = image[:, top : top + side, left : left + side]
        inner = box[:, line:-line, line:-line].clone()
        box[:] = ink
        box[:, line:-line, line:-line] = inner
    return image


def write_report(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """The last stage: report.html."""
    if not first_process():
        return {}
    about, stage, numbers = run.result("mosaics"), run.result("train"), run.result("evaluate")
    atlas = Atlas.of(run)
    slides = atlas.found.slides
    shown = [next((n for n, e in enumerate(slides.entries) if e.label == label), None) for label in range(len(slides.classes))]
    examples = [number for number in shown if number is not None][:6]
    made = " They are made up: drawn tissue, so that the run needs no slides." if slides.entries[0].made else ""
    page = Report(
        "KimiaNet: search among slides of tissue",
        f"{_parts(about)}{made}",
    )
    scores = searched(atlas.table, slides, config.top)
    page.figures(_key_figures(config, about, stage, numbers))
    _mosaics(page, config, atlas, examples)
    _kept(page, config, atlas, examples)
    _slide_neighbours(page, atlas, examples)
    _tile_neighbours(page, config, atlas, examples)
    if scores is not None:
        _scores(page, config, scores, slides.classes, numbers)
    _sites(page, config, numbers)
    _classifiers(page, numbers)
    _photo(page, config, run)
    metrics = run.folder / "train" / "metrics.jsonl"
    if metrics.is_file():
        page.metrics("Training on weak labels", metrics, ["loss", "accuracy", "eval/loss", "eval/accuracy"])
    plain = [[name, value] for name, value in numbers.items() if not isinstance(value, list)]
    page.table("All numbers", ["number", "value"], plain)
    if about["skipped"]:
        page.table("Slides that were not used", ["slide", "reason"], about["skipped"])
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return {}


def _parts(about: Mapping[str, Any]) -> str:
    """Which slides there are, in a sentence."""
    if "train" not in about["parts"]:
        return f"{about['test slides']} slides to search; none to learn from."
    between = f", {about['validation slides']} to choose the weights by" if "validation" in about["parts"] else ""
    return f"{about['train slides']} slides to learn from{between}, {about['test slides']} to search, of other patients."


def _key_figures(config: SlidesConfig, about: Mapping[str, Any], stage: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
    found = {}
    for name, value in numbers.items():
        if name.endswith(f"top-{config.top} F1"):
            title = "search F1" if name.startswith("top") else name.split(",")[0]
            found[title] = "-" if value is None else f"{value:.1%}"
    found["tiles a slide"] = f"{numbers['tiles'] / numbers['slides']:.1f} of {about['test mosaic'] / numbers['slides']:.0f}"
    found["barcodes of a slide"] = f"{numbers['bytes of barcodes a slide']:.0f} bytes"
    found["parameters"] = f"{stage['parameters'] / 1e6:.2f} M"
    if stage["tiles"]:
        found["training"] = f"{stage['seconds'] / 60:.1f} min"
    if "kept step" in stage:
        found["best on validation slides"] = f"step {stage['kept step']} of {config.training.steps}"
    return found


def _mosaics(page: Report, config: SlidesConfig, atlas: Atlas, examples: list[int]) -> None:
    rows: dict[str, list[Tensor]] = {"slide": [], "tissue": [], "tiles": [], "mosaic": [], "kept": []}
    names, listed = [], listed_corners(config)
    for number in examples:
        entry = atlas.found.slides.entries[number]
        slide = entry.open()
        try:
            everything = tile_slide(slide, config.tiling)
        except InputError:
            continue
        mosaic = slide_mosaic(entry, config, listed)
        names.append(entry.name)
        for name, picture in _steps(slide, everything, mosaic, config.tiling).items():
            rows[name].append(picture)
    if rows["slide"]:
        given = " Of slides in the released lists, both are what these name." if config.lists else ""
        page.compare(
            "From slide to tiles",
            {name: torch.stack(pictures) for name, pictures in rows.items()},
            labels=names,
            caption="Of the slides that are searched the first of each class. Tiles that show tissue; the mosaic (tiles "
            "grouped by colour, of each group those at the centres of its places); of the mosaic the tiles with most nuclei, "
            f"which are kept.{given}",
        )


def _steps(slide: Slide, everything: Tiles, mosaic: Mosaic, tiling: TilingConfig, longest: int = OVERVIEW) -> dict[str, Tensor]:
    plain = overview(slide, longest)
    mask = tissue_mask((plain * 255).round().to(torch.uint8), tiling.stain)
    return {
        "slide": plain,
        "tissue": torch.where(mask, plain, 0.25 * plain + 0.1),
        "tiles": framed(plain, everything, GREY),
        "mosaic": framed(plain, mosaic.tiles, BLUE, 2),
        "kept": framed(plain, mosaic.best, GREEN, 2),
    }


def _kept(page: Report, config: SlidesConfig, atlas: Atlas, examples: list[int]) -> None:
    """What the network sees of these slides, by the share of nuclei."""
    tiles, labels = [], []
    for number in examples:
        entry, row = atlas.found.slides.entries[number], atlas.found.rows[number]
        corners = torch.tensor(row["corners"][:8])
        tiles += list(to_float(Tiles(entry.open(), corners, row["side"], config.tiling.size).images()))
        name = atlas.found.slides.classes[entry.label]
        labels += [name if cells is None else f"{name}, {cells:.0%}" for cells in row["cells"][:8]]
    caption = "As the released lists name them." if config.lists else "With the share that nuclei cover."
    page.images("Kept tiles", torch.stack(tiles), columns=8, labels=labels, caption=caption)


def _slide_neighbours(page: Report, atlas: Atlas, examples: list[int]) -> None:
    slides = atlas.found.slides
    allowed = allowed_pairs(len(slides), slides.patients)
    pictures, labels = [], []
    for number in examples:
        found = ranking(atlas.table[number], allowed[number])[:NEIGHBOURS].tolist()
        if len(found) < min(NEIGHBOURS, len(slides) - 1):
            continue
        for place, other in enumerate([number, *found]):
            entry = slides.entries[other]
            pictures.append(overview(entry.open(), SMALL))
            words = f"query: {slides.classes[entry.label]}"
            if place:
                right = entry.label == slides.entries[number].label
                far = float(atlas.table[number, other])
                words = f"{slides.classes[entry.label]}, {far:g} bits{'' if right else ' (wrong)'}"
            labels.append(words)
    if pictures:
        page.images(
            "Nearest slides",
            torch.stack(pictures),
            columns=NEIGHBOURS + 1,
            labels=labels,
            caption="Not selected. Slides of the query's own patient cannot be found.",
        )


def _tile_neighbours(page: Report, config: SlidesConfig, atlas: Atlas, examples: list[int]) -> None:
    slides, owners = atlas.found.slides, atlas.found.owners
    tiles = atlas.found.tiles(config.tiling.size)
    codes = torch.cat(atlas.codes)
    patients = slides.patients
    pictures, labels = [], []
    for number in examples:
        query = int((owners == number).nonzero()[0])
        far = (codes != codes[query]).sum(1).double()
        allowed = torch.tensor([patients[owner] != patients[number] for owner in owners.tolist()])
        for place, other in enumerate([query, *ranking(far, allowed)[:NEIGHBOURS].tolist()]):
            pictures.append(to_float(tiles.read(other)))
            name = slides.classes[slides.entries[int(owners[other])].label]
            labels.append(f"{name}, {far[other]:g} bits" if place else f"query: {name}")
    page.images(
        "Nearest tiles of other patients",
        torch.stack(pictures),
        columns=NEIGHBOURS + 1,
        labels=labels,
        caption=f"Queries: the first tile of each slide{'' if config.lists else ', that with most nuclei'}. Barcodes of "
        f"{codes.shape[1]} bits.",
    )


def _scores(page: Report, config: SlidesConfig, scores: SearchScores, classes: list[str], numbers: Mapping[str, Any]) -> None:
    rows = [[name, "-" if value != value else f"{value:.1%}"] for name, value in zip(classes, scores.f1)]
    note = f"{numbers['slides']} slides, each the query once."
    if "tile accuracy" in numbers:
        tiles, voted = numbers["tile accuracy"], numbers["slide accuracy"]
        note += f" The classifier itself is right on {tiles:.1%} of the tiles and, averaged, on {voted:.1%} of the slides."
    page.table(
        f"Search: the {config.top} nearest slides vote",
        ["class", "F1"],
        [*rows, ["mean", f"{scores.macro_f1:.1%}"]],
        note=note,
    )
    page.figure("Confusion of the search", confusion_figure(scores.confusion, classes))


def _sites(page: Report, config: SlidesConfig, numbers: Mapping[str, Any]) -> None:
    """Horizontal and vertical search, where the run knows the tumour sites of its classes."""
    if "sites" not in numbers:
        return
    rows = [
        [row["site"], row["slides"], row["classes"], *("-" if row[key] is None else f"{row[key]:.1%}" for key in FOUND)]
        for row in numbers["sites"]
    ]
    page.table(
        "Search by tumour site",
        ["site", "slides", "classes", "F1 of the site, among all slides", "F1 of its classes, within the site"],
        rows,
        note=f"The {config.top} nearest slides vote, the query's own patient left out. Within a site the mean over its "
        "classes, where it has more than one and slides enough.",
    )


def _classifiers(page: Report, numbers: Mapping[str, Any]) -> None:
    """The features judged by classifiers instead of by search."""
    told = numbers["classifiers"]
    rows = [[row["features"], *("-" if row[kind] is None else f"{row[kind]:.1%}" for kind in KINDS)] for row in told]
    page.table(
        "Tiles told right from their features",
        ["features", *KINDS],
        rows,
        note=f"Classifiers of features as they are, not of barcodes. The patients of the slides that are searched lie in up to "
        f"{FOLDS} parts; tiles of each are told by what was learned from the others.",
    )


def _photo(page: Report, config: SlidesConfig, run: Run) -> None:
    """The same steps on a real photograph of tissue, which comes with scikit-image."""
    try:
        photo = open_slide(package_file("skimage", "scikit-image", "data/ihc.png"))
    except InputError:
        return
    tiling = TilingConfig(size=64, tissue=0.5)
    everything = tile_slide(photo, tiling)
    mosaic = make_mosaic(everything, MosaicConfig(share=0.4, keep=0.3))
    steps = _steps(photo, everything, mosaic, tiling, 256)
    blue = unmix((steps["slide"] * 255).round().to(torch.uint8))[0].clamp(0, 1.2) / 1.2
    pictures = [steps["slide"], steps["tissue"], (1 - blue).expand(3, -1, -1), steps["mosaic"], steps["kept"]]
    page.images(
        "A real section",
        torch.stack(pictures),
        columns=5,
        labels=["photo", "tissue", "haematoxylin", "mosaic", "kept"],
        caption="Immunohistochemistry of colonic glands, brown DAB and blue haematoxylin (scikit-image). The network saw "
        "neither this photo nor this stain.",
    )
    images = to_float(everything.images())
    with torch.inference_mode():
        codes = barcodes(prepared(load_network(run))(images)[0].clone())
    columns, labels = [], []
    for number in torch.linspace(0, len(images) - 1, 6).round().long().tolist()[1:5]:
        far = (codes != codes[number]).sum(1).double()
        allowed = torch.arange(len(images)) != number
        for place, other in enumerate([number, *ranking(far, allowed)[:NEIGHBOURS].tolist()]):
            columns.append(images[other])
            labels.append(f"{far[other]:g} bits" if place else "query")
    page.images("Nearest tiles within the real section", torch.stack(columns), columns=NEIGHBOURS + 1, labels=labels)


def neighbours_page(
    title: str, queries: list[tuple[str, Slide]], found: list[list[int]], table: Tensor, atlas: Atlas
) -> Report:
    """New slides with the nearest of an atlas."""
    page = Report(title, f"{len(queries)} slides, searched among {len(atlas.found.slides)}")
    for number, (name, slide) in enumerate(queries):
        entries = [atlas.found.slides.entries[other] for other in found[number]]
        pictures = [overview(slide, SMALL), *(overview(entry.open(), SMALL) for entry in entries)]
        words = [
            f"{atlas.found.slides.classes[entry.label]}, {float(table[number, other]):g} bits"
            for entry, other in zip(entries, found[number])
        ]
        page.images(name, torch.stack(pictures), columns=len(pictures), labels=["query", *words])
    return page


def scores_row(scores: SearchScores, classes: list[str]) -> dict[str, Any]:
    """What `evaluate` prints."""
    row = {"F1 %": scores.macro_f1, "accuracy %": scores.accuracy}
    row |= {f"F1 % {name}": value for name, value in zip(classes, scores.f1)}
    return {"top": scores.top} | {name: round(100 * value, 2) for name, value in row.items()}


def rows_beside(sites: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> dict[str, Any]:
    """And besides: search for tumour sites and within them, tiles that classifiers tell from their features."""
    row = {f"F1 % of site {each['site']}": each["site F1"] for each in sites}
    row |= {f"F1 % within {each['site']}": each["class F1"] for each in sites}
    row |= {f"tiles % {kind}": told.get(kind) for kind in KINDS}
    return {name: None if value is None else round(100 * value, 2) for name, value in row.items()}
