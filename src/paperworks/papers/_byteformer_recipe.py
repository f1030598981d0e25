"""ByteFormer's runs: images written as files, recordings, or files as they lie, to a network; and the same images with pixels
beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.counting import count_parameters
from paperworks.backbones.byteformer import ByteFormer
from paperworks.data import ImageSource, Transformed
from paperworks.data.file_bytes import FileSource
from paperworks.errors import InputError
from paperworks.layers.pretrained import read_weights
from paperworks.objectives.classify import Classify, Scores, score
from paperworks.objectives.classify_files import ClassifyFiles
from paperworks.paper import Run, first_process, write_json
from paperworks.papers._byteformer_files import (
    Files,
    FilesConfig,
    augmented,
    files_of,
    fitting,
    images_of,
    lengths,
    moved,
    network_arguments,
    numbered,
    source_of,
    together,
    written,
)
from paperworks.papers._classification import _plain, _some, evaluation_transform, in_order, linear_baseline
from paperworks.training import Context, Objective, TrainConfig, fit

# --- networks ---------------------------------------------------------------------------------------------------------


def build_network(config: FilesConfig, classes: int, longest: int) -> ByteFormer:
    """Random weights from the seed. max_tokens 0: as many positions as a file of `longest` bytes needs."""
    arguments = network_arguments(config)
    kernel = arguments["kernel"]
    if not arguments["max_tokens"]:
        arguments["max_tokens"] = max(1, 1 + (longest - kernel) // (kernel // 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return ByteFormer(**arguments, num_classes=classes)
        except TypeError as error:
            raise InputError(f"network {config.network.name}: {error}") from None


def usual_kernel(format: str, size: int, channels: int, keep: float = 1.0) -> int:
    """Bytes of a token: two rows of pixels (the next token begins one row below), as far as a camera keeps them. JPEG has no
    rows; the paper gives it 8."""
    if format == "jpeg":
        return 8
    row = size if format == "fchw" else size * channels
    return 2 * max(2, min(128, round(row * keep)))


def patch_transformer(width: int, depth: int, heads: int, size: int, channels: int, classes: int) -> nn.Module:
    """A ViT on 8 x 8 patches of pixels: DeiT without distillation, made small."""
    from timm.models.vision_transformer import VisionTransformer

    if size % 8:
        raise InputError(f"images of {size} pixels do not divide into 8 x 8 patches: take a multiple of 8, or no pixels beside")
    return VisionTransformer(size, size // 8, channels, classes, embed_dim=width, depth=depth, num_heads=heads)


# --- what a run leaves ------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A network with what is needed to use it on files."""

    network: ByteFormer
    classes: list[str]
    also_called: list[set[str]]
    config: FilesConfig

    @classmethod
    def of(cls, run: Run) -> Trained:
        run.result("train")
        about = json.loads((run.folder / "train" / "classes.json").read_text())
        network = ByteFormer.from_pretrained(run.folder / "train" / "model").eval()
        return cls(network, about["classes"], [set(names) for names in about["also_called"]], run.config(FilesConfig))

    def score(self, files: Files) -> Scores:
        source = source_of(files)
        assert source.classes is not None
        known = {name: number for number, names in enumerate(self.also_called) for name in names}
        unknown = [name for name in source.classes if _plain(name) not in known]
        if unknown:
            raise InputError(f"{source.name}: the network does not know its class {unknown[0]!r}")
        numbers = torch.tensor([known[_plain(name)] for name in source.classes])
        batches = (batch | {"label": numbers[batch["label"]]} for batch in numbered(files, together(self.network, files)))
        return score(self.network, batches, len(self.classes))


def save(network: ByteFormer, classes: list[str], also_called: list[set[str]], folder: Path) -> None:
    network.save_pretrained(folder / "model")
    write_json(folder / "classes.json", {"classes": classes, "also_called": [sorted(names) for names in also_called]})


# --- stages -----------------------------------------------------------------------------------------------------------


def train(config: FilesConfig, run: Run) -> Mapping[str, Any]:
    """Train on the bytes, keep the averaged weights."""
    files, sizes = _measured(config, run)
    source, classes = source_of(files), source_of(files).classes or []
    if len(classes) < 2:
        raise InputError(f"{source.name} has {len(classes)} class: a classifier needs at least two, one sub-folder for each")
    longest = int(sizes.max())
    # a crop can make a longer JPEG than the whole image, and so can an image that is not here
    network = build_network(config, len(classes), longest * 5 // 4 if config.format == "jpeg" else longest)
    files = fitting(files, network, sizes)
    kept = sizes[sizes <= network.most_bytes]
    longest = int((kept if len(kept) else sizes).max())
    objective = ClassifyFiles(network, smoothing=config.augment.smoothing)
    watched = fitting(_watched(config), network)

    def evaluate(current: Objective, ctx: Context) -> dict[str, float]:
        assert isinstance(current, Classify)
        found = score(current.logits, numbered(watched, together(network, watched)), len(classes))
        return {"top1": found.top1, "loss": found.loss}

    data = augmented(config, files, network.most_bytes)
    fitted = fit(objective, data, _training(config, len(files)), run.stage_folder("train"), evaluate=evaluate, label="bytes")
    if first_process():
        averaged = fitted.averaged
        assert isinstance(averaged, Classify) and isinstance(averaged.model, ByteFormer)
        save(averaged.model, classes, [{_plain(name)} for name in classes], run.folder / "train")
    return {
        "files": len(files),
        "classes": len(classes),
        "source": source.name,
        "skipped": source_of(files).skipped,
        "longest": longest,
        "tokens": 1 + (longest - network.stem.kernel) // network.stem.stride,
        "parameters": count_parameters(network),
        "seconds": fitted.seconds,
    }


def train_on_pixels(config: FilesConfig, run: Run) -> Mapping[str, Any] | None:
    """The same images and steps for a transformer of the same width, depth and heads that is given pixels (as the paper
    compares with DeiT)."""
    if not (config.of_images and config.pixels):
        return None
    network = Trained.of(run).network
    files, sizes = _measured(config, run)
    source = source_of(fitting(files, network, sizes))
    test = source_of(held_out(config, network))
    assert isinstance(source, ImageSource) and isinstance(test, ImageSource) and source.classes is not None
    width, depth, heads = network.num_features, len(network.blocks), network_arguments(config).get("heads", 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = patch_transformer(width, depth, heads, config.image_size, config.channels, len(source.classes))
    half = (0.5,) * config.channels
    objective = Classify(model, smoothing=config.augment.smoothing, mean=half, std=half)
    data = Transformed(source, moved(config), seed=config.seed)
    training = _training(config, len(source))
    usual = training.optimizers["main"]
    slower = replace(usual, lr=usual.lr / 2, rules=())  # the rules are about bytes
    training = replace(training, optimizers={"main": slower})
    fitted = fit(objective, data, training, run.stage_folder("pixels"), label="pixels")
    averaged = fitted.averaged
    assert isinstance(averaged, Classify)
    plain = evaluation_transform(config.image_size, config.crop_pct, config.augment.kind)
    found = score(averaged.logits, in_order(test, plain), len(source.classes))
    return {"top1": found.top1, "loss": found.loss, "parameters": count_parameters(model), "seconds": fitted.seconds}


def baseline(config: FilesConfig, run: Run) -> Mapping[str, Any]:
    """Logistic regression: on pixels, or, for recordings and files of any kind, on how often each byte occurs."""
    if config.of_images:
        return linear_baseline(config, run)
    from sklearn.linear_model import LogisticRegression

    parts = {}
    for split in ("train", "test"):
        files = files_of(config, split)
        assert isinstance(files, FileSource) and files.labels is not None
        read = (files.file(index) for index in range(len(files)))
        shares = [torch.bincount(file, minlength=256) / len(file) for file in read]
        parts[split] = (torch.stack(shares).numpy() * 16, files.labels.numpy())
    model = LogisticRegression(max_iter=500).fit(*parts["train"])
    return {"top1": float(model.score(*parts["test"])), "images": len(parts["train"][0])}


def evaluate(config: FilesConfig, run: Run) -> Mapping[str, Any]:
    """Scores on the held-out files."""
    trained = Trained.of(run)
    test = held_out(config, trained.network)
    found = trained.score(test)
    labels = source_of(test).labels
    assert labels is not None
    tensors = {name: value for name, value in asdict(found).items() if isinstance(value, Tensor)}
    torch.save(tensors | {"labels": labels}, run.stage_folder("evaluate") / "scores.pt")
    majority = float(labels.bincount().max()) / len(labels)
    return {
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
        "files": len(labels),
        "majority": majority,
        "skipped": source_of(test).skipped,
    }


def load_released(window: int | None, config: FilesConfig, run: Run) -> Mapping[str, Any]:
    """In place of training: the authors' weights."""
    network = ByteFormer.from_official(read_weights(config.network.weights), **({"window": window} if window else {}))
    classes = [str(number) for number in range(network.num_classes)]
    if network.num_classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        also = [{_plain(info.index_to_label_name(n)), _plain(info.index_to_description(n))} for n in range(1000)]
        classes = [info.index_to_description(number).split(",")[0] for number in range(1000)]
    else:
        also = [{name} for name in classes]
    save(network, classes, also, run.stage_folder("train"))
    return {"source": config.network.weights, "parameters": count_parameters(network), "classes": len(classes)}


def held_out(config: FilesConfig, network: ByteFormer) -> Files:
    """The test files for which the network has positions."""
    files = files_of(config, "test")
    return fitting(files, network, lengths(files, config.training.workers))


def _measured(config: FilesConfig, run: Run) -> tuple[Files, Tensor]:
    """The training files, not augmented, and their lengths. Those of JPEG stay in the run: to write all images of a large data
    set takes as long as an epoch."""
    files, kept = files_of(config, "train"), run.stage_folder("train") / "lengths.pt"
    if kept.is_file() and len(sizes := torch.load(kept, weights_only=True)) == len(files):
        return files, sizes
    sizes = lengths(files, config.training.workers)
    if config.format == "jpeg" and first_process():
        torch.save(sizes, kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)  # other processes never see half a file
    return files, sizes


def _training(config: FilesConfig, count: int) -> TrainConfig:
    return replace(config.training, batch_size=min(config.training.batch_size, count))


def _watched(config: FilesConfig) -> Files:
    if config.of_images:
        return written(config, _some(images_of(config, "test"), config.watch))
    files = files_of(config, "test")
    assert isinstance(files, FileSource)
    if len(files) <= config.watch:
        return files
    return files.subset(torch.linspace(0, len(files) - 1, config.watch).round().long())
