"""Image folders: one sub-folder per class gives labels, a flat folder has none, train/ and test/ (or val/) are recognised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paperworks.data.decode import SUFFIXES, Unreadable
from paperworks.data.listing import Listing, Split, choose_parts, part_name
from paperworks.data.source import EncodedReader
from paperworks.data.verify import file_stamp


class FileReader(EncodedReader):
    """Image files by their paths relative to `root`, which are the keys too unless others are given."""

    def __init__(self, root: Path, paths: Sequence[str], channels: int, keys: Sequence[str] | None = None):
        super().__init__(channels)
        self.root = root
        self.paths = paths
        self.keys = paths if keys is None else keys

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, position: int) -> str:
        return self.keys[position]

    def encoded(self, position: int) -> bytes:
        try:
            return (self.root / self.paths[position]).read_bytes()
        except OSError as error:
            raise Unreadable(f"cannot be opened ({error.strerror})") from None

    def fingerprint(self) -> list[Any]:
        return [file_stamp(self.root / path) for path in self.paths]


def walk(folder: Path) -> list[str]:
    """All files below a folder, relative to it, sorted; hidden ones and what macOS archives add are left out."""
    files = []
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        inside = os.path.relpath(where, folder)
        prefix = "" if inside == "." else inside.replace(os.sep, "/") + "/"
        files += [prefix + name for name in names if not name.startswith(".")]
    return sorted(files)


def is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def list_folder(folder: Path, images: Sequence[str], *, split: Split | None, channels: int, labelled: bool) -> Listing:
    """From the image files below a folder (relative paths). `labelled`: even a single sub-folder counts as a class."""
    parts: dict[str, list[str]] = {}
    for path in images:
        head, slash, _ = path.partition("/")
        if slash and (part := part_name(head)):
            parts.setdefault(part, []).append(path)
    chosen = choose_parts(parts, split, {name: any(path.count("/") > 1 for path in inside) for name, inside in parts.items()})

    if chosen is not None:
        # classes are numbered over all parts together, also when only one of them is opened
        names = {path.split("/")[1] for inside in parts.values() for path in inside if path.count("/") > 1}
        files, depth = [path for name in chosen for path in parts[name]], 1
    else:
        files, depth = list(images), _common_depth(images, labelled)
        names = {path.split("/")[depth] for path in files if path.count("/") > depth}
    classes = sorted(names) if len(names) > 1 or labelled else []

    skipped: list[tuple[str, str]] = []
    labels = None
    if classes:
        stray = [path for path in files if path.count("/") <= depth]
        skipped = [(path, "lies beside the class folders, so it has no label") for path in stray]
        files = [path for path in files if path.count("/") > depth]
        number = {name: index for index, name in enumerate(classes)}
        labels = torch.tensor([number[path.split("/")[depth]] for path in files], dtype=torch.int64)
    return Listing(
        FileReader(folder, files, channels),
        name=folder.name or str(folder),
        labels=labels,
        classes=classes or None,
        skipped=skipped,
        licence="your own files",
        own_split=chosen is not None,
        labelling="put the images of each class in a sub-folder of its own",
    )


def _common_depth(paths: Sequence[str], labelled: bool) -> int:
    """How many leading folders all paths share: `photos/2024/a.jpg, photos/2024/b.jpg` are a flat folder two levels down.
    When labels are wanted, a last shared folder that holds the images themselves is the only class instead."""
    split_paths = [path.split("/") for path in paths]
    depth = 0
    while all(len(path) > depth + 1 and path[depth] == split_paths[0][depth] for path in split_paths):
        depth += 1
    if labelled and depth and all(len(path) == depth + 1 for path in split_paths):
        return depth - 1
    return depth
