"""Training and using image classifiers: the configuration and stages that papers of recognition networks share.

A recipe of such a paper is a `ClassifierConfig` and `STAGES`; a run leaves the network in `train/model` (safetensors and
config.json), which `Trained.of(run)` opens again.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperworks.backbones.inference import Prepared, prepare_for_inference
from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import Entry, entries
from paperworks.data import ImageSource, Loader, Mix, Transformed, open_images
from paperworks.data.transforms import Cutout, Drawn, eval_crop, eval_shift, imagenet_train, train_crop, train_shift
from paperworks.data.wobble import Chain
from paperworks.errors import InputError, nearest
from paperworks.layers.pretrained import read_weights
from paperworks.objectives.classify import Classify, Scores, score
from paperworks.paper import Run, first_process, write_json
from paperworks.training import Context, Objective, TrainConfig, fit

DIGITS = ("default", "mnist5k", "digits")
"""embedded data whose images must not be mirrored"""


@dataclass(frozen=True)
class NetworkConfig:
    name: str = "inceptionnext_tiny"
    """a network of this library"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """of its constructor, in place of the published ones"""
    weights: str = ""
    """start from these: a file (the authors', timm's, or one of ours), or "hub" for timm's released ones; "" for none"""


@dataclass(frozen=True)
class AugmentConfig:
    kind: Literal["shift", "crop", "imagenet", "none"] = "shift"
    """pad and cut (small images), resize and cut, random resized crop with RandAugment and erasing, or nothing"""
    flip: bool = True
    magnitude: float = 9.0
    """of RandAugment, on a scale that papers call 0 to 10 and go beyond; 0 for none ("imagenet" only)"""
    deviation: float = 0.5
    """of the magnitude, from one operation to the next"""
    probability: float = 0.5
    """of each of RandAugment's two operations"""
    erase: float = 0.25
    """probability of random erasing ("imagenet" only)"""
    cutout: int = 0
    """side of a square of every image that takes the mean colour; 0 for none (not with "imagenet")"""
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    """share of the batches that are mixed"""
    smoothing: float = 0.1


@dataclass(frozen=True)
class ClassifierConfig:
    data: str = "default"
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    image_size: int = 32
    crop_pct: float = 0.875
    """at evaluation: share of the resized shorter side that the centre crop takes ("shift" needs no resizing)"""
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000, batch_size=64))
    watch: int = 1000
    """test images looked at while training, for the curve"""
    seed: int = 0


# --- images -----------------------------------------------------------------------------------------------------------------


def open_split(config: ClassifierConfig, split: Literal["train", "test"]) -> ImageSource:
    return open_images(config.data, split=split, strict=config.strict, labels="required", channels=3)


def training_transform(config: ClassifierConfig) -> Any:
    size, augment = config.image_size, config.augment
    if augment.kind == "imagenet":
        if augment.cutout:
            raise InputError(f"augment.cutout={augment.cutout}: 'imagenet' erases rectangles instead, see augment.erase")
        return imagenet_train(
            size,
            flip=0.5 if augment.flip else 0.0,
            magnitude=augment.magnitude,
            deviation=augment.deviation,
            probability=augment.probability,
            erase=augment.erase,
        )
    if augment.kind == "shift":
        plain = train_shift(size, pad=max(1, size // 8), flip=augment.flip)
    elif augment.kind == "crop":
        plain = train_crop(size, flip=augment.flip)
    else:
        plain = evaluation_transform(size, config.crop_pct, augment.kind)
    if not augment.cutout:
        return plain
    return Chain(plain, Cutout(augment.cutout, entry_of(config.network.name).pretrained_cfg["mean"]))


def evaluation_transform(size: int, crop_pct: float, kind: str) -> Drawn:
    if not 0 < crop_pct <= 1:
        raise InputError(f"crop_pct {crop_pct}: it is a share of the image, above 0 and at most 1")
    return eval_shift(size) if kind == "shift" else eval_crop(size, margin=1 / crop_pct)


def in_order(source: ImageSource, transform: Any, batch: int = 100) -> Iterator[dict[str, Any]]:
    """All images of a source once, in their order, without making the last batch complete."""
    data = Transformed(source, transform, seed=0)
    return iter(Loader(data, min(batch, len(source)), seed=0, shuffle=False, drop_last=False))


# --- networks ---------------------------------------------------------------------------------------------------------------


def entry_of(name: str) -> Entry:
    if name not in entries():
        raise InputError(f"no network {name!r}{nearest(name, entries())}")
    return entries()[name]


def build_network(config: NetworkConfig, num_classes: int, seed: int) -> Backbone:
    """Random weights from the seed, or released ones; their last layer is dropped where the number of classes differs."""
    entry, arguments = entry_of(config.name), _arguments(config, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = entry.build(**arguments)
        except TypeError as error:
            raise InputError(f"network {config.name}: {error}") from None
    if not config.weights:
        return network
    weights = _released(config)
    last = _last_layer(config.name)
    if any(len(value) != num_classes for name, value in weights.items() if name.startswith(last)):
        weights |= {name: value for name, value in network.state_dict().items() if name.startswith(last)}
    with torch.random.fork_rng(devices=[]):  # a last layer that the file does not have starts from the seed as well
        torch.manual_seed(seed)
        return entry.network.from_official(weights, **arguments)


def _arguments(config: NetworkConfig, num_classes: int) -> dict[str, Any]:
    return {**entry_of(config.name).arguments, **config.arguments, "num_classes": num_classes}


def _last_layer(name: str) -> str:
    """What the keys of a network's last layer begin with."""
    return str(entry_of(name).pretrained_cfg["classifier"]) + "."


def _released(config: NetworkConfig) -> dict[str, Tensor]:
    if config.weights != "hub":
        return read_weights(config.weights)
    import timm

    try:
        return timm.create_model(config.name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{config.name} could not be fetched ({str(error).splitlines()[0]}); give a file instead") from None


@dataclass
class Trained:
    """A network with what is needed to use it on images."""

    objective: Classify
    classes: list[str]
    also_called: list[set[str]]
    """per class every name under which data sets know it"""
    size: int
    crop_pct: float
    kind: str
    """of the evaluation's transform: "shift" or another"""

    @classmethod
    def of(cls, run: Run) -> Trained:
        """What the train stage of a run left."""
        run.result("train")
        config: ClassifierConfig = run.config(ClassifierConfig)
        folder = run.folder / "train"
        about = json.loads((folder / "classes.json").read_text())
        network = entry_of(config.network.name).network.from_pretrained(folder / "model")
        kind = "shift" if config.augment.kind == "shift" else "crop"
        also = [set(names) for names in about["also_called"]]
        return cls(_objective(network, config), about["classes"], also, config.image_size, config.crop_pct, kind).eval()

    def eval(self) -> Trained:
        self.objective.eval()
        return self

    def transform(self, size: int | None = None, crop_pct: float | None = None) -> Drawn:
        return evaluation_transform(size or self.size, crop_pct or self.crop_pct, self.kind)

    def fast(self, example: Tensor | None = None) -> Prepared:
        """The network prepared for inference; takes images in [0, 1], normalisation included."""
        return prepare_for_inference(nn.Sequential(self.objective.normalise, self.objective.model), example=example)

    def align(self, source: ImageSource) -> Tensor:
        """int64 [classes of the source]: the network's class for each of them. By name; by number where the counts agree and
        no name is known."""
        assert source.classes is not None
        known = {name: number for number, names in enumerate(self.also_called) for name in names}
        found = [known.get(_plain(name)) for name in source.classes]
        if all(number is None for number in found) and len(found) == len(self.classes):
            return torch.arange(len(found))
        unknown = [name for name, number in zip(source.classes, found) if number is None]
        if unknown:
            shown = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
            raise InputError(f"{source.name}: the network does not know {len(unknown)} of its classes ({shown})")
        return torch.tensor(found)

    def score(self, source: ImageSource, size: int | None = None, crop_pct: float | None = None, fast: bool = False) -> Scores:
        """Top-1, top-5, loss and confusion on labelled images."""
        numbers = self.align(source)
        logits_of = self.fast() if fast else self.objective.logits
        batches = (b | {"label": numbers[b["label"]]} for b in in_order(source, self.transform(size, crop_pct)))
        return score(logits_of, batches, len(self.classes))


def _objective(network: nn.Module, config: ClassifierConfig) -> Classify:
    cfg = entry_of(config.network.name).pretrained_cfg
    return Classify(network, smoothing=0.0, mean=cfg["mean"], std=cfg["std"])


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


# --- stages -----------------------------------------------------------------------------------------------------------------


def train(config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """Train on the images, keep the averaged weights."""
    return train_on(open_split(config, "train"), config, run)


def train_on(source: ImageSource, config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """The same on images that are given."""
    classes = source.classes or []
    if len(classes) < 2:
        raise InputError(f"{source.name} has {len(classes)} class: a classifier needs at least two, one sub-folder for each")
    objective = _objective(build_network(config.network, len(classes), config.seed), config)
    watched = _some(open_split(config, "test"), config.watch)
    augment = config.augment

    def evaluate(current: Objective, ctx: Context) -> dict[str, float]:
        assert isinstance(current, Classify)
        plain = evaluation_transform(config.image_size, config.crop_pct, augment.kind)
        found = score(current.logits, in_order(watched, plain), len(classes))
        return {"top1": found.top1, "loss": found.loss}

    data = Transformed(source, training_transform(config), seed=config.seed)
    mix = Mix(len(classes), augment.mixup, augment.cutmix, augment.mix_probability, 0.5, augment.smoothing)
    training = replace(config.training, batch_size=min(config.training.batch_size, len(source)))
    folder = run.stage_folder("train")
    fitted = fit(objective, data, training, folder, batch_transform=mix, evaluate=evaluate, label="training")
    if first_process():
        averaged = fitted.averaged
        assert isinstance(averaged, Classify) and isinstance(averaged.model, Backbone)
        save_network(averaged.model, classes, [{_plain(name)} for name in classes], folder)
    return {
        "images": len(source),
        "classes": len(classes),
        "skipped": source.skipped,
        "source": source.name,
        "parameters": sum(parameter.numel() for parameter in objective.model.parameters()),
        "seconds": fitted.seconds,
        "images_per_second": fitted.step * training.batch_size / max(fitted.seconds, 1e-9),
    }


def load_released(config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """In place of training: a network with released weights, as many classes as the file has and their names."""
    name = config.network.name
    entry, last = entry_of(name), _last_layer(name)
    weights = _without_background(_released(config.network), last)
    rows = {len(value) for key, value in weights.items() if key.startswith(last)}
    expected = int(entry.pretrained_cfg["num_classes"])
    count = rows.pop() if len(rows) == 1 else expected  # where authors call the layer otherwise, loading compares
    if _part_of_imagenet(count) is None and count != expected:
        raise InputError(
            f"{config.network.weights}: its last layer has {count} classes and {name}'s released one {expected}, so their "
            "names are not known; --recipe finetune with the same --weights and your --data trains a last layer for yours"
        )
    try:
        with warnings.catch_warnings():
            # networks warn when they leave a last layer of other classes out
            warnings.filterwarnings("error", message="the last layer of these weights")
            network = entry.network.from_official(weights, **_arguments(config.network, count))
    except TypeError as error:
        raise InputError(f"network {name}: {error}") from None
    except UserWarning as warning:
        raise InputError(
            f"{config.network.weights}: {warning}; --recipe finetune with the same --weights and your --data trains it"
        ) from None
    classes, also = released_classes(count)
    save_network(network, classes, also, run.stage_folder("train"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"source": config.network.weights, "parameters": parameters, "classes": count}


def _without_background(weights: dict[str, Tensor], last: str) -> dict[str, Tensor]:
    """ImageNet's 1000 classes where the file has 1001: TensorFlow's networks put "background" before them."""
    return {key: value[1:] if key.startswith(last) and len(value) == 1001 else value for key, value in weights.items()}


def _part_of_imagenet(classes: int) -> str | None:
    """timm's name of the part that has so many classes."""
    from timm.data import infer_imagenet_subset

    return infer_imagenet_subset({"num_classes": classes})


def released_classes(count: int) -> tuple[list[str], list[set[str]]]:
    """Names of the classes of a part of ImageNet that is told by its number of classes, and per class all names by which data
    sets know it; plain numbers for anything else."""
    subset = _part_of_imagenet(count)
    if subset is None:
        return [str(number) for number in range(count)], [set() for _ in range(count)]
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    descriptions = [info.index_to_description(index) for index in range(count)]
    also = [
        {_plain(name) for name in (info.index_to_label_name(index), words, *words.split(","))}
        for index, words in enumerate(descriptions)
    ]
    uses = Counter(name for names in also for name in names)
    return [words.split(",")[0] for words in descriptions], [{name for name in names if uses[name] == 1} for names in also]


def save_network(network: Backbone, classes: list[str], also_called: list[set[str]], folder: Path) -> None:
    network.save_pretrained(folder / "model")
    write_json(folder / "classes.json", {"classes": classes, "also_called": [sorted(names) for names in also_called]})


def linear_baseline(config: ClassifierConfig, run: Run, limit: int = 5000) -> Mapping[str, Any]:
    """Logistic regression on pixels (at most 32 x 32, `limit` images): what a classifier reaches without any network."""
    from sklearn.linear_model import LogisticRegression

    size = min(32, config.image_size)
    plain = evaluation_transform(size, 1.0, "crop")
    parts = {}
    for split in ("train", "test"):
        source = _some(open_split(config, split), limit)
        assert source.labels is not None
        pixels = torch.cat([batch["image"].flatten(1) for batch in in_order(source, plain)]).float().div_(255)
        parts[split] = (pixels.numpy(), source.labels.numpy())
    model = LogisticRegression(C=0.05, max_iter=200).fit(*parts["train"])
    return {"top1": float(model.score(*parts["test"])), "images": len(parts["train"][0]), "pixels": size}


def evaluate(config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """Scores on the held-out images."""
    trained = Trained.of(run)
    test = open_split(config, "test")
    found = trained.score(test)
    folder = run.stage_folder("evaluate")
    torch.save({name: value for name, value in asdict(found).items() if isinstance(value, Tensor)}, folder / "scores.pt")
    assert test.labels is not None
    majority = float(test.labels.bincount().max()) / len(test)
    return {"top1": found.top1, "top5": found.top5, "loss": found.loss, "images": len(test), "majority": majority}


def _some(source: ImageSource, limit: int) -> ImageSource:
    """At most `limit` images, evenly spread over the source."""
    if len(source) <= limit:
        return source
    return source.subset(torch.linspace(0, len(source) - 1, limit).round().long())
