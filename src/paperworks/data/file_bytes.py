"""Files as bytes: read as they lie, written from images (TIFF, PNG, JPEG, bare pixels) or waveforms (WAV), put into batches.

Nothing is decoded here. A data set of images becomes one of files with `EncodedImages`; a folder of files of any kind, with a
sub-folder per class, opens with `open_files`.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from paperworks.data import byte_transforms as change
from paperworks.data.decode import Unreadable
from paperworks.data.folder import FileReader, list_folder, walk
from paperworks.data.listing import Split
from paperworks.data.opening import HELD_OUT
from paperworks.data.seeds import mix, share
from paperworks.errors import InputError, nearest

ImageFormat = Literal["tiff", "png", "jpeg", "fchw", "fhwc"]
"""containers as Pillow writes them, PNG without compression; bare pixels channel by channel, or pixel by pixel"""
SampleFormat = Literal["float32", "int32", "int16", "uint8"]
Order = Literal["none", "reverse", "random", "cyclic", "stride", "window"]

FORMATS = ("tiff", "png", "jpeg", "fchw", "fhwc")
BARE = ("fchw", "fhwc")


# --- writing ----------------------------------------------------------------------------------------------------------


def encode_image(image: Tensor, format: ImageFormat = "tiff", quality: int = 100) -> bytes:
    """The bytes of an image [C, H, W] of 1 or 3 channels, uint8 or floats in [0, 1] (values floor(255 x)), as a file.

    quality: of JPEG, 1 to 100.
    """
    if format not in FORMATS:
        raise InputError(f"no format {format!r}{nearest(format, FORMATS)}")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"an image is [1 or 3, H, W], not {list(image.shape)}")
    if image.is_floating_point():
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise InputError("images lie in [0, 1]")
        image = (image * 255).to(torch.uint8)
    if format == "fchw":
        return image.contiguous().numpy().tobytes()
    rows = image.permute(1, 2, 0).contiguous().numpy()
    if format == "fhwc":
        return rows.tobytes()
    options: dict[str, int] = {"tiff": {}, "png": {"compress_level": 0}, "jpeg": {"quality": quality}}[format]
    file = io.BytesIO()
    Image.fromarray(rows[..., 0] if rows.shape[2] == 1 else rows).save(file, format, **options)
    return file.getvalue()


def encode_wave(wave: Tensor, rate: int = 16_000, samples: SampleFormat = "int16") -> bytes:
    """A WAV file of a waveform [L] in [-1, 1]."""
    from scipy.io import wavfile

    if wave.ndim != 1 or not wave.is_floating_point() or not bool((wave.abs() <= 1).all()):
        raise InputError("a waveform is float [L] in [-1, 1]")
    values = wave.numpy().astype(np.float64)
    match samples:
        case "float32":
            stored: np.ndarray = values.astype(np.float32)
        case "int32":
            stored = np.round(values * (2**31 - 1)).astype(np.int32)
        case "int16":
            stored = np.round(values * (2**15 - 1)).astype(np.int16)
        case "uint8":  # eight bits are stored without sign
            stored = np.round(values * 127 + 128).astype(np.uint8)
        case _:
            raise InputError(f"no samples {samples!r}; there are float32, int32, int16 and uint8")
    file = io.BytesIO()
    wavfile.write(file, rate, stored)
    return file.getvalue()


# --- batches ----------------------------------------------------------------------------------------------------------


def as_numbers(file: bytes) -> Tensor:
    """int32 [L], 0 to 255."""
    return torch.from_numpy(np.frombuffer(file, dtype=np.uint8).astype(np.int32))


def pad(files: Sequence[Tensor], least: int = 0) -> Tensor:
    """Files [L1], [L2], ... as one batch int32 [N, L] of the longest length (at least `least`), -1 behind the shorter ones."""
    batch = torch.full((len(files), max(least, *(len(file) for file in files))), -1, dtype=torch.int32)
    for row, file in zip(batch, files):
        row[: len(file)] = file
    return batch


@dataclass(frozen=True)
class Changes:
    """What happens to the bytes of every file, in this order."""

    order: Order = "none"
    """"reverse", "random" (drawn anew for every file and epoch), "cyclic" (halves swapped), "stride" (every 1024th byte first),
    "window" (one shuffle of 1024 bytes, the same for all)"""
    keep: float = 1.0
    """share of the values that a masking camera keeps, always at the same places; for bare pixels, see `check_keep`"""
    noise: int = 0
    """integers of up to this size are added, modulo 256"""
    permute: bool = False
    """other values for all bytes, by one fixed permutation of the 256"""

    def __call__(self, file: Tensor, seed: int = 0) -> Tensor:
        """seed: of the random order and the noise, which are others for every file and epoch."""
        draws = torch.Generator().manual_seed(seed)
        orders: dict[str, Callable[[Tensor], Tensor]] = {
            "none": lambda x: x,
            "reverse": change.reverse,
            "random": lambda x: x[torch.randperm(len(x), generator=draws)],
            "cyclic": change.cyclic_half,
            "stride": change.deinterleave,
            "window": lambda x: change.shuffle_windows(x, change.window_order()),
        }
        if self.order not in orders:
            raise InputError(f"no order {self.order!r}{nearest(self.order, orders)}")
        file = orders[self.order](file)
        if self.keep != 1:
            file = change.keep_some(file, self.keep)
        if self.noise:
            file = change.uniform_noise(file, self.noise, draws)
        return change.permuted(file).int() if self.permute else file


def check_keep(format: str, keep: float) -> None:
    """Raises InputError where a camera would leave out bytes of a header, behind which nothing can be found any more."""
    if keep != 1 and format not in BARE:
        raise InputError(
            f"keep={keep:g} leaves out values anywhere in a file, and of {format} the header's too: take format fhwc or fchw, "
            "which are bare pixels"
        )


class FileSource(Dataset[dict[str, Any]]):
    """Samples {"bytes": int32 [L], "label": int} and padded batches of them, from `read(index) -> bytes`.

    `classes`, `labels` (int64 [N] or None), `name` and `skipped` (what, why) as in ImageSource.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        keys: Sequence[str],
        *,
        name: str,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        skipped: Sequence[tuple[str, str]] = (),
        changes: Changes = Changes(),
        seed: int = 0,
    ):
        self.read, self.keys, self.name, self.labels = read, list(keys), name, labels
        self.classes = None if classes is None else list(classes)
        self.skipped, self.changes, self.seed, self.epoch = list(skipped), changes, seed, 0

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    def set_epoch(self, epoch: int) -> None:
        """Other noise for the same files."""
        self.epoch = epoch

    def file(self, index: int) -> Tensor:
        """The changed bytes of a file, int32 [L]."""
        return self.changes(as_numbers(self.read(index)), mix(self.seed, self.epoch, index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} files, there is no file {index}")
        sample: dict[str, Any] = {"bytes": self.file(index), "key": self.keys[index]}
        return sample if self.labels is None else sample | {"label": int(self.labels[index])}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """{"bytes": int32 [B, longest] padded with -1, "label": int64 [B]}."""
        found = {"bytes": pad([self.file(index) for index in indices])}
        return found if self.labels is None else found | {"label": self.labels[torch.as_tensor(indices)]}

    def subset(self, chosen: Tensor) -> Self:
        """The files at the positions int64 [M], or where a bool [N] is true."""
        rows = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        numbers, whole, part = rows.tolist(), self.read, copy.copy(self)
        part.read = lambda index: whole(numbers[index])
        part.keys = [self.keys[number] for number in numbers]
        part.labels = None if self.labels is None else self.labels[rows]
        part.skipped = list(self.skipped)
        return part


class EncodedImages(Dataset[dict[str, Any]]):
    """A data set of images (such as `Transformed`) as files: every image is written in `format` when it is asked for, so that
    crops and flips happen to pixels, before there are bytes.

    plain, most_bytes: the same images without crops and flips; one of them takes the place of an image whose file would be
      longer. How long a JPEG becomes is not known before it is written.
    """

    def __init__(
        self,
        images: Any,
        format: ImageFormat = "tiff",
        *,
        quality: int = 100,
        changes: Changes = Changes(),
        seed: int = 0,
        plain: Any = None,
        most_bytes: int | None = None,
    ):
        check_keep(format, changes.keep)
        self.images, self.format, self.quality, self.changes, self.seed = images, format, quality, changes, seed
        self.plain, self.most_bytes = plain, most_bytes
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.images, "set_epoch"):
            self.images.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = dict(self.images[index])
        return {"bytes": self._file(sample.pop("image").as_subclass(Tensor), index)} | sample

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        found = self.images.batch(indices) if hasattr(self.images, "batch") else None
        if found is None:
            samples = [self.images[index] for index in indices]
            found = {"image": [sample["image"].as_subclass(Tensor) for sample in samples]}
            if "label" in samples[0]:
                found["label"] = torch.tensor([sample["label"] for sample in samples])
        files = [self._file(image, index) for image, index in zip(found["image"], indices)]
        return {"bytes": pad(files)} | {name: value for name, value in found.items() if name != "image"}

    def _file(self, image: Tensor, index: int) -> Tensor:
        file = self._written(image, index)
        if self.plain is None or self.most_bytes is None or len(file) <= self.most_bytes:
            return file
        return self._written(self.plain[index]["image"].as_subclass(Tensor), index)

    def _written(self, image: Tensor, index: int) -> Tensor:
        written = as_numbers(encode_image(image, self.format, self.quality))
        return self.changes(written, mix(self.seed, self.epoch, index))


# --- reading ----------------------------------------------------------------------------------------------------------


def open_files(
    source: str | Path,
    *,
    split: Split | None = None,
    labels: Literal["required", "none"] = "none",
    least_bytes: int = 1,
    most_bytes: int | None = None,
    changes: Changes = Changes(),
    seed: int = 0,
) -> FileSource:
    """Files of any kind below a folder, or one file. Nobody looks into them: a text is as good as a photo.

    split: folders train and test (or val) are the parts; without them "train" and "test" set a fixed tenth aside.
    labels: "required" takes the sub-folders as classes.
    least_bytes, most_bytes: shorter and longer files are left out and listed in `.skipped`.
    """
    root = Path(source).expanduser()
    if not root.exists():
        raise InputError(f"{source} does not exist: give a folder of files, or a file")
    paths = walk(root) if root.is_dir() else [root.name]
    if not paths:
        raise InputError(f"{source} is empty: put files into it")
    labelled = labels == "required"
    listing = list_folder(root if root.is_dir() else root.parent, paths, split=split, channels=3, labelled=labelled)
    if labelled and listing.labels is None:
        raise InputError(f"{source} has no class folders: put the files of each class in a sub-folder of its own")
    reader, skipped = listing.reader, list(listing.skipped)
    assert isinstance(reader, FileReader)
    good = []
    for position in range(len(reader)):
        size = (reader.root / reader.paths[position]).stat().st_size
        if size < least_bytes:
            skipped.append((reader.key(position), f"{size} bytes are too few, at least {least_bytes} are needed"))
        elif most_bytes is not None and size > most_bytes:
            skipped.append((reader.key(position), f"{size} bytes are more than {most_bytes}"))
        else:
            good.append(position)
    if not good:
        raise InputError(f"{source} has no file that can be used; {skipped[0][0]}: {skipped[0][1]}")
    found = FileSource(
        lambda index: _read(reader, good[index]),
        [reader.key(position) for position in good],
        name=listing.name,
        labels=listing.labels[torch.tensor(good)] if labelled and listing.labels is not None else None,
        classes=listing.classes if labelled else None,
        skipped=skipped,
        changes=changes,
        seed=seed,
    )
    if split not in ("train", "test") or listing.own_split:
        return found
    if len(good) < 2:
        raise InputError(f"{source}: no test part can be set aside from one file; add files")
    held_out = torch.from_numpy(share(found.keys, found.labels, max(1, round(HELD_OUT * len(good))), seed=0))
    return found.subset(held_out if split == "test" else ~held_out)


def _read(reader: FileReader, position: int) -> bytes:
    try:
        return reader.encoded(position)
    except Unreadable as error:
        raise InputError(f"{reader.key(position)} {error}") from None
