"""ImageSource: the one form in which images reach the rest of the library, and where its pixels come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from paperworks.data.decode import Unreadable, decode
from paperworks.data.seeds import share
from paperworks.errors import InputError


class Reader(Protocol):
    """Random access to the images of one kind of container."""

    def __len__(self) -> int: ...

    def key(self, position: int) -> str:
        """A name for error messages and results that stays the same from run to run."""
        ...

    def read(self, position: int) -> Tensor:
        """uint8 [C, H, W]; raises Unreadable."""
        ...


class EncodedReader:
    """A reader whose images are encoded files somewhere: a subclass says how to get their bytes."""

    def __init__(self, channels: int):
        self.channels = channels

    def encoded(self, position: int) -> bytes:
        raise NotImplementedError

    def read(self, position: int) -> Tensor:
        return decode(self.encoded(position), self.channels)

    def fingerprint(self) -> list[Any]:
        """What must stay the same for an earlier verification to hold (paths, sizes, times)."""
        raise NotImplementedError


class InMemory:
    """Decoded images: one tensor [N, C, H, W] when all have the same size, else a list."""

    def __init__(self, images: Tensor | list[Tensor], keys: Sequence[str]):
        self.images = images
        self.keys = keys

    def __len__(self) -> int:
        return len(self.images)

    def key(self, position: int) -> str:
        return self.keys[position]

    def read(self, position: int) -> Tensor:
        return self.images[position].clone()  # a transform that works in place must not change the stored image


class ImageSource(Dataset[dict[str, Any]]):
    """Images by index: `{"image": tv_tensors.Image uint8 [C, H, W], "key": str}` and `"label": int` when there are labels.

    `classes` names the labels, `labels` holds them all (int64 [N]), `skipped` lists what could not be used as (what, why),
    `licence` says what the images may be used for as far as that is known.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        name: str,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        skipped: Sequence[tuple[str, str]] = (),
        licence: str = "",
    ):
        self.reader = reader
        self.positions = torch.arange(len(reader)) if positions is None else positions
        self.name = name
        self.labels = labels
        self.classes = list(classes) if classes is not None and labels is not None else None
        self.skipped = list(skipped)
        self.licence = licence

    @classmethod
    def from_tensor(
        cls,
        images: Tensor | list[Tensor],
        labels: Tensor | None = None,
        *,
        name: str,
        classes: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
        licence: str = "",
    ) -> ImageSource:
        """From uint8 images [N, C, H, W] (or a list of [C, H, W]); `labels` int64 [N]."""
        for image in images[:1]:
            if image.dtype != torch.uint8 or image.ndim != 3:
                raise InputError(f"{name}: images must be uint8 [C, H, W], not {image.dtype} {list(image.shape)}")
        if labels is not None and len(labels) != len(images):
            raise InputError(f"{name}: {len(images)} images but {len(labels)} labels")
        keys = [f"{name}/{index:05d}" for index in range(len(images))] if keys is None else keys
        if labels is not None and classes is None:
            classes = [str(label) for label in range(int(labels.max()) + 1)]
        return cls(InMemory(images, keys), name=name, labels=labels, classes=classes, licence=licence)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no image {index}")
        sample: dict[str, Any] = {"image": tv_tensors.Image(self.read(index)), "key": self.key(index)}
        if self.labels is not None:
            sample["label"] = int(self.labels[index])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of several indices (what a torch DataLoader asks for); `batch` gives them stacked."""
        stacked = self.batch(indices)
        if stacked is None:
            return [self[index] for index in indices]
        samples = [
            {"image": tv_tensors.Image(image), "key": self.key(index)} for image, index in zip(stacked["image"], indices)
        ]
        if self.labels is not None:
            for sample, label in zip(samples, stacked["label"].tolist()):
                sample["label"] = label
        return samples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        parts = [f"{len(self)} images"]
        parts += [f"{len(self.classes)} classes"] if self.classes else []
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"<{self.name}: {', '.join(parts)}>"

    def key(self, index: int) -> str:
        return self.reader.key(int(self.positions[index]))

    def read(self, index: int) -> Tensor:
        """The pixels of one image as a plain tensor uint8 [C, H, W]."""
        position = int(self.positions[index])
        try:
            return self.reader.read(position)
        except Unreadable as error:
            raise InputError(
                f"{self.name}: {self.reader.key(position)} was readable when it was opened and is not any more ({error})"
            ) from None

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor] | None:
        """`{"image": uint8 [B, C, H, W], "label": int64 [B]}` at once when all images lie decoded in one tensor, else None."""
        if not self.is_stacked:
            return None
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self.reader.images.index_select(0, self.positions[chosen])  # type: ignore[attr-defined]
        return {"image": images} if self.labels is None else {"image": images, "label": self.labels[chosen]}

    @property
    def is_stacked(self) -> bool:
        """Whether all images lie decoded, with one size, in one tensor in memory."""
        return isinstance(self.reader, InMemory) and isinstance(self.reader.images, Tensor)

    @property
    def images(self) -> Tensor:
        """All images uint8 [N, C, H, W] of a source whose images have one size. Raises InputError when they differ."""
        everything = self.batch(range(len(self)))
        if everything is not None:
            return everything["image"]
        images = [self.read(index) for index in range(len(self))]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise InputError(f"{self.name}: images of {len(shapes)} different sizes cannot be stacked; crop them first")
        return torch.stack(images)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSource:
        """The images at `indices` (a list, or an int64 or bool tensor), in that order; nothing is copied."""
        chosen = torch.as_tensor(indices)
        chosen = chosen.nonzero().squeeze(1) if chosen.dtype == torch.bool else chosen.to(torch.int64)
        return ImageSource(
            self.reader,
            name=self.name,
            positions=self.positions[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            classes=self.classes,
            skipped=self.skipped,
            licence=self.licence,
        )

    def split(self, fraction: float, seed: int) -> tuple[ImageSource, ImageSource]:
        """Two disjoint parts: the first holds `fraction` of the images (rounded), in equal proportion of each class."""
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise InputError(f"{self.name}: {fraction} of {len(self)} images leaves an empty part")
        mask = torch.from_numpy(share([self.key(index) for index in range(len(self))], self.labels, count, seed))
        return self.subset(mask), self.subset(~mask)
