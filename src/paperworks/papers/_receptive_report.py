"""Effective receptive fields of several networks on the same photos: measured, drawn side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from paperworks.analysis.receptive_field import THRESHOLDS, effective_receptive_field
from paperworks.backbones.registry import create, entries
from paperworks.data import open_images
from paperworks.data.photos import random_crops
from paperworks.errors import InputError, nearest
from paperworks.layers.pretrained import read_weights
from paperworks.objectives.classify import Normalise
from paperworks.paper import Run, first_process
from paperworks.reporting import Report
from paperworks.reporting.style import styled


@dataclass(frozen=True)
class ReceptiveConfig:
    networks: tuple[str, ...] = ()
    """names known here or to timm, each possibly with =FILE of weights"""
    data: str = "photos"
    size: int = 384
    count: int = 3
    seed: int = 0


def build(name: str, config: ReceptiveConfig) -> nn.Module:
    """A network by name with the weights of a file, or random ones from the configuration's seed."""
    name, _, file = name.partition("=")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if name in entries():
            entry = entries()[name]
            network: nn.Module = entry.network.from_official(read_weights(file), **entry.arguments) if file else create(name)
        elif timm.is_model(name):
            try:  # many transformers take images of one size
                network = timm.create_model(name, checkpoint_path=file, img_size=config.size)
            except TypeError:
                network = timm.create_model(name, checkpoint_path=file)
        else:
            raise InputError(f"no network {name!r} here or in timm{nearest(name, [*entries(), *timm.list_models()])}")
        if not file:
            start_plainly(network)
    return network.eval()


@torch.no_grad()
def start_plainly(network: nn.Module) -> None:
    """Kaiming weights in convolutions and products; layer scales and last norms of blocks that start near zero at 1. With the
    weights that training starts from, blocks add next to nothing, and only the layers outside them would be seen."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d) and module.affine and not bool(module.weight.any()):
            nn.init.ones_(module.weight)
    for name, parameter in network.named_parameters():
        muted = parameter.ndim == 1 and 0 < float(parameter.abs().max()) < 0.1
        if muted and name.rpartition(".")[2].startswith("gamma"):
            parameter.fill_(1.0)


def measure(config: ReceptiveConfig, run: Run) -> Mapping[str, Any]:
    photos = random_crops(open_images(config.data, labels="none", channels=3), config.size, config.count, config.seed)
    normalise = Normalise()
    images = [normalise(photos[index]["image"][None].float() / 255) for index in range(len(photos))]
    found, maps = {}, {}
    for name in config.networks:
        model = build(name, config)
        field = effective_receptive_field(model, images)
        maps[name] = field.scaled
        found[name] = {str(square.share): [square.side, square.area] for square in field.squares}
    torch.save(maps, run.stage_folder("measure") / "maps.pt")
    (run.stage_folder("measure") / "fields.json").write_text(json.dumps(found))
    return {"fields": found, "skipped": photos.skipped}


def write_report(config: ReceptiveConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    found = run.result("measure")["fields"]
    maps = torch.load(run.folder / "measure" / "maps.pt")
    page = Report("Effective receptive fields", f"{config.count} squares of {config.size} pixels from {config.data}")
    rows = [
        [name, *(f"{side} ({area:.1%})" if side is not None else "not reached" for side, area in squares.values())]
        for name, squares in found.items()
    ]
    columns = ["network", *(f"{share:.0%} of the contributions" for share in THRESHOLDS)]
    note = "Side of the smallest centred square that holds them, and its share of the image. Without a file: "
    note += "Kaiming weights, layer scales at 1."
    page.table("How far the centre sees", columns, rows, note=note)
    with styled() as pyplot:
        figure, axes = pyplot.subplots(1, len(maps), figsize=(2.4 * len(maps), 2.6), squeeze=False)
        for place, (name, values) in zip(axes[0], maps.items()):
            place.imshow(values.numpy(), cmap="viridis")
            place.set_title(name.partition("=")[0], fontsize=8)
            place.set_axis_off()
    page.figure("Contributions of every pixel to the centre of the last map", figure, caption="log scale, brightest is most")
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return {name: squares["0.5"] for name, squares in found.items()}
