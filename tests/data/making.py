"""Small image files made up for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Image.Image:
    """A smooth picture (width, height) whose colours depend on its number."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin((number + 1) * (x + (channel + 1) * y) / 40) for channel in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_jpegs(folder: Path, *, count: int = 30, broken: int = 5, classes: int = 3) -> Path:
    """JPEGs of several sizes in `classes` sub-folders (0: flat), file names with mixed-case endings. The broken ones are
    empty, cut short, or something else under the name of a JPEG."""
    names = [f"class{number}" for number in range(classes)] or ["."]
    for number in range(count):
        place = folder / names[number % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        data = encoded(picture(number, (40 + number % 7 * 8, 40 + number % 3 * 16)), quality=90)
        if number < broken:
            data = [b"", data[: len(data) // 2], b"no picture at all\n", data[:40], b"\x89PNG\r\n\x1a\n"][number % 5]
        (place / f"{number:03d}{('.jpg', '.JPG', '.jpeg')[number % 3]}").write_bytes(data)
    return folder
