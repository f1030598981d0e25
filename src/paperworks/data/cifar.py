"""CIFAR-10 in the forms its authors publish, the python batches and the binary batches, and its download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from paperworks.data.decode import with_channels
from paperworks.data.listing import Listing, Split
from paperworks.data.source import InMemory
from paperworks.data.verify import cache_folder
from paperworks.errors import InputError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LICENCE = "CIFAR-10 (Krizhevsky 2009): its authors state no licence and ask for a citation"
RECORD = 1 + 3 * 32 * 32
"""bytes of an image in a binary batch: its label, then red, green and blue planes"""


def holds_batches(folder: Path) -> bool:
    return (folder / "data_batch_1").is_file() or (folder / "data_batch_1.bin").is_file()


def list_cifar(folder: Path, *, split: Split | None, channels: int) -> Listing:
    """From a folder of batches: `data_batch_1` ... `test_batch` (python) or the same names with .bin (binary)."""
    parts = {"test": ("test",), "all": ("train", "test")}.get(split or "train", ("train",))
    read = _binary if (folder / "data_batch_1.bin").is_file() else _python
    images, labels = zip(*(read(folder, part) for part in parts))
    keys = [f"{part}#{row}" for part, each in zip(parts, labels) for row in range(len(each))]
    pixels = with_channels(torch.from_numpy(np.concatenate(images)), channels)
    numbers = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    return Listing(InMemory(pixels, keys), "cifar10", numbers, CLASSES, licence=LICENCE, own_split=True)


def download_cifar() -> Path:
    """A folder of batches in the cache: the python ones, downloaded on first use, or binary ones that were put there.

    Raises InputError without a network.
    """
    from torchvision.datasets import CIFAR10

    root = cache_folder() / "cifar10"
    folder, binary = root / CIFAR10.base_folder, root / "cifar-10-batches-bin"
    if holds_batches(binary):
        return binary
    if not (folder / "test_batch").is_file():
        try:
            CIFAR10(root, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cifar10 cannot be downloaded ({error}); give the folder of its batches or parquet files instead"
            ) from None
    return folder


def _binary(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    names = ["test_batch.bin"] if part == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    for name in names:
        if not (folder / name).is_file() or (folder / name).stat().st_size % RECORD:
            raise InputError(f"{folder / name} is missing or cut short: unpack cifar-10-binary.tar.gz again")
    records = np.concatenate([np.fromfile(folder / name, dtype=np.uint8).reshape(-1, RECORD) for name in names])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _python(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read by torchvision, which unpickles only files whose checksum is the published one."""
    from torchvision.datasets import CIFAR10

    if folder.name != CIFAR10.base_folder:
        raise InputError(f"{folder}: the folder of the python batches must be called {CIFAR10.base_folder}")
    try:
        found = CIFAR10(folder.parent, train=part == "train")
    except RuntimeError:
        raise InputError(
            f"{folder}: batches are missing or not the published ones: unpack cifar-10-python.tar.gz again"
        ) from None
    return np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), np.array(found.targets)
