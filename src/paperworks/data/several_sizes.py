"""Every image at several sizes, each with a crop and augmentation of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from paperworks.data.seeds import mix
from paperworks.data.transformed import Transformed
from paperworks.errors import InputError


class SeveralSizes(Dataset[dict[str, Any]]):
    """Samples of `source` with `image` (the first of `sizes`) and `image{size}` for each of the others.

    `transform_for`: size -> what `Transformed` takes. Draws are a function of (seed, size, epoch, index).
    """

    def __init__(self, source: Any, sizes: Sequence[int], transform_for: Callable[[int], Any], *, seed: int):
        if not sizes or len(set(sizes)) < len(sizes):
            raise InputError(f"sizes {list(sizes)}: give at least one, and each once")
        names = ["image", *(f"image{size}" for size in sizes[1:])]
        self.parts = {
            name: Transformed(source, transform_for(size), seed=seed if name == "image" else mix(seed, size))
            for name, size in zip(names, sizes)
        }

    def set_epoch(self, epoch: int) -> None:
        for part in self.parts.values():
            part.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.parts["image"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.parts["image"][index] | {name: part[index]["image"] for name, part in self.parts.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor] | None:
        """The stacked batch at once; None when the source or a transform cannot."""
        found = {name: part.batch(indices) for name, part in self.parts.items()}
        first = found["image"]
        if first is None or any(each is None for each in found.values()):
            return None
        return first | {name: each["image"] for name, each in found.items() if each is not None}
