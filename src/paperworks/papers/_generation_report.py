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


@dataclass
class Judge:
    """The network whose features the distances are taken in."""

    network: Any
    name: str
    limit: int
    """images to judge at most: a large network on two cores takes its time"""
    knows_classes: bool

    @classmethod
    def of(cls, data: str, folder: Path) -> Judge:
        """For the embedded digits a classifier trained in `folder` in half a minute, else the embedded ImageNet classifier."""
        if data in MNIST:
            return cls(digit_classifier(folder), "a digit classifier trained here", 1000, True)
        return cls(lite0(), "EfficientNet-Lite0 (ImageNet)", 200, False)

    def features(self, images: Tensor) -> Tensor:
        return extract(self.network, images[: self.limit])

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images the classifier takes for their label."""
        with torch.inference_mode():
            return float((self.network.logits(images).argmax(1) == labels).float().mean())


def reconstruction_numbers(images: Tensor, rebuilt: Tensor, usage: CodeUsage | None = None) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "reconstruction PSNR (dB)": psnr(rebuilt, images),
        "reconstruction SSIM": ssim(rebuilt, images),
    }
    if usage is not None:
        numbers |= {"codes in use": usage.usage, "code perplexity": usage.perplexity}
    return numbers


def sample_numbers(
    judge: Judge,
    real: Tensor,
    truth: Tensor,
    made: Tensor,
    labels: Tensor,
    *,
    untrained: Tensor,
    rebuilt: Tensor | None = None,
) -> dict[str, Any]:
    """Distances of samples from held-out images, beside those of reconstructions and of samples before training."""
    numbers: dict[str, Any] = {"judged by": judge.name, "held-out images": len(real)}
    if len(real) > 2:
        features, fake = judge.features(real), judge.features(made)
        precision, recall = precision_recall(features, fake) if len(real) > 4 else (float("nan"),) * 2
        numbers["Frechet distance of samples"] = frechet_distance(features, fake)
        if rebuilt is not None:
            numbers["Frechet distance of reconstructions"] = frechet_distance(features, judge.features(rebuilt))
        numbers |= {
            "Frechet distance before training": frechet_distance(features, judge.features(untrained)),
            "precision": precision,
            "recall": recall,
        }
    if judge.knows_classes:
        numbers["samples recognised as their class"] = judge.accuracy(made, labels)
        numbers["test images recognised"] = judge.accuracy(real, truth)
    return numbers


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


def spread_over(source: ImageSource, count: int) -> ImageSource:
    """About `count` images from all over the source, so that every class shows."""
    return source.subset(range(0, len(source), -(-len(source) // count)))
