"""Training images cut out of a few large photos."""

from __future__ import annotations

import torch

from paperworks.data.source import ImageSource
from paperworks.errors import InputError


def random_crops(source: ImageSource, size: int, count: int, seed: int, *, by_area: bool = False) -> ImageSource:
    """`count` squares of `size` pixels at random positions. Every photo gives as many; `by_area` makes every position in any
    of them equally likely instead, so that large photos give more.

    Keys say where a crop comes from ("coffee@y,x"), labels are those of the photos. Photos that are too small are left out
    and listed in `.skipped`.

    Raises InputError when all are too small.
    """
    photos = [source.read(index) for index in range(len(source))]
    rooms = torch.tensor([max(0, p.shape[1] - size + 1) * max(0, p.shape[2] - size + 1) for p in photos], dtype=torch.float64)
    small = [(source.key(index), f"smaller than {size} x {size}") for index in range(len(photos)) if not rooms[index]]
    if len(small) == len(photos):
        largest = max(min(photo.shape[1:]) for photo in photos)
        raise InputError(f"{source.name}: no image holds a crop of {size} x {size}; the largest allows {largest}")

    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(
        rooms if by_area else (rooms > 0).double(), count, replacement=True, generator=generator
    ).tolist()
    where = torch.rand(count, 2, generator=generator, dtype=torch.float64).tolist()
    crops = torch.empty((count, photos[0].shape[0], size, size), dtype=torch.uint8)
    keys = []
    for row, (index, (down, right)) in enumerate(zip(chosen, where)):
        photo = photos[index]
        top, left = int(down * (photo.shape[1] - size + 1)), int(right * (photo.shape[2] - size + 1))
        crops[row] = photo[:, top : top + size, left : left + size]
        keys.append(f"{source.key(index)}@{top},{left}")
    labels = None if source.labels is None else source.labels[torch.tensor(chosen)]
    cut = ImageSource.from_tensor(
        crops, labels, name=f"{source.name} crops", classes=source.classes, keys=keys, licence=source.licence
    )
    cut.skipped = source.skipped + small
    return cut
