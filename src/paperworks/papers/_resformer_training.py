"""ResFormer's runs: training over several sizes, a plain ViT with as many image passes, and both over a range of test sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import entries
from paperworks.data import ImageSource, Mix
from paperworks.data.several_sizes import SeveralSizes
from paperworks.errors import InputError
from paperworks.layers.transformer import xavier
from paperworks.objectives.classify import score
from paperworks.objectives.multi_resolution import MixSizes, MultiResolution
from paperworks.paper import Run, first_process
from paperworks.papers._classification import (
    AugmentConfig,
    ClassifierConfig,
    Trained,
    _plain,
    _some,
    build_network,
    entry_of,
    evaluation_transform,
    in_order,
    open_split,
    save_network,
    training_transform,
)
from paperworks.training import Context, Fitted, Objective, TrainConfig, fit

FACTORS = (0.4, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""test sizes as multiples of the largest training size; each is rounded to whole patches"""
NARROW = 192
"""width of the smallest published network"""
IMAGES = 300
"""test images per size of the curve, evenly spread: large sizes cost most of it"""


def plain_vit(arguments: Mapping[str, Any], size: int, num_classes: int) -> nn.Module:
    """timm's DeiT-like ViT of the same width and depth: positions learned for `size`, resized bicubically at any other."""
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path_rate")
    given = {name: arguments[name] for name in names if name in arguments}
    return VisionTransformer(img_size=size, num_classes=num_classes, dynamic_img_size=True, dynamic_img_pad=True, **given)


def start_narrow(network: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Both networks' linear layers from Xavier's deviations where they are narrow: the published 0.02 is meant for widths of
    several hundred, and at 64 it costs the first hundreds of steps."""
    if arguments.get("embed_dim", NARROW) < NARROW:
        xavier(module for name, module in network.named_modules() if not name.startswith("head"))


def curve_sizes(largest: int, patch: int) -> list[int]:
    """From 0.4 to 3 times the largest training size, in whole patches."""
    return sorted({max(1, round(largest * factor / patch)) * patch for factor in FACTORS})


def fit_sizes(
    objective: MultiResolution,
    source: ImageSource,
    augment: AugmentConfig,
    transform_for: Callable[[int], Any],
    training: TrainConfig,
    folder: Path,
    *,
    passes: int,
    evaluate: Callable[[Objective, Context], dict[str, float]] | None = None,
    label: str,
) -> Fitted:
    """Train on every size of the objective. A step makes `passes` image passes per image of the batch: a network with fewer
    sizes gets so many more images per step instead."""
    share, rest = divmod(passes, len(objective.sizes))
    if rest:
        raise InputError(f"{passes} passes cannot be shared by {len(objective.sizes)} sizes")
    assert source.classes is not None
    rows = torch.arange(len(source)).repeat(share)  # so that a small source fills the larger batch too
    data = SeveralSizes(source.subset(rows), objective.sizes, transform_for, seed=training.seed)
    mix = Mix(len(source.classes), augment.mixup, augment.cutmix, augment.mix_probability, 0.5, augment.smoothing)
    training = replace(training, batch_size=share * min(training.batch_size, len(source)))
    return fit(objective, data, training, folder, batch_transform=MixSizes(mix), evaluate=evaluate, label=label)


def accuracies(
    logits: Callable[[Tensor], Tensor], test: ImageSource, sizes: Sequence[int], crop_pct: float, classes: int
) -> dict[str, float]:
    """Top-1 as a share by test size; each image is resized to size / crop_pct and its centre cut out."""
    found = {}
    for size in sizes:
        batches = in_order(test, evaluation_transform(size, crop_pct, "crop"), batch=50)
        found[str(size)] = score(logits, batches, classes).top1
    return found


# --- stages -----------------------------------------------------------------------------------------------------------------


def train_sizes(sizes: tuple[int, ...], consistency: float, config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """The ResFormer, at all sizes; keeps the averaged weights."""
    source = open_split(config, "train")
    classes = _classes(source)
    network = build_network(config.network, len(classes), config.seed)
    if not config.network.weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            start_narrow(network, config.network.arguments)
    objective = _objective(network, sizes, consistency, config)
    watched = _some(open_split(config, "test"), config.watch)

    def evaluate(current: Objective, ctx: Context) -> dict[str, float]:
        assert isinstance(current, MultiResolution)
        plain = evaluation_transform(config.image_size, config.crop_pct, "crop")
        found = score(current.logits, in_order(watched, plain), len(classes))
        return {"top1": found.top1, "loss": found.loss}

    folder = run.stage_folder("train")
    fitted = fit_sizes(
        objective,
        source,
        config.augment,
        _transform_for(config),
        config.training,
        folder,
        passes=len(sizes),
        evaluate=evaluate,
        label="ResFormer",
    )
    if first_process():
        averaged = fitted.averaged
        assert isinstance(averaged, MultiResolution) and isinstance(averaged.model, Backbone)
        save_network(averaged.model, classes, [{_plain(name)} for name in classes], folder)
    batch = min(config.training.batch_size, len(source))
    return {
        "images": len(source),
        "classes": len(classes),
        "skipped": source.skipped,
        "source": source.name,
        "parameters": sum(parameter.numel() for parameter in objective.model.parameters()),
        "seconds": fitted.seconds,
        "images_per_second": fitted.step * batch * len(sizes) / max(fitted.seconds, 1e-9),
        "image_passes": fitted.step * batch * len(sizes),
    }


def train_plain(sizes: tuple[int, ...], config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """The plain ViT at the largest size alone, with as many steps and image passes, and its accuracy at all test sizes."""
    source = open_split(config, "train")
    classes = _classes(source)
    arguments = {**entries()[config.network.name].arguments, **config.network.arguments}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = plain_vit(arguments, sizes[0], len(classes))
        start_narrow(network, arguments)
    fitted = fit_sizes(
        _objective(network, sizes[:1], 0.0, config),
        source,
        config.augment,
        _transform_for(config),
        config.training,
        run.stage_folder("plain"),
        passes=len(sizes),
        label="plain ViT",
    )
    averaged = fitted.averaged
    assert isinstance(averaged, MultiResolution)
    found = _curve(averaged.logits, config, len(classes))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"top1": found, "parameters": parameters, "seconds": fitted.seconds}


def measure_sizes(config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """The trained ResFormer at all test sizes."""
    trained = Trained.of(run)
    return {"top1": _curve(trained.objective.logits, config, len(trained.classes))}


def _curve(logits: Callable[[Tensor], Tensor], config: ClassifierConfig, classes: int) -> dict[str, float]:
    patch = {**entries()[config.network.name].arguments, **config.network.arguments}.get("patch_size", 16)
    sizes = curve_sizes(config.image_size, patch)
    return accuracies(logits, _some(open_split(config, "test"), IMAGES), sizes, config.crop_pct, classes)


def _objective(network: nn.Module, sizes: Sequence[int], consistency: float, config: ClassifierConfig) -> MultiResolution:
    cfg = entry_of(config.network.name).pretrained_cfg
    kind: Any = "smooth_l1" if consistency and len(sizes) > 1 else "none"
    return MultiResolution(network, sizes, consistency=kind, weight=consistency, mean=cfg["mean"], std=cfg["std"])


def _transform_for(config: ClassifierConfig) -> Callable[[int], Any]:
    if config.augment.kind == "shift":
        raise InputError("augment.kind 'shift' cuts without resizing, so there is one size only: take 'crop' or 'imagenet'")
    return lambda size: training_transform(replace(config, image_size=size))


def _classes(source: ImageSource) -> list[str]:
    classes = source.classes or []
    if len(classes) < 2:
        raise InputError(f"{source.name} has {len(classes)} class: a classifier needs at least two, one sub-folder for each")
    return classes
