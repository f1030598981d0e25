"""What ByteFormer's claims are measured with: one small configuration for every kind of file, and its counted properties.

Trained results stay in the claim's folder, so an interrupted check goes on with the next network, and claims share networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from paperworks.analysis.counting import count_parameters
from paperworks.backbones.byteformer import ByteFormer
from paperworks.data import ImageSource, Transformed, open_images
from paperworks.data.byte_transforms import alphabet, kept_positions, permuted
from paperworks.data.file_bytes import (
    Changes,
    EncodedImages,
    ImageFormat,
    as_numbers,
    encode_image,
    encode_wave,
    open_files,
    pad,
)
from paperworks.data.transforms import eval_crop, eval_shift, to_float
from paperworks.data.wobble import Chain, Tone, Wobble
from paperworks.objectives.classify import Classify, score
from paperworks.objectives.classify_files import ClassifyFiles
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._byteformer_files import numbered
from paperworks.papers._byteformer_recipe import patch_transformer, usual_kernel
from paperworks.papers._classification import DIGITS, _some, in_order
from paperworks.papers._recognition_claims import Budget
from paperworks.training import ParameterRule, fit

Kind = Literal["tiff", "png", "jpeg", "sound", "camera", "pixels"]
Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")

SIZE = 32
BUDGET = Budget(epochs=12, lr=2e-3)
SETTING: dict[str, Any] = {"width": 64, "depth": 6, "heads": 2, "window": 64, "kernel": 64, "max_tokens": 1024}
"""one for images and sound; files without rows of pixels have a kernel of their own, as in the paper (table 1)"""
KERNELS: dict[str, int] = {"jpeg": usual_kernel("jpeg", SIZE, 1), "camera": usual_kernel("fhwc", SIZE, 1, 0.1)}


# --- files ------------------------------------------------------------------------------------------------------------


def images(bench: Bench, part: Part) -> ImageSource:
    channels = 1 if bench.data in DIGITS else 3
    source = open_images(bench.data, split=part, labels="required", channels=channels)
    return _some(source, BUDGET.images if part == "train" else BUDGET.test_images)


def shown(bench: Bench, part: Part, seed: int) -> Transformed:
    """Images of 32 pixels, in training moved as in the laptop's recipe."""
    moved = Chain(Wobble(SIZE, flip=bench.data not in DIGITS), Tone())
    return Transformed(images(bench, part), moved if part == "train" else eval_shift(SIZE), seed=seed)


def sonify(pictures: Tensor) -> Tensor:
    """uint8 [N, C, 32, 32] -> waveforms [N, 1024] in [-1, 1]: a picture as a score, read from left to right.

    Of 16 columns each sounds for 64 samples; its 16 pixels are how loud 1 to 16 oscillations per column are. Their phases are
    Schroeder's (no sample stands out), and every recording is as loud as it can be.
    """
    loudness = F.avg_pool2d(to_float(pictures).mean(1, keepdim=True), 2)[:, 0]  # [N, 16 tones, 16 columns]
    tones = torch.arange(1, 17, dtype=torch.float32)[:, None]
    oscillations = torch.sin(2 * math.pi * tones * torch.arange(64) / 64 + math.pi * tones.square() / 16)
    waves = torch.einsum("ntc,ts->ncs", loudness, oscillations).flatten(1)
    return waves / waves.abs().amax(1, keepdim=True).clamp(min=1e-6)


class Recordings(Dataset[dict[str, Any]]):
    """Images as 8-bit WAV files of `sonify`."""

    def __init__(self, pictures: Transformed):
        self.images = pictures

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.images.set_epoch(epoch)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        found = self.images.batch(indices)
        assert found is not None, "recordings are made of images that lie in memory"
        waves = sonify(found["image"])
        return {"bytes": pad([as_numbers(encode_wave(wave, 8000, "uint8")) for wave in waves]), "label": found["label"]}


def files(bench: Bench, kind: Kind, part: Part, seed: int) -> EncodedImages | Recordings:
    pictures = shown(bench, part, seed)
    match kind:
        case "sound":
            return Recordings(pictures)
        case "camera":
            return EncodedImages(pictures, "fhwc", changes=Changes(keep=0.1), seed=seed)
        case "tiff" | "png" | "jpeg":
            return EncodedImages(pictures, kind, seed=seed)
    raise AssertionError(kind)


# --- trained ----------------------------------------------------------------------------------------------------------


def network(bench: Bench, kind: Kind, seed: int) -> nn.Module:
    """With random weights; for "pixels" the patch transformer that is compared with the network for TIFF files."""
    source = images(bench, "test")
    assert source.classes is not None
    classes, channels = len(source.classes), 1 if bench.data in DIGITS else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {**SETTING, "kernel": KERNELS.get(kind, SETTING["kernel"])}
        if channels == 3:
            sizes["max_tokens"] *= 3
        model = ByteFormer(**sizes, num_classes=classes)
        if kind != "pixels":
            return model
        patches = (
            patch_transformer(SETTING["width"], depth, SETTING["heads"], SIZE, channels, classes) for depth in range(1, 99)
        )
        return next(other for other in patches if count_parameters(other) >= count_parameters(model))


def learned(bench: Bench, kind: Kind, seed: int) -> float:
    """Top-1 in percent on test files; the networks' weights stay beside it. Pixels: the better of two learning rates."""
    folder = bench.folder / f"{kind}-{seed}"
    result = folder / "accuracy.json"
    if result.is_file():
        return json.loads(result.read_text())["top1"]
    if kind == "pixels":
        top1 = max(_pixels(bench, seed, rate, folder / f"rate-{rate:g}") for rate in (1e-3, BUDGET.lr))
    else:
        model = network(bench, kind, seed)
        objective = ClassifyFiles(model, smoothing=BUDGET.smoothing)
        data, test = (files(bench, kind, part, seed) for part in PARTS)
        config = BUDGET.config(len(data), seed)
        usual = config.optimizers["main"]
        config = replace(config, optimizers={"main": replace(usual, rules=(ParameterRule(r"(^|\.)stem\.", lr_scale=5.0),))})
        fit(objective, data, config, folder, label=f"{kind}, seed {seed}")
        top1 = 100 * score(objective.eval().logits, numbered(test), len(images(bench, "test").classes or [])).top1
        torch.save(model.state_dict(), folder / "weights.pt")
    write_json(result, {"top1": top1})
    bench.say(f"{kind}, seed {seed}: {top1:.2f} %")
    return top1


def _pixels(bench: Bench, seed: int, rate: float, folder: Path) -> float:
    half = (0.5,) if bench.data in DIGITS else (0.5,) * 3
    objective = Classify(network(bench, "pixels", seed), smoothing=BUDGET.smoothing, mean=half, std=half)
    data, test = shown(bench, "train", seed), images(bench, "test")
    fit(objective, data, replace(BUDGET, lr=rate).config(len(data), seed), folder, label=f"pixels, rate {rate:g}, seed {seed}")
    return 100 * score(objective.eval().logits, in_order(test, eval_shift(SIZE)), len(test.classes or [])).top1


def per_seed(bench: Bench, *kinds: Kind) -> list[list[float]]:
    """Accuracies of every kind; all with one seed, then all with the next."""
    rows = [[learned(bench, kind, seed) for kind in kinds] for seed in bench.seeds]
    return [list(column) for column in zip(*rows)]


def scale(bench: Bench) -> str:
    count = len(images(bench, "train"))
    return f"{count} images of {bench.data}, {SIZE} pixels, {BUDGET.epochs:g} epochs, {len(bench.seeds)} seeds"


def bytes_against_pixels(bench: Bench) -> Measured:
    tiff, pixels = per_seed(bench, "tiff", "pixels")
    points = [a - b for a, b in zip(tiff, pixels)]
    sizes = {kind: count_parameters(network(bench, kind, 0)) for kind in ("tiff", "pixels")}
    detail = (
        f"points that bytes are ahead; TIFF bytes {mean(tiff):.2f} % ({sizes['tiff'] / 1e6:.2f} M parameters), "
        f"patches of pixels, the better of two learning rates, {mean(pixels):.2f} % ({sizes['pixels'] / 1e6:.2f} M)"
    )
    numbers = {"TIFF bytes": tiff, "pixels": pixels, "parameters": sizes}
    return Measured(mean(points), scale(bench), detail, points, list(bench.seeds), numbers, unit="points")


def camera_against_all(bench: Bench) -> Measured:
    tiff, kept = per_seed(bench, "tiff", "camera")
    points = [a - b for a, b in zip(tiff, kept)]
    detail = f"points lost; TIFF bytes {mean(tiff):.2f} %, one tenth of the pixel values {mean(kept):.2f} %"
    numbers = {"TIFF bytes": tiff, "camera": kept}
    return Measured(mean(points), scale(bench), detail, points, list(bench.seeds), numbers, unit="points")


def sound_against_linear(bench: Bench) -> Measured:
    """Logistic regression is given the waveforms themselves, before they are rounded to the 8 bits of a sample in the files."""
    from sklearn.linear_model import LogisticRegression

    [sound] = per_seed(bench, "sound")
    parts = {}
    for part in PARTS:
        pictures = images(bench, part)
        waves = torch.cat([sonify(batch["image"]) for batch in in_order(pictures, eval_shift(SIZE))])
        assert pictures.labels is not None
        parts[part] = (waves.numpy(), pictures.labels.numpy())
    linear = 100 * float(LogisticRegression(C=0.05, max_iter=300).fit(*parts["train"]).score(*parts["test"]))
    points = [value - linear for value in sound]
    detail = (
        f"points ahead; WAV bytes of 8 bits a sample {mean(sound):.2f} %, "
        f"logistic regression on the samples as floats {linear:.2f} %; sound made of digits"
    )
    numbers = {"WAV bytes": sound, "linear": linear}
    return Measured(mean(points), scale(bench), detail, points, list(bench.seeds), numbers, unit="points")


def images_and_sound(bench: Bench) -> Measured:
    tiff, sound = per_seed(bench, "tiff", "sound")
    lower = [min(pair) for pair in zip(tiff, sound)]
    detail = f"the lower of both; TIFF bytes {mean(tiff):.2f} %, WAV bytes {mean(sound):.2f} %; not a setting differs"
    numbers = {"TIFF bytes": tiff, "WAV bytes": sound, "setting": SETTING}
    return Measured(mean(lower), scale(bench), detail, lower, list(bench.seeds), numbers, unit="% accuracy")


# --- files on disk ----------------------------------------------------------------------------------------------------


def files_of_three_formats(bench: Bench) -> Measured:
    """The same test images lie on disk as TIFF, PNG and JPEG; a network per format reads them while decoders are blocked."""
    seed = bench.seeds[0]
    found: dict[str, float] = {}
    kinds: tuple[Literal["tiff", "png", "jpeg"], ...] = ("tiff", "png", "jpeg")
    for kind in kinds:
        learned(bench, kind, seed)
        folder = bench.folder / "files" / kind
        _write(shown(bench, "test", seed), kind, folder)
        model = network(bench, kind, seed)
        model.load_state_dict(torch.load(bench.folder / f"{kind}-{seed}" / "weights.pt", weights_only=True))
        with no_decoders():
            lying = open_files(folder, labels="required")
            result = score(model.eval(), numbered(lying), len(lying.classes or []))
        found[kind] = 100 * result.top1
    words = ", ".join(f"{kind.upper()} {value:.2f} %" for kind, value in found.items())
    return Measured(min(found.values()), scale(bench), f"the lowest of {words}", numbers=found, unit="% accuracy")


def _write(pictures: Transformed, kind: ImageFormat, folder: Path) -> None:
    classes = pictures.source.classes
    for index in range(len(pictures)):
        sample = pictures[index]
        place = folder / f"{sample['label']:03d}-{classes[sample['label']]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:05d}.{kind}").write_bytes(encode_image(sample["image"].as_subclass(Tensor), kind))


@contextmanager
def no_decoders() -> Iterator[None]:
    """Whoever decodes an image in here, with Pillow or torchvision, gets an error."""

    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    with (
        patch("PIL.Image.open", decoded),
        patch("paperworks.data.decode.decode", decoded),
        patch("paperworks.data.source.decode", decoded),
        patch("torchvision.io.decode_image", decoded),
    ):
        yield


# --- counted ----------------------------------------------------------------------------------------------------------


def against_deit() -> Measured:
    import timm

    with torch.device("meta"):
        ours, deit = ByteFormer(kernel=32), timm.create_model("deit_tiny_patch16_224")
    sizes = {
        "ByteFormer-Ti": [ours.num_features, len(ours.blocks), ours.blocks[0].attn.heads],  # type: ignore[union-attr]
        "DeiT-Ti": [deit.embed_dim, len(deit.blocks), deit.blocks[0].attn.num_heads],
    }
    without = (count_parameters(ours) - ours.positions.numel()) / 1e6
    theirs = (count_parameters(deit) - deit.pos_embed.numel()) / 1e6
    words = ", ".join(f"{name} {' / '.join(map(str, row))}" for name, row in sizes.items())
    detail = f"width / depth / heads: {words}; parameters without positions {without:.2f} M and {theirs:.2f} M"
    return Measured(without, "any", detail, numbers={**sizes, "DeiT-Ti parameters (M)": theirs})


def same_sizes(measured: Measured) -> bool:
    return measured.numbers["ByteFormer-Ti"] == measured.numbers["DeiT-Ti"] and abs(measured.value - 7.2) < 0.05


@torch.inference_mode()
def permuted_alphabet(bench: Bench) -> Measured:
    """ByteFormer-Ti on TIFF files of 224 pixels and the small network on those of the digits."""
    photo = eval_crop(224)(open_images("photos", split="test").read(0))
    digits = [as_numbers(encode_image(shown(bench, "test", 0)[index]["image"].as_subclass(Tensor))) for index in range(32)]
    sides: dict[str, tuple[Callable[[], ByteFormer], Tensor]] = {
        "ByteFormer-Ti": (lambda: ByteFormer(kernel=32, max_tokens=9415), as_numbers(encode_image(photo))[None]),
        "small": (lambda: ByteFormer(**{**SETTING, "max_tokens": 2048}), torch.stack(digits)),
    }
    found: dict[str, float] = {}
    for name, (build, x) in sides.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build().eval()
        plain = model(x)
        rows = model.stem.embedding.weight
        rows[alphabet()] = rows[:256].clone()
        found[name] = float((model(permuted(x)) - plain).abs().max())
    words = ", ".join(f"{name} {value:g}" for name, value in found.items())
    return Measured(max(found.values()), "any", f"largest difference of a logit: {words}", numbers=found)


def camera() -> Measured:
    length = 3 * 224 * 224
    kept = kept_positions(length, 0.1)
    kept_positions.cache_clear()
    same = torch.equal(kept, kept_positions(length, 0.1)) and len(kept.unique()) == length // 10 == len(kept)
    hidden = 100 * (1 - len(kept) / length)
    detail = f"{len(kept)} of {length} values are kept; drawn a second time they are {'the same' if same else 'others'}"
    return Measured(hidden if same else math.nan, "any", detail, numbers={"kept": len(kept), "values": length})
