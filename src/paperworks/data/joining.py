"""Several sources as one, and a source with labels from elsewhere."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from paperworks.data.source import ImageSource
from paperworks.errors import InputError


class Joined:
    """A reader of one source's images after another's."""

    def __init__(self, sources: Sequence[ImageSource]):
        self.sources = list(sources)
        self.ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, position: int) -> tuple[ImageSource, int]:
        number = bisect_right(self.ends, position)
        return self.sources[number], position - (self.ends[number - 1] if number else 0)

    def key(self, position: int) -> str:
        source, index = self._place(position)
        return source.key(index)

    def read(self, position: int) -> Tensor:
        source, index = self._place(position)
        return source.read(index)


def labelled(source: ImageSource, labels: Tensor, classes: Sequence[str]) -> ImageSource:
    """The same images with `labels` int64 [N] in place of their own, if any."""
    if labels.shape != (len(source),):
        raise InputError(f"{source.name}: {len(source)} images, but labels of shape {list(labels.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(
            f"{source.name}: labels go from {int(labels.min())} to {int(labels.max())}, there are {len(classes)} classes"
        )
    return ImageSource(
        source.reader,
        name=source.name,
        positions=source.positions,
        labels=labels.to(torch.int64),
        classes=classes,
        skipped=source.skipped,
        licence=source.licence,
    )


def joined(*sources: ImageSource) -> ImageSource:
    """All images of the sources, one after the other. Their classes must be the same."""
    if any(source.classes != sources[0].classes for source in sources):
        raise InputError(f"{', '.join(source.name for source in sources)}: their classes differ")
    name = " and ".join(dict.fromkeys(source.name for source in sources))
    found = [source.labels for source in sources]
    labels = torch.cat([part for part in found if part is not None]) if found[0] is not None else None
    licence = "; ".join(dict.fromkeys(source.licence for source in sources if source.licence))
    if all(source.is_stacked for source in sources):  # stays decoded in memory, and so quick to read
        parts = [source.images for source in sources]
        if len({part.shape[1:] for part in parts}) == 1:
            keys = [source.key(index) for source in sources for index in range(len(source))]
            return ImageSource.from_tensor(
                torch.cat(parts), labels, name=name, classes=sources[0].classes, keys=keys, licence=licence
            )
    skipped = [entry for source in sources for entry in source.skipped]
    return ImageSource(Joined(sources), name=name, labels=labels, classes=sources[0].classes, skipped=skipped, licence=licence)
