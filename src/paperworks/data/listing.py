"""What an opener finds in a container before any image is decoded, and how parts called train and test are recognised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from paperworks.data.source import Reader
from paperworks.errors import InputError

Split = Literal["train", "test", "all"]
TEST_NAMES = ("test", "validation", "valid", "val", "dev")
PART = re.compile(rf"(train|{'|'.join(TEST_NAMES)})(?![a-z])")

T = TypeVar("T")


@dataclass
class Listing:
    reader: Reader
    name: str
    labels: Tensor | None = None
    """int64, one per image of the reader; all negative means that there are none"""
    classes: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    licence: str = ""
    own_split: bool = False
    """the images are already those of the part that was asked for"""
    labelling: str = "give a source with labels"
    """what to do when labels are needed and there are none"""


def part_name(name: str) -> str | None:
    """ "train", "test", "val" ... when a file's or folder's name begins so ("train-00000-of-00002.parquet"), else None."""
    found = PART.match(name.lower())
    return found.group(1) if found else None


def choose_parts(parts: Mapping[str, T], split: Split | None, labelled: Mapping[str, bool] | None = None) -> list[str] | None:
    """Which of the named parts of a data set make the split that is asked for; None when it has no parts of its own.

    A test part without labels beside a training part with labels (as competitions publish it) gives way to the validation
    part.
    """
    if "train" not in parts or len(parts) < 2:
        return None
    if split == "all":
        return list(parts)
    if split != "test":
        return ["train"]
    held_out = [name for name in TEST_NAMES if name in parts]
    if labelled and labelled["train"]:
        held_out.sort(key=lambda name: not labelled[name])
    return held_out[:1]


def number_labels(values: Sequence[Any], name: str) -> tuple[Tensor, list[str] | None]:
    """(int64 labels, class names or None) from a column of integers, or of texts (classes in alphabetical order)."""
    if all(isinstance(value, int) for value in values):
        return torch.tensor([int(value) for value in values], dtype=torch.int64), None
    if all(isinstance(value, str) for value in values):
        if all(value.lstrip("-").isdecimal() for value in values):
            return torch.tensor([int(value) for value in values], dtype=torch.int64), None
        classes = sorted(set(values))
        number = {text: index for index, text in enumerate(classes)}
        return torch.tensor([number[value] for value in values], dtype=torch.int64), classes
    missing = sum(value is None for value in values)
    if missing:
        raise InputError(f"{name}: {missing} of {len(values)} images have no label; label them or pass labels='none'")
    raise InputError(
        f"{name}: labels must all be integers or all be texts, not {type(values[0]).__name__}; or pass labels='none'"
    )
