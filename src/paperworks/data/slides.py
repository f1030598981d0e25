"""Slides: images too large to be looked at whole, read region by region at the magnification that is wanted.

`open_slide` takes whole-slide files (.svs, .ndpi, pyramidal TIFF) through tiffslide, and plain images through tifffile and
Pillow. `tile_slide` lays a grid of tiles on it and keeps those that show tissue.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.decode import SUFFIXES, Unreadable, from_pil
from paperworks.data.stains import THUMBNAIL, Stain, tissue_mask
from paperworks.errors import InputError

WHOLE_SLIDE = frozenset(".svs .ndpi .scn .bif .vms .qptiff".split())  # noqa: SIM905
SLIDE_SUFFIXES = WHOLE_SLIDE | SUFFIXES
LARGEST = 2_000_000_000
"""pixels that a plain image may have: it is decoded whole"""
PLAIN_MAGNIFICATION = 20.0
"""at which a file without a word about it is taken to be scanned"""


class Slide(Protocol):
    name: str
    width: int
    height: int
    """pixels as scanned"""
    magnification: float
    """of the scan: 40 is a quarter of a micrometre a pixel, 20 is half of one"""

    def read(self, left: int, top: int, width: int, height: int, size: tuple[int, int]) -> Tensor:
        """The region that begins at (left, top) and is `width` x `height` scanned pixels large, as uint8 [3, *size], size being
        (rows, columns). What lies beyond the edge is white."""
        ...


class PlainSlide:
    """Pixels uint8 [H, W, 3] in memory, or mapped from a file."""

    def __init__(self, pixels: np.ndarray, name: str, magnification: float = PLAIN_MAGNIFICATION):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise InputError(f"{name}: a slide is RGB uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
        self.pixels, self.name, self.magnification = pixels, name, float(magnification)
        self.height, self.width = pixels.shape[:2]

    def read(self, left: int, top: int, width: int, height: int, size: tuple[int, int]) -> Tensor:
        inside = self.pixels[max(top, 0) : top + height, max(left, 0) : left + width]
        region = _on_white(np.asarray(inside), max(-left, 0), max(-top, 0), width, height)
        return _resized(region, size)


class WholeSlide:
    """A pyramid of scans, read through tiffslide at the level that is just fine enough."""

    def __init__(self, path: Path, magnification: float | None = None):
        from tiffslide import TiffSlide

        self.path, self.name = path, path.stem
        try:
            self._slide: Any = TiffSlide(str(path))
        except Exception as error:  # damaged files make the readers below raise nearly anything
            raise InputError(f"{path} is no slide that tiffslide can read ({_first_line(error)})") from None
        self.width, self.height = self._slide.dimensions
        found = magnification or _magnification(self._slide.properties)
        self.magnification = found or PLAIN_MAGNIFICATION

    def read(self, left: int, top: int, width: int, height: int, size: tuple[int, int]) -> Tensor:
        level = self._slide.get_best_level_for_downsample(max(1.0, min(height / size[0], width / size[1])))
        smaller = self._slide.level_downsamples[level]
        inside = (max(left, 0), max(top, 0), min(left + width, self.width), min(top + height, self.height))
        across, down = (max(0, round((inside[axis + 2] - inside[axis]) / smaller)) for axis in (0, 1))
        pixels = np.empty((0, 0, 3), np.uint8)
        if across and down:
            pixels = np.asarray(self._slide.read_region(inside[:2], level, (across, down)).convert("RGB"))
        whole = [max(1, round(length / smaller)) for length in (width, height)]
        before = [round((inside[axis] - given) / smaller) for axis, given in enumerate((left, top))]
        return _resized(_on_white(pixels, *before, *whole), size)


def open_slide(path: str | Path, magnification: float | None = None) -> Slide:
    """A slide by its file. magnification: of the scan, in place of what the file says; 20 where it says nothing."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such slide")
    if magnification is not None and magnification <= 0:
        raise InputError(f"{path}: a magnification of {magnification} is not above 0")
    suffix = path.suffix.lower()
    if suffix in WHOLE_SLIDE or (suffix in (".tif", ".tiff") and _is_tiled(path)):
        if importlib.util.find_spec("tiffslide"):
            return WholeSlide(path, magnification)
        if suffix in WHOLE_SLIDE:
            raise InputError(f"{path}: whole-slide files need `pip install 'paperworks[slides]'`")
    return PlainSlide(_plain_pixels(path), path.stem, magnification or PLAIN_MAGNIFICATION)


def _plain_pixels(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]; an uncompressed TIFF is mapped, not read."""
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        try:
            mapped = tifffile.memmap(path, mode="r")
            if mapped.dtype == np.uint8 and mapped.ndim == 3 and mapped.shape[2] == 3:
                return mapped
        except Exception:  # compressed, or damaged in one of many ways: Pillow has the last word
            pass
    try:
        with _any_size(), Image.open(path) as image:
            if image.width * image.height > LARGEST:
                raise InputError(
                    f"{path}: {image.width} x {image.height} pixels are too many for a plain image: save it as a tiled TIFF"
                )
            return from_pil(image).permute(1, 2, 0).numpy()
    except InputError:
        raise
    except (Unreadable, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} is no image that can be read ({_first_line(error)})") from None


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow takes large images for attacks; here they are what is expected, and the number of pixels is checked by us."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _is_tiled(path: Path) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.pages[0].is_tiled)  # type: ignore[union-attr]
    except Exception:  # damaged files make it raise nearly anything
        return False


def _magnification(properties: Any) -> float | None:
    """What the file says: the objective, else from the size of a pixel (10 micrometres over it)."""
    power, spacing = properties.get("tiffslide.objective-power"), properties.get("tiffslide.mpp-x")
    if power:
        return float(power)
    return 10 / float(spacing) if spacing else None


def _on_white(inside: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    if inside.shape[:2] == (height, width):
        return inside
    region = np.full((height, width, 3), 255, np.uint8)
    rows, columns = max(0, min(inside.shape[0], height - top)), max(0, min(inside.shape[1], width - left))
    region[top : top + rows, left : left + columns] = inside[:rows, :columns]
    return region


def _resized(region: np.ndarray, size: tuple[int, int]) -> Tensor:
    pixels = torch.from_numpy(np.array(region)).permute(2, 0, 1)  # a copy: regions of mapped files cannot be written to
    if tuple(pixels.shape[1:]) == size:
        return pixels.contiguous()
    smaller = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0]
    return smaller.round_().clamp_(0, 255).to(torch.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- tiles --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TilingConfig:
    size: int = 1000
    """pixels of a tile's side"""
    magnification: float = 20.0
    stride: float = 1.0
    """from tile to tile, as a share of the side; the released patch lists have 0.75"""
    tissue: float = 0.7
    """least share of a tile that shows tissue"""
    stain: Stain = "any"


@dataclass
class Tiles:
    """Where on a slide its tiles are."""

    slide: Slide
    corners: Tensor
    """int64 [N, 2]: left and top, in scanned pixels"""
    side: int
    """of a tile in scanned pixels: 2000 for 1000 pixels at 20x on a scan at 40x"""
    size: int
    """pixels of a tile as it is read"""

    def __len__(self) -> int:
        return len(self.corners)

    def read(self, number: int, size: int | None = None) -> Tensor:
        """One tile, uint8 [3, size, size]."""
        left, top = self.corners[number].tolist()
        return self.slide.read(left, top, self.side, self.side, (size or self.size,) * 2)

    def images(self, size: int | None = None) -> Tensor:
        """All of them, uint8 [N, 3, size, size]."""
        side = size or self.size
        found = [self.read(number, side) for number in range(len(self))]
        return torch.stack(found) if found else torch.empty(0, 3, side, side, dtype=torch.uint8)

    def subset(self, chosen: Tensor | Sequence[int]) -> Tiles:
        return Tiles(self.slide, self.corners[torch.as_tensor(chosen)], self.side, self.size)


def thumbnail(slide: Slide, longest: int = THUMBNAIL) -> Tensor:
    """The whole slide, uint8 [3, h, w], its longer side `longest` pixels (never enlarged)."""
    factor = min(1.0, longest / max(slide.width, slide.height))
    size = (max(1, round(slide.height * factor)), max(1, round(slide.width * factor)))
    return slide.read(0, 0, slide.width, slide.height, size)


def tile_slide(slide: Slide, config: TilingConfig, mask: Callable[[Tensor], Tensor] | None = None) -> Tiles:
    """The whole tiles of a grid over the slide that show enough tissue; `mask` finds it on the thumbnail.

    Raises InputError where no tile fits, or none shows tissue.
    """
    if config.size < 32 or config.magnification <= 0 or not 0 < config.stride <= 1 or not 0 <= config.tissue <= 1:
        raise InputError(f"no tiling: {config}: sides of at least 32, a stride and a share of tissue up to 1")
    side = round(config.size * slide.magnification / config.magnification)
    if min(slide.width, slide.height) < side:
        raise InputError(
            f"{slide.name}: {slide.width} x {slide.height} pixels at {slide.magnification:g}x hold no tile of {config.size} at "
            f"{config.magnification:g}x; make tiles smaller"
        )
    step = max(1, round(side * config.stride))
    grid = torch.cartesian_prod(torch.arange(0, slide.height - side + 1, step), torch.arange(0, slide.width - side + 1, step))
    small = thumbnail(slide)
    tissue = tissue_mask(small, config.stain) if mask is None else mask(small)
    shares = _shares(tissue, grid, side, small.shape[1] / slide.height, small.shape[2] / slide.width)
    kept = grid[shares >= config.tissue].flip(1)
    if not len(kept):
        raise InputError(f"{slide.name}: none of {len(grid)} tiles shows tissue on {config.tissue:.0%} of its area")
    return Tiles(slide, kept, side, config.size)


def _shares(mask: Tensor, grid: Tensor, side: int, down: float, right: float) -> Tensor:
    """Share of tissue in every tile (top, left), from sums over the thumbnail."""
    sums = F.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows, columns = mask.shape
    top = (grid[:, 0] * down).floor().long().clamp(max=rows - 1)
    left = (grid[:, 1] * right).floor().long().clamp(max=columns - 1)
    bottom = torch.maximum(((grid[:, 0] + side) * down).round().long(), top + 1).clamp(max=rows)
    behind = torch.maximum(((grid[:, 1] + side) * right).round().long(), left + 1).clamp(max=columns)
    inside = sums[bottom, behind] - sums[top, behind] - sums[bottom, left] + sums[top, left]
    return inside / ((bottom - top) * (behind - left))
