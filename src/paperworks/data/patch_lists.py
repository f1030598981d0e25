"""KimiaNet's released lists: which patches of which TCGA slide the network was trained on and tested with.

They are pickled dictionaries, slide file -> [(left, top), ...] in scanned pixels. A pickle can run code; these hold nothing but
texts and numbers, and whatever else is in a file makes it an error.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from paperworks.data.slides import Slide, Tiles, TilingConfig
from paperworks.errors import InputError

PARTS = ("Train", "Validation", "Test")
ENDING = "SlideFileName_to_PatchCoordList_Dict.pickle"

PatchList = dict[str, list[tuple[int, int]]]


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it wants to import {module}.{name}")


def read_patch_list(path: str | Path) -> PatchList:
    """Slide file name -> corners of its patches."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such list of patches")
    try:
        with path.open("rb") as file:
            content = _PlainData(file).load()
        return {str(slide): [(int(left), int(top)) for left, top in corners] for slide, corners in content.items()}
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is no list of patches (a pickled dictionary of plain numbers): {error}") from None


def find_patch_lists(folder: str | Path) -> dict[str, Path]:
    """The released files below a folder by part: Train, Validation, Test. InputError when there is none."""
    folder = Path(folder)
    found = {part: path for part in PARTS for path in sorted(folder.rglob(f"{part}{ENDING}"))} if folder.is_dir() else {}
    if not found:
        raise InputError(f"{folder} holds none of KimiaNet's lists ({PARTS[0]}{ENDING}, ...): take them from its repository")
    return found


def grid_step(corners: Sequence[tuple[int, int]]) -> int:
    """The step of the grid on which a slide's patches lie, in scanned pixels; 0 for none."""
    return math.gcd(*(number for corner in corners for number in corner))


def grid_steps(patches: Mapping[str, Sequence[tuple[int, int]]]) -> Counter[int]:
    """How many slides lie on which grid."""
    return Counter(grid_step(corners) for corners in patches.values())


def listed_tiles(slide: Slide, corners: Sequence[tuple[int, int]], config: TilingConfig) -> Tiles:
    """A slide's patches as the list gives them."""
    if not corners:
        raise InputError(f"{slide.name}: the list has no patch of it")
    side = round(config.size * slide.magnification / config.magnification)
    places: Tensor = torch.tensor(corners, dtype=torch.int64)
    return Tiles(slide, places, side, config.size)
