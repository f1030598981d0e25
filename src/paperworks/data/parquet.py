"""Parquet as Hugging Face writes it: a column of images (struct of bytes and path, or plain bytes) and one of labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperworks.data.decode import Unreadable
from paperworks.data.listing import Listing, Split, choose_parts, number_labels, part_name
from paperworks.data.source import EncodedReader
from paperworks.data.verify import cache_folder, file_stamp, fingerprint
from paperworks.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "png", "picture", "bytes")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls", "class_id", "category")


class ColumnReader(EncodedReader):
    """Images in an Arrow column. `folders` are searched for images that are stored by path only."""

    def __init__(self, column: pa.ChunkedArray, keys: Sequence[str], stamp: list[Any], folders: Sequence[Path], channels: int):
        super().__init__(channels)
        self.keys = keys
        self.stamp = stamp
        self.folders = folders
        import pyarrow as pa

        self.paths = None
        if pa.types.is_struct(column.type):
            fields = [column.type.field(index).name for index in range(column.type.num_fields)]
            flat = dict(zip(fields, column.flatten()))
            self.paths = flat.get("path")
            column = flat["bytes"]
        self.column = column

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, position: int) -> str:
        return self.keys[position]

    def encoded(self, position: int) -> bytes:
        data = self.column[position].as_py()
        if data is not None:
            return data
        path = self.paths[position].as_py() if self.paths is not None else None
        if path is None:
            raise Unreadable("neither bytes nor a path")
        for folder in self.folders:
            if (folder / path).is_file():
                return (folder / path).read_bytes()
        raise Unreadable(f"its file {path} is missing")

    def fingerprint(self) -> list[Any]:
        return self.stamp


def list_parquet(
    paths: Sequence[Path],
    *,
    name: str,
    split: Split | None,
    channels: int,
    memory: int,
    strict: bool,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Listing:
    """From parquet files; file or folder names beginning with train, test or validation are the parts. Only the chosen
    part is read. Files that are no parquet are skipped and listed, unless `strict` or none is left."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    skipped = []
    files: dict[Path, pq.ParquetFile] = {}
    for path in paths:
        try:
            files[path] = pq.ParquetFile(path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            reason = f"not a readable parquet file ({str(error).splitlines()[0]})"
            if strict or len(paths) == 1:
                raise InputError(f"{path}: {reason}") from None
            skipped.append((path.name, reason))
    if not files:
        raise InputError(f"{name}: none of its {len(paths)} parquet files can be read; the first is {skipped[0][0]}")
    schema = next(iter(files.values())).schema_arrow
    image = image_column or find_image_column(schema, name)
    label = label_column or find_label_column(schema)
    for path, file in files.items():
        for wanted in (image, label):
            if wanted is not None and wanted not in file.schema_arrow.names:
                raise InputError(f"{path}: no column {wanted!r}; there are {', '.join(file.schema_arrow.names)}")

    parts: dict[str, list[Path]] = {}
    for path in files:
        parts.setdefault(part_name(path.name) or part_name(path.parent.name) or "", []).append(path)
    chosen = choose_parts(parts, split, {part: _labelled(files[of[0]], label) for part, of in parts.items()})
    if chosen is not None:
        files = {path: files[path] for part in chosen for path in parts[part]}

    table = _table(files, [image] + ([label] if label else []), memory)
    counts = [(path, file.metadata.num_rows) for path, file in files.items()]
    keys = [f"{path.name}#{row}" for path, rows in counts for row in range(rows)]
    labels, classes = (None, None) if label is None else number_labels(table[label].to_pylist(), name)
    folders = [Path("/"), *dict.fromkeys(path.parent for path in files)]
    return Listing(
        ColumnReader(table[image], keys, [image, *(file_stamp(path) for path in files)], folders, channels),
        name=name,
        labels=labels,
        classes=classes or (class_names(schema, label) if label else None),
        skipped=skipped,
        licence="your own files",
        own_split=chosen is not None,
        labelling=f"name the column with label_column=...; there are {', '.join(schema.names)}",
    )


def find_image_column(schema: pa.Schema, name: str) -> str:
    """The column of image structs or bytes, usual names first. Raises InputError listing the columns."""
    import pyarrow as pa

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    columns = [field.name for field in schema if holds_bytes(field.type)]
    usual = [column for column in IMAGE_COLUMNS if column in columns]
    if not columns:
        raise InputError(f"{name}: no column of images (bytes, or a struct with bytes) among {', '.join(schema.names)}")
    return (usual or columns)[0]


def find_label_column(schema: pa.Schema) -> str | None:
    """A column of integers or texts with a usual name, or one that the Hugging Face metadata call a ClassLabel."""
    import pyarrow as pa

    def is_label(kind: pa.DataType) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)

    columns = [field.name for field in schema if is_label(field.type)]
    usual = [column for column in LABEL_COLUMNS if column in columns]
    declared = [column for column in columns if class_names(schema, column)]
    return next(iter(usual + declared), None)


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names that Hugging Face stores for a ClassLabel column in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _labelled(file: Any, label: str | None) -> bool:
    """Whether the first rows of a file carry labels (unlabelled test parts hold -1)."""
    if label is None or file.metadata.num_row_groups == 0:
        return False
    first = file.read_row_group(0, columns=[label])[label].to_pylist()
    return any(value is not None and value != -1 for value in first)


def _table(files: dict[Path, Any], columns: list[str], memory: int) -> pa.Table:
    """The columns of all files: read whole when small, else unpacked once into an Arrow file that is mapped, not read."""
    import pyarrow as pa

    try:
        if sum(_bytes(file, columns) for file in files.values()) <= memory:
            return pa.concat_tables(file.read(columns=columns, use_threads=False) for file in files.values())
        stamp = fingerprint([columns, [file_stamp(path) for path in files]])
        unpacked = cache_folder() / "unpacked" / f"{stamp}.arrow"
        if not unpacked.is_file():
            _unpack(files, columns, unpacked)
        return pa.ipc.open_file(pa.memory_map(str(unpacked))).read_all()
    except pa.ArrowException as error:
        raise InputError(f"{next(iter(files)).parent}: {str(error).splitlines()[0]}") from None


def _unpack(files: dict[Path, Any], columns: list[str], target: Path) -> None:
    """A single row of parquet costs the decompression of its row group; Arrow files are addressed directly."""
    import pyarrow as pa

    from paperworks.data.progress import watched

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    groups = [(file, group) for file in files.values() for group in range(file.num_row_groups)]
    try:
        schema = groups[0][0].read_row_group(0, columns=columns).schema
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for file, group in watched(groups, len(groups), "unpacking parquet"):
                writer.write_table(file.read_row_group(group, columns=columns))
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def _bytes(file: Any, columns: list[str]) -> int:
    """Uncompressed size of some columns."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
