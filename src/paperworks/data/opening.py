"""`open_images`: one call for everything people keep images in."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.data.cifar import download_cifar, holds_batches, list_cifar
from paperworks.data.embedded import EMBEDDED
from paperworks.data.folder import is_image, list_folder, walk
from paperworks.data.hub import list_hub
from paperworks.data.listing import Listing, Split
from paperworks.data.objects import is_arrow, list_arrow, list_object
from paperworks.data.parquet import list_parquet
from paperworks.data.seeds import share
from paperworks.data.shards import expand, list_shards
from paperworks.data.source import ImageSource, InMemory
from paperworks.data.verify import MEMORY, verified
from paperworks.errors import InputError

NAMES = (*EMBEDDED, "cifar10", "imagenet")
HELD_OUT = 0.1
"""share of the images that are the test part of a source without one of its own"""

Labels = Literal["auto", "required", "none"]


def open_images(
    source: str | Path | Any,
    *,
    split: Split | None = None,
    strict: bool = False,
    labels: Labels = "auto",
    channels: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    memory: int = MEMORY,
) -> ImageSource:
    """Images from a name, a folder, a file or a data set object.

    `source`
      - "default" (= "mnist5k"), "digits", "photos", "photos-grey": inside installed packages, always there
      - "mate-backgrounds", "opencv-doc", "tuxpaint-stamps": Debian packages; "cifar10", "imagenet", "hf:owner/name": downloads
      - a folder of images (class sub-folders give labels), of parquet files, of tar shards or of CIFAR-10's batches
      - a .parquet file; a .tar shard or a pattern such as "train-{000..010}.tar"
      - a torchvision-style data set of (image, label) tuples, or a `datasets.Dataset`
    `split`: "train", "test" or "all". A source that comes in parts uses its own (train by default). Of any other source all
      images are taken by default; "train" and "test" then set a fixed tenth aside, the same one every time.
    `strict`: raise at the first unreadable image instead of skipping and listing it in `.skipped`.
    `labels`: "required" raises when there are none, "none" ignores them.
    `channels`: 1, 3 or 4 of every image; 3 by default, 1 for the embedded digits.
    `image_column`, `label_column`: for parquet and the hub, when the names are unusual.
    `memory`: bytes of decoded pixels to keep; larger sources are decoded at each access.

    Raises InputError, one line with the remedy, for whatever cannot be used.
    """
    if channels not in (None, 1, 3, 4):
        raise InputError(f"channels={channels}: images can have 1 (grey), 3 (RGB) or 4 (RGBA) channels")
    if split not in (None, "train", "test", "all"):
        raise InputError(f"split={split!r}: there are 'train', 'test' and 'all'")
    if labels not in ("auto", "required", "none"):
        raise InputError(f"labels={labels!r}: there are 'auto', 'required' and 'none'")
    columns = {"image_column": image_column, "label_column": label_column}
    listing = _list(source, split, strict, labels, channels, memory, columns)
    numbers = _checked_labels(listing, labels)
    if strict and listing.skipped:
        key, reason = listing.skipped[0]
        raise InputError(f"{key}: {reason}; without strict such files are skipped and listed")

    reader, skipped = listing.reader, listing.skipped
    positions = None
    if not isinstance(reader, InMemory):
        reader, good, bad = verified(reader, name=listing.name, strict=strict, memory=memory)
        skipped = skipped + bad
        numbers = None if numbers is None else numbers[good]
        positions = None if isinstance(reader, InMemory) else good
    opened = ImageSource(
        reader,
        name=listing.name,
        positions=positions,
        labels=numbers,
        classes=listing.classes,
        skipped=skipped,
        licence=listing.licence,
    )
    if split in ("train", "test") and not listing.own_split:
        return _set_aside(opened, split == "test")
    return opened


def _list(
    source: Any,
    split: Split | None,
    strict: bool,
    labels: Labels,
    channels: int | None,
    memory: int,
    columns: dict[str, str | None],
) -> Listing:
    """What the source holds, nothing decoded yet."""
    depth = channels or 3
    if isinstance(source, ImageSource):
        raise InputError(f"{source.name} is open already: use it as it is, or its .subset and .split")
    if not isinstance(source, str | os.PathLike):
        if is_arrow(source):
            return list_arrow([source], name=type(source).__name__, channels=depth, **columns)
        return list_object(source, channels=depth, labelled=False if labels == "none" else None)
    text = os.fspath(source)
    if text in EMBEDDED:
        return EMBEDDED[text](split, channels)
    if text == "cifar10":
        return list_cifar(download_cifar(), split=split, channels=depth)
    if text == "imagenet":
        text = "hf:ILSVRC/imagenet-1k"
    if text.startswith("hf:"):
        return list_hub(text, split=split, channels=depth, **columns)

    path = Path(text).expanduser()
    if path.is_dir():
        return _list_folder(path, split, strict, labels == "required", depth, memory, columns)
    lower = text.lower()
    if "{" in text or lower.endswith(".tar") or (path.is_file() and ".tar" in lower):
        shards = [Path(each) for each in expand(str(path))]
        return list_shards(shards, name=path.name, split=split, channels=depth, strict=strict)
    if not path.exists():
        raise InputError(_missing(text, path))
    if lower.endswith((".parquet", ".pq")):
        return list_parquet([path], name=path.name, split=split, channels=depth, memory=memory, strict=strict, **columns)
    if is_image(text):
        return list_folder(path.parent, [path.name], split=split, channels=depth, labelled=False)
    raise InputError(
        f"{text}: give a folder, a .parquet file, a .tar shard or an image, not a {path.suffix or 'file without ending'}"
    )


def _list_folder(
    folder: Path, split: Split | None, strict: bool, labelled: bool, channels: int, memory: int, columns: dict[str, str | None]
) -> Listing:
    files = walk(folder)
    images = [path for path in files if is_image(path)]
    if images:
        return list_folder(folder, images, split=split, channels=channels, labelled=labelled)
    parquet = [folder / path for path in files if path.lower().endswith((".parquet", ".pq"))]
    if parquet:
        return list_parquet(parquet, name=folder.name, split=split, channels=channels, memory=memory, strict=strict, **columns)
    shards = [folder / path for path in files if path.lower().endswith(".tar")]
    if shards:
        return list_shards(shards, name=folder.name, split=split, channels=channels, strict=strict)
    for place in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        if holds_batches(place):
            return list_cifar(place, split=split, channels=channels)
    if not files:
        raise InputError(f"{folder} is empty: put images (.jpg, .png, ...), parquet files or tar shards into it")
    raise InputError(
        f"{folder} holds no images: {len(files)} files such as {files[0]}, none .jpg, .png or the like, .parquet or .tar"
    )


def _checked_labels(listing: Listing, wanted: Labels) -> Tensor | None:
    """Labels within the range of the classes; None when there are none or they are not wanted."""
    numbers = listing.labels
    if wanted == "none":
        return None
    if numbers is None or bool((numbers < 0).all()):  # unlabelled parts of published data sets hold -1 throughout
        if wanted == "required":
            raise InputError(f"{listing.name} has no labels, and they are needed here: {listing.labelling}")
        return None
    if listing.classes is None:
        listing.classes = [str(number) for number in range(int(numbers.max()) + 1)]
    outside = ((numbers < 0) | (numbers >= len(listing.classes))).nonzero()
    if len(outside):
        first = int(outside[0])
        raise InputError(
            f"{listing.name}: {len(outside)} labels lie outside 0..{len(listing.classes) - 1}, the first is "
            f"{int(numbers[first])} of {listing.reader.key(first)}: correct them or pass labels='none'"
        )
    return numbers


def _set_aside(source: ImageSource, test: bool) -> ImageSource:
    """A fixed tenth of the readable images (at least one) as the test part, or the rest."""
    count = len(source)
    if count < 2:
        raise InputError(
            f"{source.name}: no test part can be set aside from {count} image; add images or open it without a split"
        )
    mask = torch.from_numpy(
        share([source.key(i) for i in range(count)], source.labels, max(1, round(HELD_OUT * count)), seed=0)
    )
    part = source.subset(mask if test else ~mask)
    if isinstance(source.reader, InMemory):  # let go of the pixels of the other part
        rows = part.positions
        images = source.reader.images
        kept = images[rows] if isinstance(images, Tensor) else [images[row] for row in rows.tolist()]
        part.reader, part.positions = InMemory(kept, [source.key(row) for row in rows.tolist()]), torch.arange(len(rows))
    return part


def _missing(text: str, path: Path) -> str:
    """What to say about a source that is neither a name nor a path: the nearest thing that exists."""
    known = list(NAMES)
    if path.parent.is_dir():
        known += [str(path.parent / name) if os.sep in text else name for name in sorted(os.listdir(path.parent))]
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"names are {', '.join(NAMES)} and hf:owner/name"
    return f"{text!r} does not exist; {hint}"
