"""KimiaNet's second stage: weak labels to a network; and tiles to features."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.backbones.inference import Prepared, prepare_for_inference
from paperworks.backbones.kimianet import KimiaNet, official_name
from paperworks.backbones.registry import create
from paperworks.data import ImageSource, Loader, Transformed
from paperworks.data.stains import Restained
from paperworks.data.transforms import to_float, train_shift
from paperworks.errors import InputError
from paperworks.layers.pretrained import load_official, read_weights
from paperworks.objectives.classify import Classify, score
from paperworks.paper import Run, first_process
from paperworks.papers._kimianet_slides import SlidesConfig, chosen
from paperworks.training import Context, Fitted, Objective, fit
from paperworks.training.checkpoint import Checkpoint, path_of
from paperworks.training.state import load_weights


def batch_of(size: int) -> int:
    """Tiles at once: 4 at 1000 pixels hold about a gigabyte of maps."""
    return max(1, min(64, 64 * 256**2 // size**2))


def in_order(tiles: ImageSource, batch: int) -> Iterator[dict[str, Any]]:
    """All tiles once, in batches."""
    data = Transformed(tiles, None, seed=0)
    return iter(Loader(data, min(batch, len(tiles)), seed=0, shuffle=False, drop_last=False))


# --- the network --------------------------------------------------------------------------------------------------------


def build(config: SlidesConfig, classes: int) -> KimiaNet:
    """Random weights from the seed, or given ones; their last layer is dropped where the number of classes differs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            network = create("kimianet", num_classes=classes, **config.network)
        except TypeError as error:
            raise InputError(f"network: {error}") from None
    assert isinstance(network, KimiaNet)
    if not config.weights:
        return network
    weights = {official_name(key): value for key, value in read_weights(config.weights).items()}
    fresh = network.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        if name not in weights or weights[name].shape != fresh[name].shape:
            weights[name] = fresh[name]
    return load_official(network, weights)


class WeakLabels(Classify):
    """Classification of tiles by their slides' labels. Blocks that do not learn also keep their norms' statistics."""

    def __init__(self, network: KimiaNet, blocks: int):
        super().__init__(network)
        self.still: list[nn.Module] = []
        pattern = network.frozen_pattern(blocks)
        if not pattern:
            return
        for name, parameter in network.named_parameters():
            if re.match(pattern, name):
                parameter.requires_grad_(False)
        self.still = [part for name, part in network.named_modules() if name and re.match(pattern, name + ".")]

    def train(self, mode: bool = True) -> WeakLabels:
        super().train(mode)
        for part in self.still:
            part.train(False)
        return self


# --- the stage ----------------------------------------------------------------------------------------------------------


def train(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """The second stage: a classifier of tiles under weak labels. With validation slides the weights that were best on them
    are kept: what stopping early at the right moment would leave."""
    found, size = chosen(run, "train"), config.tiling.size
    tiles = found.tiles(size)
    objective = WeakLabels(build(config, len(found.slides.classes)), config.blocks)
    moved = train_shift(size, pad=config.shift, flip=True, mode="reflect")
    data = Transformed(tiles, Restained(moved, config.stain) if config.stain else moved, seed=config.seed)
    training = config.training
    if training.batch_size > len(tiles):
        training = replace(training, batch_size=len(tiles))
    folder = run.stage_folder("train")
    watched = "validation" in run.result("mosaics")["parts"]
    evaluate = on_tiles(chosen(run, "validation").tiles(size), batch_of(size)) if watched else None
    best = "-loss" if watched else None
    fitted = fit(objective, data, training, folder, evaluate=evaluate, best=best, label="weak labels")
    if first_process():
        kept_network(fitted, folder).save_pretrained(folder / "model")
    parameters = sum(p.numel() for p in objective.model.parameters())
    result: dict[str, Any] = {"parameters": parameters, "seconds": fitted.seconds, "tiles": len(tiles)}
    if fitted.best:
        result |= {"validation loss": fitted.best[0], "kept step": fitted.best[1]}
    return result


def on_tiles(tiles: ImageSource, batch: int) -> Callable[[Objective, Context], dict[str, float]]:
    """What `fit` evaluates with: mean cross-entropy on these tiles, and the share whose class is right."""
    classes = len(tiles.classes or ())

    def evaluate(current: Objective, ctx: Context) -> dict[str, float]:
        assert isinstance(current, Classify)
        found = score(lambda images: current.logits(images.to(ctx.device)).cpu(), in_order(tiles, batch), classes)
        return {"loss": found.loss, "accuracy": found.top1}

    return evaluate


def kept_network(fitted: Fitted, folder: Path) -> KimiaNet:
    """With the weights of the best evaluation where there was one, else with the last ones; averaged where a run averages."""
    objective = fitted.averaged
    if fitted.best:
        step = fitted.best[1]
        saved = Checkpoint(path_of(folder, step), step)
        load_weights(objective, saved.averaged() or saved.weights())
    assert isinstance(objective, Classify) and isinstance(objective.model, KimiaNet)
    return objective.model


def take_released(config: SlidesConfig, run: Run) -> Mapping[str, Any]:
    """In place of training: weights as they are."""
    network = build(config, len(run.result("mosaics")["classes"]))
    network.save_pretrained(run.stage_folder("train") / "model")
    return {"parameters": sum(p.numel() for p in network.parameters()), "seconds": 0.0, "tiles": 0}


def load_network(run: Run) -> KimiaNet:
    run.result("train")
    return KimiaNet.from_pretrained(run.folder / "train" / "model").eval()


# --- features -----------------------------------------------------------------------------------------------------------


class FeaturesAndLogits(nn.Module):
    """Tiles [N, 3, H, W] in [0, 1] -> (features [N, D], logits [N, classes])."""

    def __init__(self, network: KimiaNet):
        super().__init__()
        self.normalise, self.network = Classify(network).normalise, network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.forward_head(self.network.forward_features(self.normalise(images)), pre_logits=True)
        return features, self.network.get_classifier()(features)


def prepared(network: KimiaNet, example: Tensor | None = None) -> Prepared:
    """Faster, in float32: bits of a barcode hang on small differences."""
    return prepare_for_inference(FeaturesAndLogits(network).eval(), precision="32", example=example)


def look(network: nn.Module, tiles: ImageSource, batch: int = 64) -> tuple[Tensor, Tensor]:
    """(features, logits) of all tiles in order."""
    with torch.inference_mode():
        found = [network(to_float(part["image"])) for part in in_order(tiles, batch)]
    return torch.cat([features for features, _ in found]).clone(), torch.cat([logits for _, logits in found]).clone()
