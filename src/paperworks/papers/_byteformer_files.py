"""What a run of ByteFormer reads: images written as files, recordings written as WAV, or files as they lie; and how long they
are, since a network has positions for so many bytes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from paperworks.backbones.byteformer import VARIANTS, ByteFormer
from paperworks.data import ImageSource, Loader, Transformed, open_images
from paperworks.data.file_bytes import Changes, EncodedImages, FileSource, ImageFormat, SampleFormat, open_files
from paperworks.data.listing import Split
from paperworks.data.progress import watched
from paperworks.data.transforms import train_crop
from paperworks.data.wobble import Chain, Tone, Wobble
from paperworks.errors import InputError, nearest
from paperworks.papers._byteformer_speech import Recordings, open_recordings
from paperworks.papers._classification import ClassifierConfig, evaluation_transform, training_transform

Files = EncodedImages | FileSource
Source = TypeVar("Source", ImageSource, FileSource)


@dataclass(frozen=True)
class FilesConfig(ClassifierConfig):
    """A classifier of images that sees them as files (mixup and cutmix do not apply), of recordings, or of any files."""

    format: ImageFormat | Literal["raw", "wav"] = "tiff"
    """what images are written as after augmentation; "wav": `data` holds WAV files, which are written as such after theirs;
    "raw": `data` is a folder of files of any kind, read as they lie"""
    quality: int = 100
    """of JPEG"""
    samples: SampleFormat = "float32"
    """of recordings"""
    channels: int = 3
    """of images: 1 or 3"""
    changes: Changes = field(default_factory=Changes)
    longest: int = 1 << 17
    """bytes; longer files of a folder are left out and listed"""
    pixels: bool = True
    """train a transformer on patches of pixels too, as wide and deep, with as many steps"""

    @property
    def of_images(self) -> bool:
        return self.format not in ("raw", "wav")


def network_arguments(config: FilesConfig) -> dict[str, Any]:
    name = config.network.name
    if name not in VARIANTS:
        raise InputError(f"no network {name!r}{nearest(name, VARIANTS)}")
    return {**VARIANTS[name], **config.network.arguments}


# --- opened -----------------------------------------------------------------------------------------------------------


def files_of(config: FilesConfig, split: Literal["train", "test"]) -> Files:
    """The labelled files of a part, not augmented."""
    if config.of_images:
        return written(config, images_of(config, split))
    return open_source(config, config.data, split, "required", network_arguments(config)["kernel"])


def images_of(config: FilesConfig, split: Literal["train", "test"]) -> ImageSource:
    return open_images(config.data, split=split, strict=config.strict, labels="required", channels=config.channels)


def open_source(config: FilesConfig, data: str, split: Split, labels: Literal["required", "none"], kernel: int) -> FileSource:
    """Recordings, or files as they lie, from the shortest that fills a kernel to config.longest. These limits are the same
    whoever asks, since what is set aside for testing is a share of the files between them."""
    changes, seed = config.changes, config.seed
    if config.format == "wav":
        return open_recordings(data, config.samples, split=split, labels=labels, changes=changes, seed=seed)
    least, most = math.ceil(kernel / changes.keep), config.longest
    return open_files(data, split=split, labels=labels, least_bytes=least, most_bytes=most, changes=changes, seed=seed)


def written(config: FilesConfig, source: ImageSource) -> EncodedImages:
    """Images as files in the run's format."""
    if config.format == "raw" or config.format == "wav":
        raise InputError("this run was not trained on images; give it files like its own")
    plain = evaluation_transform(config.image_size, config.crop_pct, config.augment.kind)
    images = Transformed(source, plain, seed=config.seed)
    return EncodedImages(images, config.format, quality=config.quality, changes=config.changes, seed=config.seed)


def augmented(config: FilesConfig, files: Files, most_bytes: int) -> Files:
    """The same files as training sees them: images cropped and flipped, recordings moved and mixed, before they are written.
    An image that becomes a file of more than `most_bytes` by that is written as it is."""
    if isinstance(files, Recordings):
        return files if config.augment.kind == "none" else files.augmented(config.augment)
    if isinstance(files, FileSource):
        return files
    other = copy.copy(files)
    other.images, other.plain = Transformed(files.images.source, moved(config), seed=config.seed), files.images
    other.most_bytes = most_bytes
    return other


def moved(config: FilesConfig) -> Any:
    """Training's transform, of pixels."""
    if config.augment.kind == "shift":
        return Chain(Wobble(config.image_size, flip=config.augment.flip), Tone())
    if config.augment.kind == "crop":
        return Chain(train_crop(config.image_size, flip=config.augment.flip), Tone())
    return training_transform(config)


def source_of(files: Files) -> ImageSource | FileSource:
    """What has names, classes and labels."""
    return files.images.source if isinstance(files, EncodedImages) else files


# --- lengths ----------------------------------------------------------------------------------------------------------


def lengths(files: Files, workers: int = 0) -> Tensor:
    """Bytes of every file, int64 [N]. Images are written for it once where they differ in length, which is as JPEG."""
    if isinstance(files, FileSource) and not isinstance(files, Recordings):
        keep = files.changes.keep  # what a camera leaves out shortens a file before the network sees it
        return torch.tensor([int(keep * len(files.read(index))) for index in range(len(files))])
    if not _differ(files):
        return torch.full((len(files),), len(files[0]["bytes"]))
    loader = Loader(files, min(64, len(files)), seed=0, shuffle=False, drop_last=False, workers=workers)
    found = [(batch["bytes"] >= 0).sum(1) for batch in watched(loader, len(loader), "measuring files")]
    return torch.cat(found)


def fitting(files: Files, network: ByteFormer, measured: Tensor | None = None) -> Files:
    """The files that are not longer than the network has positions for; the others join `skipped` of the source. Where all are
    of one length nothing is left out: the network itself says when that is too long.

    measured: their `lengths`, where these are known.
    """
    if not _differ(files):
        return files
    sizes = lengths(files) if measured is None else measured
    if isinstance(files, FileSource):
        return _not_longer(files, sizes, network.most_bytes)
    source = files.images.source
    kept = _not_longer(source, sizes, network.most_bytes)
    if kept is source:
        return files
    part = copy.copy(files)
    part.images = Transformed(kept, files.images.transform, seed=files.images.seed)
    return part


def _differ(files: Files) -> bool:
    """Whether files are of several lengths."""
    return files.format == "jpeg" if isinstance(files, EncodedImages) else not isinstance(files, Recordings)


def _not_longer(source: Source, sizes: Tensor, most: int) -> Source:
    long = sizes > most
    if not bool(long.any()):
        return source
    if bool(long.all()):
        raise InputError(
            f"{source.name}: all files are longer than the {most} bytes that the network has positions for: give shorter ones"
        )
    part = source.subset(~long)
    rows = long.nonzero()[:, 0].tolist()
    part.skipped += [(source.key(row), f"{int(sizes[row])} bytes are more than {most}") for row in rows]
    return part


# --- batches ----------------------------------------------------------------------------------------------------------


def numbered(files: Any, batch: int = 64) -> Iterator[dict[str, Tensor]]:
    """All files once, in their order, as `score` reads them."""
    for found in Loader(files, min(batch, len(files)), seed=0, shuffle=False, drop_last=False):
        yield {"image": found["bytes"]} | ({"label": found["label"]} if "label" in found else {})


def together(network: ByteFormer, files: Files, most: int = 64) -> int:
    """How many files go to a network at once. One where they differ in length and it looks at padding: what it says about a
    file would depend on the longest one beside it."""
    return 1 if network.mask == "official" and _differ(files) else most
