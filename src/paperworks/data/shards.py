"""webdataset shards: tar files with `key.jpg` and `key.cls` (or `key.json`) side by side, read in place at random."""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperworks.data.decode import Unreadable
from paperworks.data.folder import is_image
from paperworks.data.listing import Listing, Split, choose_parts, number_labels, part_name
from paperworks.data.progress import watched
from paperworks.data.source import EncodedReader
from paperworks.data.verify import file_stamp
from paperworks.errors import InputError

BRACES = re.compile(r"\{([^{}]*)\}")
LABEL_FIELDS = ("label", "cls", "class", "class_id", "target")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Member:
    """Where one file lies: shard number, first byte, length."""

    shard: int
    offset: int
    size: int


@dataclass
class Sample:
    key: str
    image: Member | None = None
    fields: dict[str, Member] = field(default_factory=dict)
    """the other files of the sample, by extension"""


class TarReader(EncodedReader):
    """Images inside uncompressed tar files, each read with one positioned read."""

    def __init__(self, shards: Sequence[Path], members: Sequence[Member], keys: Sequence[str], channels: int):
        super().__init__(channels)
        self.shards = shards
        self.members = members
        self.keys = keys
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.members)

    def key(self, position: int) -> str:
        return self.keys[position]

    def encoded(self, position: int) -> bytes:
        return self.bytes_of(self.members[position])

    def bytes_of(self, member: Member) -> bytes:
        try:
            if member.shard not in self._open:
                self._open[member.shard] = os.open(self.shards[member.shard], os.O_RDONLY)
            data = os.pread(self._open[member.shard], member.size, member.offset)  # no shared file position: safe in threads
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None
        if len(data) < member.size:
            raise Unreadable("the tar file ends within it")
        return data

    def fingerprint(self) -> list[Any]:
        return [file_stamp(path) for path in self.shards]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def expand(pattern: str) -> list[str]:
    """`train-{000..010}.tar` and `{a,b}.tar` as the list of names they stand for, in order; zero padding is kept."""
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    begin, dots, end = found.group(1).partition("..")
    if dots and begin.isdecimal() and end.isdecimal():
        low, high = int(begin), int(end)
        width = len(begin) if begin.startswith("0") or len(begin) == len(end) else 0
        choices = [str(number).zfill(width) for number in range(low, high + 1)]
    else:
        choices = found.group(1).split(",")
    return [pattern[: found.start()] + choice + rest for choice in choices for rest in expand(pattern[found.end() :])]


def list_shards(paths: Sequence[Path], *, name: str, split: Split | None, channels: int, strict: bool) -> Listing:
    """From tar files, indexed by their headers; file names beginning with train, test or validation are the parts."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such shard ({len(paths)} named by {name})")
        if path.name.lower().endswith(COMPRESSED):
            raise InputError(f"{path}: compressed shards have no random access; unpack it to a plain .tar first")
    parts: dict[str, list[Path]] = {}
    for path in paths:
        parts.setdefault(part_name(path.name) or part_name(path.parent.name) or "", []).append(path)
    chosen = choose_parts(parts, split)
    shards = list(paths) if chosen is None else [path for part in chosen for path in parts[part]]

    skipped: list[tuple[str, str]] = []
    samples: list[Sample] = []
    for number, path in enumerate(watched(shards, len(shards), f"indexing {name}")):
        samples += _samples(number, path, skipped, strict)
    whole = [(sample, sample.image) for sample in samples if sample.image is not None]
    if not whole:
        raise InputError(f"{name}: no images in {len(shards)} tar files; samples need a .jpg, .png or other image file")
    reader = TarReader(shards, [image for _, image in whole], [sample.key for sample, _ in whole], channels)
    labels, classes = None, None
    values = [_label(reader, sample) for sample, _ in whole]
    if any(value is not None for value in values):
        labels, classes = number_labels(values, name)
    return Listing(
        reader,
        name=name,
        labels=labels,
        classes=classes,
        skipped=skipped,
        licence="your own files",
        own_split=chosen is not None,
        labelling="store a .cls file (the class number) beside each image",
    )


def _samples(number: int, path: Path, skipped: list[tuple[str, str]], strict: bool) -> Iterator[Sample]:
    """Members that follow one another and share the path up to the first dot of the file name are one sample."""
    for key, group in itertools.groupby(_members(number, path, skipped, strict), key=lambda pair: _key(pair[0])[0]):
        sample = Sample(f"{path.name}/{key}")
        for member_name, member in group:
            extension = _key(member_name)[1]
            if is_image("x." + extension):
                sample.image = sample.image or member
            else:
                sample.fields[extension] = member
        yield sample


def _members(number: int, path: Path, skipped: list[tuple[str, str]], strict: bool) -> Iterator[tuple[str, Member]]:
    count = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen otherwise
                base = info.name.rpartition("/")[2]
                if info.isfile() and "." in base and not base.startswith((".", "__")):
                    count += 1
                    yield info.name, Member(number, info.offset_data, info.size)
        if path.stat().st_size % tarfile.BLOCKSIZE:  # tarfile takes a header that is cut off for the end
            raise tarfile.ReadError("it ends in the middle of a block")
    except (tarfile.TarError, OSError, EOFError) as error:
        if strict:
            raise InputError(f"{path}: damaged tar file ({error})") from None
        skipped.append((path.name, f"damaged tar file ({error}) after {count} members"))


def _key(member_name: str) -> tuple[str, str]:
    """(key, extension): `a/b.left.jpg` -> (`a/b`, `left.jpg`)."""
    folder, slash, base = member_name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _label(reader: TarReader, sample: Sample) -> Any:
    """The label of a sample: the text of its .cls, else a usual entry of its .json; None when there is none."""
    try:
        if "cls" in sample.fields:
            return reader.bytes_of(sample.fields["cls"]).decode().strip()
        if "json" in sample.fields:
            content = json.loads(reader.bytes_of(sample.fields["json"]))
            found = [content[name] for name in LABEL_FIELDS if name in content] if isinstance(content, dict) else [content]
            return str(found[0]) if found and isinstance(found[0], int | str) else None
    except (Unreadable, ValueError):
        return None
    return None
