"""`paperworks compare --task inpainting`: PUT, VAR and HMAR learn crops of the same photos and fill the same holes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from paperworks.analysis.metrics import psnr
from paperworks.data import open_images
from paperworks.data.masks import draw_holes
from paperworks.errors import InputError
from paperworks.generators import masked_scale_sampling, next_scale_sampling
from paperworks.generators.draws import Draws
from paperworks.generators.unquantized_sampling import inpaint as fill_patches
from paperworks.paper import Recipe, Run, Stage, first_process
from paperworks.papers import hmar, put, var
from paperworks.papers._generation import framed, to_float
from paperworks.papers._hmar_recipe import schedule_of
from paperworks.papers._put_recipe import PUTConfig, cut_crops, load_codec, load_transformer
from paperworks.papers._var_recipe import load_tokenizer as var_tokenizer
from paperworks.papers._var_recipe import load_transformer as var_transformer
from paperworks.reporting import Report
from paperworks.training import TrainConfig

SIDE = 32
PHOTOS = 500
"""of a folder that crops are cut from at most"""


@dataclass(frozen=True)
class CompareInpaintingConfig:
    data: str = "photos"
    budget: float = 300.0
    """seconds that each method may train, about; its stages share them as in its own laptop recipe"""
    image: str = ""
    """a picture to fill; held-out crops are filled in any case"""
    mask: str = ""
    """white where pixels are to be made anew; the centre without one"""
    crops: int = 4000
    seed: int = 0


def compare(data: str, budget: float, image: str, mask: str, seed: int) -> Recipe:
    config = CompareInpaintingConfig("photos" if data == "default" else data, budget, image, mask, seed=seed)
    if mask and not image:
        raise InputError("a mask needs the image that it belongs to: name it with --image")
    methods = [Stage(name, partial(train_method, name)) for name in METHODS]
    return Recipe(config, (Stage("crops", write_crops), *methods, Stage("report", write_report)))


def write_crops(config: CompareInpaintingConfig, run: Run) -> Mapping[str, Any]:
    """One folder of small pictures that all methods read."""
    source = open_images(config.data, split="train", channels=3, labels="none")
    folder = run.stage_folder("crops") / "pictures"
    # crops as those that are filled in the end; of a large folder some photos, evenly spread
    some = source.subset(torch.linspace(0, len(source) - 1, min(len(source), PHOTOS)).round().long())
    cut = cut_crops(some, SIDE, config.crops, PUTConfig().scales, config.seed)
    pictures = torch.stack([cut.read(index) for index in range(len(cut))])
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
    return {"pictures": len(pictures), "photos": len(source), "skipped": source.skipped}


# --- the three methods ------------------------------------------------------------------------------------------------


def _shortened(training: TrainConfig, share: float) -> TrainConfig:
    return replace(training, steps=max(2, round(share * training.steps)))


def _own(name: str, config: CompareInpaintingConfig, run: Run) -> Recipe:
    """The paper's laptop recipe on the crops, its steps in proportion to the budget (it takes five minutes by itself)."""
    paper = {"put": put.paper, "var": var.paper, "hmar": hmar.paper}[name]
    recipe = paper.recipes["laptop"](data=str(run.folder / "crops" / "pictures"), seed=config.seed)
    own, share = recipe.config, config.budget / 300
    changes: dict[str, Any] = {
        field: _shortened(getattr(own, field), share) for field in vars(own) if isinstance(getattr(own, field), TrainConfig)
    }
    if hasattr(own, "copies"):
        changes["copies"] = 2
    training = [stage for stage in recipe.stages if stage.name != "report"]
    return Recipe(replace(own, **changes), tuple(training))


def train_method(name: str, config: CompareInpaintingConfig, run: Run) -> Mapping[str, Any]:
    recipe = _own(name, config, run)
    mine = Run.open(
        run.stage_folder(name) / "run",
        slug=name,
        recipe="compare",
        arguments={},
        config=recipe.config,
        command="paperworks compare",
    )
    mine.execute(recipe, say=_quiet)
    return {"seconds": round(sum(mine.result(stage.name)["seconds"] for stage in recipe.stages), 1)}


def _quiet(text: str) -> None:
    """A comparison says one line per method."""


Fill = Callable[[Tensor, Tensor, int], Tensor]
"""(images [N, 3, 32, 32], holes bool [N, 32, 32], seed) -> completed images"""


def _put(run: Run) -> Fill:
    config: PUTConfig = run.config(PUTConfig)
    codec, model = load_codec(run), load_transformer(run)
    return lambda images, holes, seed: fill_patches(
        model, codec, images, holes, Draws.seeded(seed, len(images)), config.filling
    )


def _var(run: Run) -> Fill:
    config = run.config(type(var.paper.recipes["laptop"]().config))
    tokenizer, model, part = var_tokenizer(run), var_transformer(run), config.sampling

    def fill(images: Tensor, holes: Tensor, seed: int) -> Tensor:
        free = torch.full((len(images),), model.num_classes)
        settings: dict[str, Any] = {"guidance": 0.0, "top_k": part.top_k, "top_p": part.top_p}
        draws = Draws.seeded(seed, len(images))
        return next_scale_sampling.inpaint(model, tokenizer, images, holes.float(), free, draws, **settings)

    return fill


def _hmar(run: Run) -> Fill:
    config = run.config(type(hmar.paper.recipes["laptop"]().config))
    tokenizer, model, part = hmar.KIT.tokenizer_of(run), hmar.KIT.generator_of(run), config.sampling

    def fill(images: Tensor, holes: Tensor, seed: int) -> Tensor:
        free = torch.full((len(images),), model.num_classes)
        settings: dict[str, Any] = {"guidance": 0.0, "top_k": part.top_k, "top_p": part.top_p}
        draws, schedule = Draws.seeded(seed, len(images)), schedule_of(config)
        return masked_scale_sampling.inpaint(
            model, tokenizer, images, holes.float(), free, draws, schedule=schedule, **settings
        )

    return fill


METHODS: dict[str, Callable[[Run], Fill]] = {"put": _put, "var": _var, "hmar": _hmar}


# --- the page ---------------------------------------------------------------------------------------------------------


def chosen(config: CompareInpaintingConfig) -> tuple[Tensor, Tensor]:
    """The user's picture first, where there is one, then held-out crops, with a hole each."""
    source = open_images(config.data, split="test", channels=3, labels="none")
    source = source if len(source) else open_images(config.data, split="train", channels=3, labels="none")
    source = source.subset(torch.linspace(0, len(source) - 1, min(len(source), 100)).round().long())
    cut = cut_crops(source, SIDE, 100, PUTConfig().scales, seed=99)
    images = to_float(torch.stack([cut.read(index) for index in range(len(cut))]))
    holes = draw_holes(range(len(images)), (SIDE, SIDE), PUTConfig().holes, seed=99)
    if config.image:
        picture = framed(open_images(config.image, channels=3, strict=True), SIDE)[:1]
        hole = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        hole[:, 10:22, 10:22] = True
        if config.mask:
            hole = framed(open_images(config.mask, channels=1, strict=True), SIDE)[:1, 0] > 0.5
        images, holes = torch.cat((picture, images)), torch.cat((hole, holes))
    return images, holes


@torch.no_grad()
def write_report(config: CompareInpaintingConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    images, holes = chosen(config)
    inside = holes[:, None].expand_as(images)
    mean_colour = torch.stack([image[:, ~hole].mean(1) for image, hole in zip(images, holes)])[:, :, None, None]
    rows: dict[str, Tensor] = {"picture": images, "hole": torch.where(inside, 0.5, images)}
    numbers = {"mean of the known": _inside(torch.where(inside, mean_colour, images), images, inside)}
    for name, load in METHODS.items():
        fill = load(Run.load(run.folder / name / "run"))
        versions = [fill(images, holes, config.seed + number) for number in range(2)]
        for number, made in enumerate(versions):
            rows[f"{name} {number + 1}"] = made
        numbers[name] = _inside(versions[0], images, inside)
        changed = float(((versions[0] - images).abs() * ~inside).max())
        if changed > 0:
            raise AssertionError(f"{name} changed a known pixel by {changed}")
    shown = {name: part[:10] for name, part in rows.items()}
    page = Report("One hole, three methods", f"crops of {config.data}, {config.budget:g} seconds of training each")
    page.figures({name: f"{value:.1f} dB" for name, value in numbers.items()})
    note = "Held-out crops; known pixels come back unchanged from all three. The figures are the PSNR inside the holes."
    page.compare("The same pictures and masks", shown, caption=note)
    table = [[name, f"{run.result(name)['seconds']:.0f}", f"{numbers[name]:.2f}"] for name in METHODS]
    table.append(["mean of the known pixels", "", f"{numbers['mean of the known']:.2f}"])
    page.table("Numbers", ["method", "seconds of training", "PSNR in the hole (dB)"], table)
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return {"PSNR in the hole (dB)": numbers}


def _inside(made: Tensor, truth: Tensor, inside: Tensor) -> float:
    return psnr(made[inside][None, None, None], truth[inside][None, None, None])
