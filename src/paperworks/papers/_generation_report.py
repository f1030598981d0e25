"""What reports of image generators share: a judge, the numbers of samples and reconstructions, and parts of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperworks.analysis.digits import digit_classifier
from paperworks.analysis.features import extract, lite0
from paperworks.analysis.metrics import frechet_distance, precision_recall, psnr, ssim
from paperworks.data import ImageSource, open_images
from paperworks.errors import InputError, nearest
from paperworks.layers.vector_quantization import CodeUsage
from paperworks.papers._generation import MNIST, framed
from paperworks.reporting import Report

HELD = 1000
"""images in memory at a time while a run is judged"""


@dataclass
class Judge:
    """The network whose features the distances are taken in."""

    network: Any
    name: str
    limit: int
    """images to judge at most"""
    knows_classes: bool

    @classmethod
    def of(cls, data: str, folder: Path, wanted: int = 0) -> Judge:
        """For the embedded digits a classifier trained in `folder` in half a minute, else the embedded ImageNet classifier.

        It judges what two cores do in a minute, 1000 digits or 200 other images, or `wanted` where that is more.
        """
        if data in MNIST:
            return cls(digit_classifier(folder), "a digit classifier trained here", max(1000, wanted), True)
        return cls(lite0(), "EfficientNet-Lite0 (ImageNet)", max(200, wanted), False)

    def features(self, images: Tensor) -> Tensor:
        return extract(self.network, images[: self.limit])

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images the classifier takes for their label."""
        with torch.inference_mode():
            return float((self.network.logits(images).argmax(1) == labels).float().mean())


class Seen:
    """What a judge keeps of images that come in batches: their features, and the share it took for their label."""

    def __init__(self, judge: Judge):
        self.judge = judge
        self.count, self.recognised = 0, 0.0
        self._features: list[Tensor] = []

    def add(self, images: Tensor, labels: Tensor | None = None) -> Seen:
        """Images [N, C, H, W] in [0, 1]; returns itself."""
        self._features.append(self.judge.features(images))
        if labels is not None and self.judge.knows_classes:
            right = self.recognised * self.count + self.judge.accuracy(images, labels) * len(images)
            self.recognised = right / (self.count + len(images))
        self.count += len(images)
        return self

    def __len__(self) -> int:
        return self.count

    @property
    def features(self) -> Tensor:
        return torch.cat(self._features)


def reconstruction_numbers(images: Tensor, rebuilt: Tensor, usage: CodeUsage | None = None) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "reconstruction PSNR (dB)": psnr(rebuilt, images),
        "reconstruction SSIM": ssim(rebuilt, images),
    }
    if usage is not None:
        numbers |= {"codes in use": usage.usage, "code perplexity": usage.perplexity}
    return numbers


def mean_over_images(batches: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, Any]:
    """Of numbers that are means over the images of a batch: (images, numbers) of each."""
    total = sum(count for count, _ in batches)
    return {name: sum(count * numbers[name] for count, numbers in batches) / total for name in batches[0][1]}


def sample_numbers(
    judge: Judge,
    real: Tensor | Seen,
    truth: Tensor,
    made: Tensor | Seen,
    labels: Tensor,
    *,
    untrained: Tensor | Seen,
    rebuilt: Tensor | Seen | None = None,
) -> dict[str, Any]:
    """Distances of samples from held-out images, beside those of reconstructions and of samples before training."""
    numbers: dict[str, Any] = {"judged by": judge.name, "held-out images": len(real)}
    real, made = _seen(judge, real, truth), _seen(judge, made, labels)
    if len(real) > 2:
        features, fake = real.features, made.features
        precision, recall = precision_recall(features, fake) if len(real) > 4 else (float("nan"),) * 2
        numbers["Frechet distance of samples"] = frechet_distance(features, fake)
        if rebuilt is not None:
            numbers["Frechet distance of reconstructions"] = frechet_distance(features, _seen(judge, rebuilt).features)
        numbers |= {
            "Frechet distance before training": frechet_distance(features, _seen(judge, untrained).features),
            "precision": precision,
            "recall": recall,
        }
    if judge.knows_classes:
        numbers["samples recognised as their class"] = made.recognised
        numbers["test images recognised"] = real.recognised
    return numbers


def _seen(judge: Judge, images: Tensor | Seen, labels: Tensor | None = None) -> Seen:
    return images if isinstance(images, Seen) else Seen(judge).add(images, labels)


def rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in numbers.items()}


def in_batches(make: Callable[[Tensor, int], Tensor], labels: Tensor, batch_size: int = 250) -> Tensor:
    """make(labels of a batch, number of its first image) for all labels."""
    starts = range(0, len(labels), batch_size)
    return torch.cat([make(labels[start : start + batch_size], start) for start in starts])


def chosen_labels(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Labels [N] of classes by name; all of them when none is named."""
    for name in classes:
        if name not in names:
            raise InputError(f"no class {name!r} in this run{nearest(name, names)}")
    return torch.tensor([list(names).index(name) for name in classes or names])


def edited_picture(
    image: Path, mask: Path | None, size: int, channels: int, count: int, fill: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The user's picture, the same with its hole in grey, and `count` ways to fill it: [count + 2, C, size, size].

    mask: a picture that is white where pixels are to be made anew; the centre when there is none. fill(images, hole) -> images.
    """
    given = framed(open_images(image, channels=channels, strict=True), size)
    if mask is None:
        hole = torch.zeros(size, size)
        hole[size // 4 : -size // 4, size // 4 : -size // 4] = 1
    else:
        hole = (framed(open_images(mask, channels=1, strict=True), size)[0, 0] > 0.5).float()
    filled = fill(given.expand(count, -1, -1, -1), hole)
    return torch.cat((given, torch.where(hole > 0, torch.full_like(given, 0.5), given), filled))


# --- parts of the page ------------------------------------------------------------------------------------------------


def headline(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The figures at the top of the page."""
    wanted = {
        "Frechet distance": "Frechet distance of samples",
        "before training": "Frechet distance before training",
        "recognised": "samples recognised as their class",
        "codes in use": "codes in use",
        "ms per image": "milliseconds per sampled image",
        "passes": "sequential passes",
    }
    shares = ("recognised", "codes in use")
    return {
        title: f"{numbers[name]:.0%}" if title in shares else shown(numbers[name])
        for title, name in wanted.items()
        if name in numbers
    }


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def numbers_table(page: Report, numbers: Mapping[str, Any]) -> None:
    page.table("Numbers", ["measured on held-out images", "value"], [[name, shown(value)] for name, value in numbers.items()])


def skipped_table(page: Report, skipped: Sequence[Sequence[str]]) -> None:
    if skipped:
        page.table("Images left out", ["file", "why"], skipped, note=f"{len(skipped)} unreadable files were skipped.")


def show_neighbours(page: Report, made: Tensor, train: ImageSource, size: int) -> None:
    """A generator that only remembers would show here."""
    known = framed(train, size, 5000)
    closest = torch.cdist(made.flatten(1), known.flatten(1)).argmin(1)
    page.compare(
        "Made, and the nearest training image",
        {"sample": made, "nearest training image": known[closest]},
        caption="Nearest by pixel distance.",
    )


def evenly(source: ImageSource, count: int) -> ImageSource:
    """`count` images at equal distances, so that every class has its share; all when there are no more."""
    return source.subset(torch.arange(count) * len(source) // count) if len(source) > count else source


def spread_over(source: ImageSource, count: int) -> ImageSource:
    """About `count` images from all over the source, so that every class shows."""
    return source.subset(range(0, len(source), -(-len(source) // count)))
