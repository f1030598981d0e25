"""KimiaNet (2101.07903): DenseNet trained on tiles rich in nuclei under the diagnosis of their slide, for search among slides.

paperworks run kimianet                                made-up slides, minutes on two cores
paperworks run kimianet --data FOLDER                  your own slides: class/patient/slide.svs, or class/slide.png
paperworks run kimianet --recipe released --weights KimiaNetPyTorchWeights.pth --data FOLDER      search, no training
paperworks predict runs/kimianet --images new-slides   the nearest known slides, also as a page
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch

from paperworks.analysis.counting import count_parameters
from paperworks.analysis.retrieval import barcodes, distances, leave_one_out, vertical_scores
from paperworks.backbones.densenet import SIZES, DenseNet
from paperworks.backbones.kimianet import ENTRIES, DenseBlock, KimiaNet
from paperworks.backbones.registry import create
from paperworks.data.mosaic import MosaicConfig, make_mosaic
from paperworks.data.slides import TilingConfig, tile_slide
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Bench, Measured, Paper, Recipe, Rule, Run, Stage, Variant, at_least, equals
from paperworks.papers import _classification_use as use
from paperworks.papers import _kimianet_claims as measuring
from paperworks.papers import card
from paperworks.papers._classification import Trained
from paperworks.papers._kimianet_recipe import FeaturesAndLogits, load_network, take_released, train
from paperworks.papers._kimianet_report import write_report
from paperworks.papers._kimianet_search import evaluate
from paperworks.papers._kimianet_slides import SlidesConfig, choose_tiles
from paperworks.papers._kimianet_use import nearest_slides, search_labelled
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

paper = Paper(
    card("kimianet"),
    parts=[KimiaNet, tile_slide, make_mosaic, barcodes, distances, leave_one_out, vertical_scores],
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
    sites: str = "",
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
        sites: csv file of rows class,site: tumour sites, for the search for them and that within them
        seed: of made-up slides, the parts, initial weights and order
    """
    optimizer = OptimizerConfig("adamw", lr=3e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.1))
    config = SlidesConfig(
        data=data,
        scanned_at=scanned_at,
        tiling=TilingConfig(tile, magnification),
        mosaic=MosaicConfig(share=share, keep=keep, colour_size=max(16, tile // 4), cell_size=tile),
        sites=sites,
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
    data: str,
    weights: str,
    tile: int = 512,
    blocks: Literal[1, 2, 3, 4] = 4,
    steps: int = 2000,
    sites: str = "",
    seed: int = 0,
) -> Recipe:
    """DenseNet-121 with released weights, fine-tuned on your own slides.

    Of each class a fifth of the patients is searched, and a tenth of the others says which step's weights are kept.

    Args:
        data: a folder: class/patient/slide.svs, or class/slide.svs
        weights: a file of the authors', or of torchvision's DenseNet-121
        tile: pixels of a tile's side at 20x; the authors' is 1000
        blocks: dense blocks that learn, from the last on
        steps: of training, 32 tiles each; looked at ten times on validation slides
        sites: csv file of rows class,site: tumour sites, for the search for them and that within them
        seed: of the parts, the new last layer and the order
    """
    config = _full(data, weights, tile, blocks, steps, 32, seed, stride=1.0, eval_every=max(1, steps // 10))
    return Recipe(replace(config, sites=sites), STAGES)


@paper.recipe("released")
def released(data: str, weights: str, tile: int = 1000, keep: float = 0.2, sites: str = "", seed: int = 0) -> Recipe:
    """No training: the authors' weights, to search among your slides with.

    Args:
        data: a folder: class/patient/slide.svs, or class/slide.svs
        weights: the authors' file KimiaNetPyTorchWeights.pth (research use; it is not fetched)
        tile: pixels of a tile's side at 20x
        keep: of each slide's mosaic, by nuclei
        sites: csv file of rows class,site: tumour sites, for the search for them and that within them
        seed: of the last layer where the classes are not the authors'
    """
    config = _full(data, weights, tile, 4, 1, 1, seed, stride=1.0)
    config = replace(config, held_out=1.0, validation=0.0, mosaic=replace(config.mosaic, keep=keep), sites=sites)
    return Recipe(config, (STAGES[0], Stage("train", take_released), *STAGES[2:]))


@paper.recipe("paper")
def published(
    data: str,
    weights: str,
    lists: str = "",
    blocks: Literal[1, 2, 3, 4] = 4,
    epochs: float = 20,
    micro_batch: int = 8,
    sites: str = "",
    seed: int = 0,
) -> Recipe:
    """The published setting: 1000-pixel tiles at 20x of TCGA, 30 types, DenseNet-121 from ImageNet weights, Adam at 1e-4.

    Args:
        data: TCGA diagnostic slides in a folder per type
        weights: torchvision's DenseNet-121
        lists: folder of the authors' lists of patches, which also decide the parts; without it both are made anew
        blocks: dense blocks that learn: 1 to 4 are the paper's configurations I to IV
        epochs: over 242,202 patches; that which is best on validation slides is kept, where the authors stopped early
        micro_batch: tiles per process and backward pass
        sites: csv file of rows class,site: the 13 tumour sites, for the search for them and that within them
        seed: of the parts, the new last layer and the order
    """
    epoch = 242_202 / 64
    config = _full(data, weights, 1000, blocks, round(epochs * epoch), 64, seed, stride=0.75, eval_every=round(epoch))
    training = replace(config.training, micro_batch=micro_batch, workers=8)
    return Recipe(replace(config, lists=lists, sites=sites, training=training), STAGES)


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
    eval_every: int | None = None,
) -> SlidesConfig:
    optimizer = OptimizerConfig("adam", lr=1e-4, schedule=ScheduleConfig("constant"))
    return SlidesConfig(
        data=data,
        held_out=0.2,
        validation=0.1,
        tiling=TilingConfig(tile, stride=stride, stain="he"),
        mosaic=MosaicConfig(colour_size=max(16, tile // 4), cell_size=max(32, tile // 2)),
        weights=weights,
        blocks=blocks,
        training=TrainConfig(
            steps, batch, optimizers={"main": optimizer}, seed=seed, eval_every=eval_every, channels_last=True
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
    return nearest_slides(run, images, top, page)


@paper.verb("evaluate")
def evaluate_on(run: Run, *, data: str = "", top: int = 3) -> dict[str, Any]:
    """Search among labelled slides, each patient's own left out.

    Where the run was given tumour sites also the search for them, and that for classes within each; and how many tiles a linear
    classifier and an SVM tell right from the features, tested on patients that they did not learn from.

    Args:
        data: a folder of slides as in training; the slides that the run searched by default
        top: nearest slides that vote
    """
    return search_labelled(run, data, top)


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


def _from_grids(expected: float, further: Rule) -> Rule:
    """The lists' two usual grids are 2 to 1, nine slides of ten lie on them, and each of them says what is expected."""

    def rule(measured: Measured) -> bool:
        numbers = measured.numbers
        said = [abs(value - expected) <= 1e-6 * expected for value in numbers["from the grids"].values()]
        return numbers["ratio of the grids"] == 2 and numbers["share of slides"] >= 0.9 and all(said) and further(measured)

    return rule


@paper.claim(
    "c2",
    rule=_from_grids(1000, lambda found: found.numbers["features"] == 1024),
    says="in the released list nine slides of ten lie on grids of two steps, 2 to 1 as scans at 40x and 20x are, both three "
    "quarters of 1,000 pixels at 20x; and the network takes a tile of that size",
)
def patch_size(bench: Bench) -> Measured:
    """The list holds corners and no sizes: that steps are three quarters of a side is the published setting. A tile is cut from
    a made-up slide that counts as scanned at 40x; TCGA's slides are not here."""
    grids, config = measuring.released_grids(bench), published("", "").config
    sides = {f"step {step}": step * config.tiling.magnification / scan / config.tiling.stride for scan, step in grids.steps}
    tile, side = measuring.published_tile(config)
    with torch.inference_mode():
        features = FeaturesAndLogits(KimiaNet().eval())(tile[None].float() / 255)[0]
    count = features.shape[1] if tile.shape[-1] == 1000 else 0
    detail = f"{grids.words}; the network gives {count} features of {side} pixels of a made-up scan at 40x; no slides are here"
    return Measured(mean(sides.values()), "any", detail, numbers=grids.numbers | {"from the grids": sides, "features": count})


@paper.claim(
    "c3",
    rule=_from_grids(20, lambda found: found.numbers["largest difference"] <= 2),
    says="in the released list nine slides of ten lie on grids of two steps, 2 to 1 as scans at 40x and 20x are, both three "
    "quarters of 1,000 pixels at 20x; and tiles of one pattern scanned at either differ by 2 of 255 grey levels at most",
)
def magnification(bench: Bench) -> Measured:
    """As for c2; and tiles that the published setting cuts of one pattern, scanned at 40x and at 20x, must be one picture."""
    grids, config = measuring.released_grids(bench), published("", "").config
    pitch = config.tiling.size * config.tiling.stride
    values = {f"step {step}": scan * pitch / step for scan, step in grids.steps}
    (fine, fine_side), (coarse, coarse_side) = (measuring.published_tile(config, scan) for scan in (40.0, 20.0))
    apart = int((fine.int() - coarse.int()).abs().max())
    detail = f"{grids.words}; tiles of a made-up pattern, {fine_side} pixels at 40x and {coarse_side} at 20x, differ by up to "
    detail += f"{apart} of 255; no slides are here"
    numbers = grids.numbers | {"from the grids": values, "largest difference": apart}
    return Measured(mean(values.values()), "any", detail, numbers=numbers)


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
    return min(measured.per_seed) > 0 and measured.numbers["lead in classification"] > 0


@paper.claim("c8", rule=_both, says="search higher on every seed, and classification higher on average")
def better_than_cbr(bench: Bench) -> Measured:
    found = measuring.studied(bench, "mosaic, most nuclei", "CBR")
    return measuring.lead(bench, found, "mosaic, most nuclei", "CBR")


def _more_is_not_worse(measured: Measured) -> bool:
    means = [mean(run["search"] for run in measured.numbers["runs"][name]) for name in measuring.BLOCKS]
    return min(measured.per_seed) >= 0 and all(more >= fewer for fewer, more in pairwise(means))


@paper.claim(
    "c10",
    rule=_more_is_not_worse,
    says="search with all blocks trained not below that with the last alone on any seed, and on average no block more hurts",
)
def more_blocks(bench: Bench) -> Measured:
    """The paper's configurations I to IV, each from the same network that learned to tell photos apart; that network without
    any fine-tuning is shown beside."""
    found = measuring.studied(bench, *measuring.BLOCKS, "photos")
    return measuring.lead(bench, found, "all blocks", "last block")
