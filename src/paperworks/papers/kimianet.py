"""KimiaNet (2101.07903): DenseNet trained on tiles rich in nuclei under the diagnosis of their slide, for search among slides.

paperworks run kimianet                                made-up slides, minutes on two cores
paperworks run kimianet --data FOLDER                  your own slides: class/patient/slide.svs, or class/slide.png
paperworks run kimianet --recipe released --weights KimiaNetPyTorchWeights.pth --data FOLDER      search, no training
paperworks predict runs/kimianet --images new-slides   the nearest known slides, also as a page
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from paperworks.analysis.counting import count_parameters
from paperworks.analysis.retrieval import barcodes, distances, leave_one_out, ranking, search_scores, vote
from paperworks.backbones.densenet import SIZES, DenseNet
from paperworks.backbones.kimianet import ENTRIES, DenseBlock, KimiaNet
from paperworks.backbones.registry import create
from paperworks.data.mosaic import MosaicConfig, make_mosaic
from paperworks.data.slide_set import MADE, SlideEntry, list_slides
from paperworks.data.slides import SLIDE_SUFFIXES, TilingConfig, tile_slide
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, equals
from paperworks.papers import _classification_use as use
from paperworks.papers import _kimianet_claims as measuring
from paperworks.papers import card
from paperworks.papers._classification import Trained
from paperworks.papers._kimianet_recipe import (
    FeaturesAndLogits,
    SlidesConfig,
    choose_tiles,
    collect,
    load_network,
    look,
    prepared,
    slide_mosaic,
    take_released,
    train,
)
from paperworks.papers._kimianet_report import neighbours_page, scores_row, write_report
from paperworks.papers._kimianet_search import Atlas, batch_of, evaluate, per_slide
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

paper = Paper(
    card("kimianet"),
    parts=[KimiaNet, tile_slide, make_mosaic, barcodes, distances, leave_one_out],
    variants={name: Variant(partial(create, name), 6.984606, "30 tumour types") for name in ENTRIES},
)

STAGES = (
    Stage("mosaics", choose_tiles),
    Stage("train", train),
    Stage("evaluate", evaluate),
    Stage("report", write_report),
)

NARROW: dict[str, Any] = {"growth_rate": 12, "block_config": [3, 4, 5, 4], "num_init_features": 24, "stem_stride": 2}
"""39 million multiply-accumulates for a tile of 64 pixels"""


@paper.recipe("laptop")
def laptop(
    data: str = "made",
    tile: int = 64,
    scanned_at: float | None = None,
    magnification: float = 20.0,
    share: float = 0.4,
    keep: float = 0.3,
    steps: int = 120,
    seed: int = 0,
) -> Recipe:
    """A narrow KimiaNet on small tiles in minutes on two cores.

    Args:
        data: made-up slides by default; a folder: class/patient/slide.svs, or class/slide.png
        tile: pixels of a tile's side
        scanned_at: magnification of all slides, in place of what their files say
        magnification: at which tiles are read
        share: of the tiles that the mosaic takes
        keep: of the mosaic that is kept, by nuclei
        steps: of training
        seed: of made-up slides, the parts, initial weights and order
    """
    optimizer = OptimizerConfig("adamw", lr=3e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.1))
    config = SlidesConfig(
        data=data,
        scanned_at=scanned_at,
        tiling=TilingConfig(tile, magnification),
        mosaic=MosaicConfig(share=share, keep=keep, colour_size=max(16, tile // 4), cell_size=tile),
        network=NARROW,
        shift=tile // 8,
        stain=0.4,
        training=TrainConfig(
            steps, 64, optimizers={"main": optimizer}, ema=0.98, clip=5.0, seed=seed, log_every=10, channels_last=True
        ),
        seed=seed,
    )
    return Recipe(config, STAGES)


@paper.recipe("finetune")
def finetune(
    data: str, weights: str, tile: int = 512, blocks: Literal[1, 2, 3, 4] = 4, steps: int = 2000, seed: int = 0
) -> Recipe:
    """DenseNet-121 with released weights, fine-tuned on your own slides.

    Args:
        data: a folder: class/patient/slide.svs, or class/slide.svs
        weights: a file of the authors', or of torchvision's DenseNet-121
        tile: pixels of a tile's side at 20x; the authors' is 1000
        blocks: dense blocks that learn, from the last on
        steps: of training, 32 tiles each
        seed: of the parts, the new last layer and the order
    """
    return Recipe(_full(data, weights, tile, blocks, steps, 32, seed, stride=1.0), STAGES)


@paper.recipe("released")
def released(data: str, weights: str, tile: int = 1000, keep: float = 0.2, seed: int = 0) -> Recipe:
    """No training: the authors' weights, to search among your slides with.

    Args:
        data: a folder: class/patient/slide.svs, or class/slide.svs
        weights: the authors' file KimiaNetPyTorchWeights.pth (research use; it is not fetched)
        tile: pixels of a tile's side at 20x
        keep: of each slide's mosaic, by nuclei
        seed: of the parts
    """
    config = _full(data, weights, tile, 4, 1, 1, seed, stride=1.0, keep=keep)
    return Recipe(config, (STAGES[0], Stage("train", take_released), *STAGES[2:]))


@paper.recipe("paper")
def published(
    data: str,
    weights: str,
    lists: str = "",
    blocks: Literal[1, 2, 3, 4] = 4,
    epochs: float = 20,
    micro_batch: int = 8,
    seed: int = 0,
) -> Recipe:
    """The published setting: 1000-pixel tiles at 20x of TCGA, 30 types, DenseNet-121 from ImageNet weights, Adam at 1e-4.

    Args:
        data: TCGA diagnostic slides in a folder per type
        weights: torchvision's DenseNet-121
        lists: folder of the authors' lists of patches; without it mosaics are made anew
        blocks: dense blocks that learn: 1 to 4 are the paper's configurations I to IV
        epochs: over 242,202 patches; the authors stopped early on validation slides
        micro_batch: tiles per process and backward pass
        seed: of the parts, the new last layer and the order
    """
    steps = round(epochs * 242_202 / 64)
    config = _full(data, weights, 1000, blocks, steps, 64, seed, stride=0.75, lists=lists, micro_batch=micro_batch, workers=8)
    return Recipe(config, STAGES)


def _full(
    data: str,
    weights: str,
    tile: int,
    blocks: int,
    steps: int,
    batch: int,
    seed: int,
    *,
    stride: float,
    keep: float = 0.2,
    lists: str = "",
    micro_batch: int | None = None,
    workers: int = 0,
) -> SlidesConfig:
    optimizer = OptimizerConfig("adam", lr=1e-4, schedule=ScheduleConfig("constant"))
    return SlidesConfig(
        data=data,
        held_out=0.2,
        tiling=TilingConfig(tile, stride=stride, stain="he"),
        mosaic=MosaicConfig(keep=keep, colour_size=max(16, tile // 4), cell_size=max(32, tile // 2)),
        lists=lists,
        weights=weights,
        blocks=blocks,
        training=TrainConfig(
            steps, batch, micro_batch, optimizers={"main": optimizer}, seed=seed, workers=workers, channels_last=True
        ),
        seed=seed,
    )


# --- what a finished run is good for ------------------------------------------------------------------------------------


@paper.verb("predict")
def predict(run: Run, images: str, *, top: int = 5, page: bool = True) -> list[dict[str, Any]]:
    """The nearest known slides of new ones, what they vote for, and what the classifier says.

    Args:
        images: a slide, or a folder of slides
        top: nearest slides that are listed; as many vote as the run was made with
        page: also write neighbours.html, which shows them, into the run's folder
    """
    config: SlidesConfig = run.config(SlidesConfig)
    atlas = Atlas.of(run)
    classes = atlas.found.slides.classes
    network = prepared(load_network(run))
    rows, queries, codes = [], [], []
    for path in _slide_files(images):
        entry = SlideEntry(path.name, 0, path.name, str(path), magnification=config.scanned_at)
        try:
            best = slide_mosaic(entry, config).best
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


@paper.verb("evaluate")
def evaluate_on(run: Run, *, data: str = "", top: int = 3) -> dict[str, Any]:
    """Search among labelled slides, each patient's own left out.

    Args:
        data: a folder of slides as in training; the run's held-out slides by default
        top: nearest slides that vote
    """
    config: SlidesConfig = run.config(SlidesConfig)
    if not data:
        atlas = Atlas.of(run)
        slides, table = atlas.found.slides, atlas.table
    else:
        if data in MADE:
            raise InputError("the made-up slides are those of the run: leave --data out")
        found = collect(list_slides(data, config.scanned_at), config, "mosaics")
        slides = found.slides
        features, _ = look(prepared(load_network(run)), found.tiles(config.tiling.size), batch_of(config.tiling.size))
        table = distances(per_slide(barcodes(features), found.owners, len(slides)))
    scores = search_scores(table, slides.labels, len(slides.classes), top, slides.patients)
    return {"data": slides.name, "slides": len(slides), **scores_row(scores, slides.classes)}


@paper.verb("export")
def export(
    run: Run,
    *,
    to: Literal["onnx", "torchscript"] = "onnx",
    of: Literal["features", "logits"] = "features",
    out: Path | None = None,
) -> dict[str, Any]:
    """A file for other runtimes: tiles in [0, 1] to the features that barcodes are made of, or to the classes' logits.

    Args:
        to: "onnx" or "torchscript"
        of: "features" or "logits"
        out: where to write; network.onnx or network.pt in the run's folder by default
    """
    endings = {"onnx": "onnx", "torchscript": "pt"}
    if to not in endings or of not in ("features", "logits"):
        raise InputError(f"no export of {of!r} to {to!r}: features or logits, to {' or '.join(endings)}")
    config: SlidesConfig = run.config(SlidesConfig)
    network = load_network(run)
    if of == "features":
        network.reset_classifier(0)
    trained = Trained(Classify(network).eval(), [], [], config.tiling.size, 1.0, "shift")
    return use.export(trained, to, out or run.folder / f"network.{endings[to]}")


# --- claims -------------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=lambda found: found.value > 240_000, says="more than 240,000 training patches in the released list")
def patches(bench: Bench) -> Measured:
    lists = measuring.released_lists(bench)
    counts = {part: sum(map(len, slides.values())) for part, slides in lists.items()}
    words = ", ".join(f"{part.lower()} {count:,}" for part, count in counts.items())
    return Measured(measuring.part_of(counts, "Train"), "any", f"entries of the released lists: {words}", numbers=counts)


@paper.claim("c4", rule=equals(7126), says="the released list names 7,126 training slides")
def weakly_labelled_slides(bench: Bench) -> Measured:
    lists = measuring.released_lists(bench)
    counts = {part: len(slides) for part, slides in lists.items()}
    empty = sum(not corners for corners in measuring.part_of(lists, "Train").values())
    words = ", ".join(f"{part.lower()} {count:,}" for part, count in counts.items())
    return Measured(
        measuring.part_of(counts, "Train"), "any", f"slides: {words}; {empty} of training have no patch", numbers=counts
    )


@paper.claim(
    "c2", rule=equals(1000), says="the published setting cuts tiles of 1,000 pixels a side, and the network takes them"
)
def patch_size(bench: Bench) -> Measured:
    """Cut from a made-up slide that counts as scanned at 40x, at 20x; TCGA's slides are not here."""
    tile, side = measuring.published_tile(published("", "").config)
    with torch.inference_mode():
        features = FeaturesAndLogits(KimiaNet().eval())(tile[None].float() / 255)[0]
    detail = f"{side} scanned pixels at 40x; the network gives {features.shape[1]} features{measuring.grids(bench)}"
    return Measured(tile.shape[-1] if features.shape == (1, 1024) else 0, "any", detail)


@paper.claim("c3", rule=equals(20, absolute=0.01), says="a tile of the published setting has the resolution of a scan at 20x")
def magnification(bench: Bench) -> Measured:
    """From tiles of one pattern scanned at 40x and at 20x, which must be the same picture."""
    config = published("", "").config
    found = {scan: measuring.published_tile(config, scan) for scan in (40.0, 20.0)}
    values = {scan: scan * tile.shape[-1] / side for scan, (tile, side) in found.items()}
    detail = f"tiles of {found[40.0][1]} pixels scanned at 40x, of {found[20.0][1]} at 20x{measuring.grids(bench)}"
    return Measured(sum(values.values()) / len(values), "any", detail, numbers={f"from {k:g}x": v for k, v in values.items()})


@paper.claim("c5", rule=equals(4), says="four dense blocks, and parameters of DenseNet-121 with its last layer for 30 classes")
def topology(bench: Bench) -> Measured:
    with torch.device("meta"):
        ours, plain = KimiaNet(), DenseNet(**SIZES[121], num_classes=30)
    blocks = sum(isinstance(part, DenseBlock) for part in ours.features)
    counts = {"KimiaNet": count_parameters(ours), "DenseNet-121": count_parameters(plain)}
    same = [p.shape for p in ours.parameters()] == [p.shape for p in plain.parameters()]
    detail = f"{counts['KimiaNet']:,} parameters, the same shapes as DenseNet-121" if same else "other shapes than DenseNet-121"
    return Measured(blocks if same else 0, "any", detail, numbers=counts)


@paper.claim(
    "c6",
    rule=at_least(0.0),
    says="search after training on the mosaic not below that after random tiles, on every seed",
)
def mosaic_helps(bench: Bench) -> Measured:
    found = measuring.studied(bench, "mosaic, most nuclei", "mosaic", "random tiles")
    return measuring.lead(bench, found, "mosaic, most nuclei", "random tiles")


def _above_spread(measured: Measured) -> bool:
    return min(measured.per_seed) > 0 and measured.value > measured.numbers["largest spread over seeds"]


@paper.claim("c7", rule=_above_spread, says="better on every seed, and by more on average than the spread over seeds of either")
def better_than_natural(bench: Bench) -> Measured:
    """The same narrow network learned to tell photos apart; EfficientNet-Lite0 with ImageNet weights is shown beside."""
    found = measuring.studied(bench, "mosaic, most nuclei", "photos", "ImageNet Lite0")
    return measuring.lead(bench, found, "mosaic, most nuclei", "photos")


def _both(measured: Measured) -> bool:
    return min(measured.per_seed) >= 0 and measured.numbers["lead in classification"] >= 0


@paper.claim("c8", rule=_both, says="search not below on any seed, and on average not below in classification")
def better_than_cbr(bench: Bench) -> Measured:
    found = measuring.studied(bench, "mosaic, most nuclei", "CBR")
    return measuring.lead(bench, found, "mosaic, most nuclei", "CBR")
