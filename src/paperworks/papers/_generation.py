"""What recipes of image generators share: the user's images framed to one size, and parts of a run on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from paperworks.data import ImageSource, Loader, Transformed, open_images
from paperworks.data.transforms import Drawn, eval_crop, eval_shift, to_float, train_crop, train_shift
from paperworks.errors import InputError
from paperworks.objectives.logit_perceptual import LogitPerceptual, WeightedLosses
from paperworks.objectives.perceptual import FeaturePerceptual, LPIPSLoss, PyramidLoss
from paperworks.paper import first_process
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

M = TypeVar("M", bound=nn.Module)

MNIST = ("default", "mnist5k")
"""embedded data for which there is a classifier that knows the classes"""

Perceptual = Literal["pyramid", "lite0", "lpips", "convnext", "lpips_convnext", "none"]
""""pyramid" needs no network, "lite0" the embedded ImageNet classifier; "lpips" and "convnext" (logits of ConvNeXt-S) fetch
weights, "lpips_convnext" is LPIPS + 0.1 x ConvNeXt"""


# --- images -----------------------------------------------------------------------------------------------------------


def default_channels(data: str) -> int:
    """1 for the embedded digits, 3 for everything else."""
    return 3 if shows_photos(data) else 1


def shows_photos(data: str) -> bool:
    """Whether images may be mirrored: digits may not."""
    return data not in (*MNIST, "digits")


def open_split(data: str, split: Literal["train", "test"], *, channels: int, strict: bool = False) -> ImageSource:
    """The user's images: class folders give labels, a flat folder is one class. Folders have no test split of their own,
    so a tenth of the images is set aside."""
    return open_images(data, split=split, strict=strict, channels=channels)


def open_test(data: str, *, channels: int, strict: bool = False) -> ImageSource:
    """Held-out images, or the training images where there are too few to set some aside."""
    test = open_split(data, "test", channels=channels, strict=strict)
    return test if len(test) else open_split(data, "train", channels=channels, strict=strict)


def class_names(source: ImageSource) -> list[str]:
    return source.classes or ["image"]


def labels_of(source: ImageSource) -> Tensor:
    """int64 [N]; 0 for images without labels."""
    return source.labels if source.labels is not None else torch.zeros(len(source), dtype=torch.int64)


def skipped_images(source: ImageSource) -> list[list[str]]:
    """File and reason of each unreadable image, for the report."""
    return [list(entry) for entry in source.skipped]


def framing(source: ImageSource, size: int, *, random: bool, flip: bool = False, margin: float = 1.125) -> Drawn:
    """Pictures smaller than `size` are shifted on a black margin, those of just that size on a mirrored one, or networks would
    learn black edges; of larger ones the shorter side becomes size x margin (size itself without randomness) and a square is
    cut. flip: mirror half of the random ones left to right."""
    height, width = source[0]["image"].shape[-2:]
    if max(height, width) <= size:
        fills = height == width == size
        return train_shift(size, pad=2, flip=flip, mode="reflect" if fills else "constant") if random else eval_shift(size)
    return train_crop(size, margin=margin, flip=flip) if random else eval_crop(size, margin=1.0)


class Mirrored(Drawn):
    """Another transform, then left and right exchanged."""

    def __init__(self, first: Drawn):
        self.first, self.draws = first, first.draws

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        return self.first.apply(images, uniforms).flip(-1)


class FramedImages:
    """All images of some data sets, one set after the other, framed when they are asked for: more than memory holds.

    It takes the place of their tensor [N, C, size, size] in [0, 1] wherever that is only split into batches.
    """

    def __init__(self, *copies: Transformed, workers: int = 0):
        self.copies, self.workers = copies, workers

    def __len__(self) -> int:
        return sum(len(copy) for copy in self.copies)

    @property
    def labels(self) -> Tensor:
        """int64 [N]; 0 for images without labels."""
        return torch.cat([labels_of(copy.source) for copy in self.copies])

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """Float batches in order; all but the last are full, also where one set ends and the next begins."""
        images: ConcatDataset[dict[str, Any]] = ConcatDataset(self.copies)
        for batch in Loader(images, batch_size, seed=0, shuffle=False, drop_last=False, workers=self.workers):
            yield to_float(batch["image"])


def framed_batches(source: ImageSource, size: int) -> FramedImages:
    """Every image as `framed` gives it, but not all of them at once."""
    return FramedImages(Transformed(source, framing(source, size, random=False), seed=0))


def framed_copies(source: ImageSource, size: int, copies: int, seed: int) -> FramedImages:
    """Every image so many times, each time framed at random, but not all of them at once."""
    frame = framing(source, size, random=True)
    return FramedImages(*(Transformed(source, frame, seed=seed + 1 + copy) for copy in range(copies)))


def framed(source: ImageSource, size: int, limit: int | None = None) -> Tensor:
    """Images [N, C, size, size] in [0, 1], without randomness."""
    return _stacked(source, framing(source, size, random=False), 0, min(len(source), limit or len(source)))


def framed_at_random(source: ImageSource, size: int, seed: int) -> Tensor:
    """All images [N, C, size, size] in [0, 1], each shifted or cropped at random: for a few thousand small ones."""
    return _stacked(source, framing(source, size, random=True), seed, len(source))


def _stacked(source: ImageSource, frame: Drawn, seed: int, count: int) -> Tensor:
    data = Transformed(source, frame, seed=seed)
    return torch.stack([to_float(data[i]["image"].as_subclass(Tensor)) for i in range(count)])


def training_images(
    source: ImageSource, size: int, seed: int, batch_size: int, *, flip: bool = False, margin: float = 1.125
) -> Transformed:
    """Randomly framed images for `fit`; a handful of them is repeated until it fills a batch."""
    frame = framing(source, size, random=True, flip=flip, margin=margin)
    return Transformed(source, frame, seed=seed, size=max(len(source), batch_size))


# --- training -----------------------------------------------------------------------------------------------------------


def adamw(lr: float, decay: float = 0.05, end: float = 0.1) -> OptimizerConfig:
    """AdamW (0.9, 0.95) with a short warm-up, a flat start and a linear decay."""
    schedule = ScheduleConfig("flat_linear", warmup=0.02, warmup_start=0.005, end=end)
    return OptimizerConfig("adamw", lr=lr, betas=(0.9, 0.95), weight_decay=decay, schedule=schedule)


def tokenizer_training(steps: int, batch_size: int, lr: float) -> TrainConfig:
    """Adam for the tokenizer, half its rate for the discriminator, cosine for both."""
    schedule = ScheduleConfig("cosine", warmup=0.03, end=0.05)
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        optimizers={
            "main": OptimizerConfig(lr=lr, betas=(0.9, 0.99), schedule=schedule),
            "discriminator": OptimizerConfig(lr=lr / 2, betas=(0.5, 0.9), schedule=schedule),
        },
        clip=1.0,
        channels_last=True,
    )


def perceptual_loss(name: Perceptual) -> nn.Module | None:
    if name == "lite0":
        from paperworks.analysis.features import lite0

        return FeaturePerceptual(lite0())
    if name == "none":
        return None
    if name == "convnext":
        return LogitPerceptual()
    if name == "lpips_convnext":
        return WeightedLosses([(1.0, LPIPSLoss()), (0.1, LogitPerceptual())])
    return LPIPSLoss() if name == "lpips" else PyramidLoss()


class TensorSet(Dataset[dict[str, Tensor]]):
    """Named tensors of equal length as a data set; `batch` takes many rows in one indexing operation."""

    def __init__(self, **columns: Tensor):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"columns of unequal length: {lengths}")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        chosen = torch.as_tensor(indices)
        return {name: column[chosen] for name, column in self.columns.items()}

    def at_least(self, rows: int) -> TensorSet:
        """Itself, repeated until it has `rows` rows."""
        repeats = -(-rows // len(self))
        if repeats == 1:
            return self
        return TensorSet(**{name: column.repeat(repeats, *[1] * (column.ndim - 1)) for name, column in self.columns.items()})


def kept_tensors(path: Path, make: Callable[[], dict[str, Tensor]]) -> TensorSet:
    """Tensors that `make` computes once and a resumed run reads from `path` (safetensors, written by the first process)."""

    def write() -> None:
        if not path.is_file():
            aside = path.with_suffix(".part")
            save_file({name: column.contiguous() for name, column in make().items()}, aside)
            aside.rename(path)

    by_first_process(write)
    return TensorSet(**load_file(path))


# --- parts of a run -------------------------------------------------------------------------------------------------------


def by_first_process(work: Callable[[], Any]) -> None:
    """Under torchrun one process writes and the others wait for the file."""
    if first_process():
        work()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def save_part(module: Any, folder: Path) -> None:
    """Keep a trained network (a `Pretrained`) in `folder / "model"`."""
    by_first_process(lambda: module.save_pretrained(folder / "model"))


def load_part(kind: type[M], folder: Path) -> M:
    """The network that a stage left in its folder, ready for use."""
    if not (folder / "model").is_dir():
        raise InputError(f"{folder.parent} has no trained {folder.name} yet; run the same command again to resume")
    made = kind.from_pretrained(folder / "model")  # type: ignore[attr-defined]
    return made.eval()
