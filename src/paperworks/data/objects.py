"""Data set objects that exist already: torchvision's (image, label) tuples, dicts with an image, Hugging Face's `Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paperworks.data.decode import Unreadable, from_any
from paperworks.data.listing import Listing, number_labels
from paperworks.data.parquet import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    ColumnReader,
    class_names,
    find_image_column,
    find_label_column,
)
from paperworks.data.progress import watched
from paperworks.errors import InputError


class ObjectReader:
    """Items of a map-style data set. What it returns at opening stays: give it without random transforms."""

    def __init__(self, dataset: Any, name: str, channels: int):
        self.dataset = dataset
        self.name = name
        self.channels = channels

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self, position: int) -> str:
        return f"{self.name}[{position}]"

    def read(self, position: int) -> Tensor:
        return from_any(_image(self._item(position)), self.channels)

    def label(self, position: int) -> Any:
        """An integer or text; None when there is none. Raises Unreadable."""
        return _label(self._item(position))

    def _item(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except Exception as error:  # a foreign data set may raise anything for a bad image
            raise Unreadable(f"{type(error).__name__}: {error}") from None


def list_object(dataset: Any, *, channels: int, labelled: bool | None) -> Listing:
    """From an object with `__len__` and `__getitem__`. `labelled`: None to find out from the first item."""
    name = type(dataset).__name__
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(f"{name} is no source of images: give a folder, a file, a name or a data set with len() and [index]")
    if len(dataset) == 0:
        raise InputError(f"{name} is empty")
    reader = ObjectReader(dataset, name, channels)
    labels, classes = None, None
    if labelled is not False:
        values = _all_labels(dataset, reader)
        if values is not None:
            labels, classes = number_labels(values, name)
    named = getattr(dataset, "classes", None)
    if classes is None and labels is not None and isinstance(named, list | tuple) and named:
        classes = [str(each) for each in named]
    return Listing(
        reader,
        name=name,
        labels=labels,
        classes=classes,
        licence="as the data set says",
        labelling="its items must be (image, label) tuples or dicts with a label",
    )


def list_arrow(
    datasets: Sequence[Any], *, name: str, channels: int, image_column: str | None = None, label_column: str | None = None
) -> Listing:
    """From `datasets.Dataset` objects with an Image column; the encoded bytes are read straight from their Arrow tables."""
    import datasets as hf
    import pyarrow as pa

    whole = datasets[0] if len(datasets) == 1 else hf.concatenate_datasets(list(datasets))
    features = whole.features
    typed = [column for column, kind in features.items() if isinstance(kind, hf.Image)]
    table: pa.Table = whole.with_format("arrow")[:]
    image = image_column or (typed[0] if typed else find_image_column(table.schema, name))
    label = label_column or find_label_column(table.schema)
    for wanted in (image, label):
        if wanted is not None and wanted not in table.column_names:
            raise InputError(f"{name}: no column {wanted!r}; there are {', '.join(table.column_names)}")
    if label is None:
        label = next((column for column, kind in features.items() if isinstance(kind, hf.ClassLabel)), None)
    labels, classes = (None, None) if label is None else number_labels(table[label].to_pylist(), name)
    if label is not None and isinstance(features[label], hf.ClassLabel):
        classes = list(features[label].names)
    keys = [f"{name}#{row}" for row in range(len(table))]
    stamp = [whole._fingerprint, image]
    return Listing(
        ColumnReader(table[image], keys, stamp, [], channels),
        name=name,
        labels=labels,
        classes=classes or (class_names(table.schema, label) if label else None),
        licence=str(whole.info.license or "") or "see its card on the hub",
        labelling=f"name the column with label_column=...; there are {', '.join(table.column_names)}",
    )


def is_arrow(dataset: Any) -> bool:
    """Whether this is a `datasets.Dataset` (the library is not imported for the answer)."""
    return any(f"{kind.__module__}.{kind.__name__}" == "datasets.arrow_dataset.Dataset" for kind in type(dataset).__mro__)


def _all_labels(dataset: Any, reader: ObjectReader) -> list[Any] | None:
    """From the list that most data sets keep, else item by item."""
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(dataset, attribute, None)
        if found is not None and not callable(found) and len(found) == len(dataset):
            return torch.as_tensor(found).tolist() if not isinstance(found[0], str) else list(found)
    values, failed = [], []
    for position in watched(range(len(reader)), len(reader), f"labels of {reader.name}"):
        try:
            values.append(reader.label(position))
        except Unreadable:  # it will be skipped when its image is read
            values.append(None)
            failed.append(position)
        if values[-1] is None and len(failed) < len(values) and all(value is None for value in values):
            return None  # the first item that can be read has no label
    usable = next((value for value in values if value is not None), None)
    for position in failed:
        values[position] = usable
    return values if usable is not None else None


def _image(item: Any) -> Any:
    if isinstance(item, dict):
        return next((item[name] for name in IMAGE_COLUMNS if name in item), None)
    return item[0] if isinstance(item, tuple | list) and item else item


def _label(item: Any) -> Any:
    """An integer or text, or None."""
    if isinstance(item, dict):
        item = next((item[name] for name in LABEL_COLUMNS if name in item), None)
    elif isinstance(item, tuple | list):
        item = item[1] if len(item) > 1 else None
    else:
        return None
    if hasattr(item, "item") and getattr(item, "ndim", 0) == 0:
        item = item.item()
    return item if isinstance(item, int | str) else None
