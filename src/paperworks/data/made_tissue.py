"""Made-up slides of four kinds of tumour, for machines without slides: glass, stroma that all kinds share, and a tumour.

Everything is drawn: where a kind shows itself is known, and how like real tissue the pictures are is for the eye to judge. A
kind is the shape and order of its nuclei; a patient has stains, sizes and densities of their own; lymphocytes are as dense as a
tumour and say nothing about the kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from paperworks.data.stains import STAINS
from paperworks.errors import InputError

KINDS = ("round cells", "glands", "spindle cells", "large cells")
"""round cells: small, dense, without order; glands: rings around a lumen; spindle cells: long, side by side; large cells:
large, pale, of unequal size, with a nucleolus"""

Array = np.ndarray


@dataclass(frozen=True)
class Patient:
    """What all slides of a patient have in common."""

    haematoxylin: Array
    eosin: Array
    """directions of the stains in RGB"""
    strength: tuple[float, float]
    """of both stains"""
    size: float
    density: float
    """of nuclei, around 1"""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        directions = []
        for name in ("haematoxylin", "eosin"):
            changed = np.clip(np.array(STAINS[name]) + rng.normal(0, 0.06, 3), 0.02, None)
            directions.append(changed / np.linalg.norm(changed))
        strength = (rng.uniform(0.75, 1.25), rng.uniform(0.6, 1.3))
        return cls(directions[0], directions[1], strength, rng.uniform(0.88, 1.14), rng.uniform(0.85, 1.15))


def make_slide(kind: str, patient: Patient, rng: np.random.Generator, size: int = 576, tumour: float = 0.35) -> Array:
    """uint8 [size, size, 3], as if scanned at 20x. tumour: its share of the tissue."""
    if kind not in KINDS:
        raise InputError(f"no kind of tissue {kind!r}; there are {', '.join(KINDS)}")
    if size < 64 or not 0 < tumour < 1:
        raise InputError(f"a slide of {size} pixels with {tumour:.0%} tumour: at least 64 pixels, a share between 0 and 1")
    canvas = _Canvas(size, patient, rng)
    tissue = canvas.region(0.72, middle=True)
    sick = tissue & canvas.region(tumour, within=tissue)
    canvas.eosin += tissue * (0.28 + 0.16 * canvas.fibres())
    canvas.fat(tissue & ~sick)
    canvas.stroma(tissue & ~sick)
    canvas.lymphocytes(tissue & ~sick & canvas.region(0.08, within=tissue))
    {"round cells": canvas.round_cells, "glands": canvas.glands, "spindle cells": canvas.spindle_cells}.get(
        kind, canvas.large_cells
    )(sick)
    return canvas.picture(tissue)


class _Canvas:
    """Amounts of both stains on a slide that is being drawn."""

    def __init__(self, size: int, patient: Patient, rng: np.random.Generator):
        self.size, self.patient, self.rng = size, patient, rng
        self.blue = np.zeros((size, size), np.float32)
        self.eosin = np.zeros((size, size), np.float32)
        self.flow = self._noise(70) * 2.2
        """angle of what runs side by side"""

    # --- regions and textures -------------------------------------------------------------------------------------------

    def _noise(self, scale: float) -> Array:
        """Smooth, mean 0, deviation 1; coarse noise is drawn coarsely and enlarged."""
        factor = max(1, int(scale / 3))
        small = -(-self.size // factor) + 1
        raw = gaussian_filter(self.rng.standard_normal((small, small), dtype=np.float32), scale / factor, mode="wrap")
        if factor > 1:
            at = np.arange(self.size, dtype=np.float32) / factor
            low, share = at.astype(int), at - np.floor(at)
            raw = raw[low] + share[:, None] * (raw[low + 1] - raw[low])
            raw = raw[:, low] + share * (raw[:, low + 1] - raw[:, low])
        else:
            raw = raw[: self.size, : self.size]
        return (raw - raw.mean()) / (raw.std() + 1e-9)

    def region(self, share: float, within: Array | None = None, middle: bool = False) -> Array:
        """bool: a blob or several of this share of the slide, or of `within`."""
        field = self._noise(self.size / 14)
        if middle:
            line = np.linspace(-1, 1, self.size) ** 2
            field = 0.5 * field - 3 * np.maximum(line[:, None], line[None])
        inside = field if within is None else field[within]
        return field > np.quantile(inside, 1 - share)

    def fibres(self) -> Array:
        """0 to 1: streaks."""
        streaks = gaussian_filter(self.rng.standard_normal((self.size, self.size), dtype=np.float32), (1, 9), mode="wrap")
        bent = streaks[(np.arange(self.size)[:, None] + (6 * self._noise(30)).astype(int)) % self.size, np.arange(self.size)]
        return np.clip(0.5 + bent / (4 * bent.std()), 0, 1)

    def fat(self, where: Array) -> None:
        """Empty round holes with a thin rim."""
        holes = where & self.region(0.1, within=where)
        for y, x in self._lattice(holes, 26, 0.3):
            self._ellipse(y, x, 11, 10, 0.0, eosin=-1.0)

    # --- cells ----------------------------------------------------------------------------------------------------------

    def stroma(self, where: Array) -> None:
        """Few thin nuclei along the fibres."""
        for y, x in self._lattice(where, 30, 0.5):
            self._nucleus(y, x, 5.0, 1.8, self.rng.normal(0, 0.3), 0.7)

    def lymphocytes(self, where: Array) -> None:
        for y, x in self._lattice(where, 10, 0.35):
            self._nucleus(y, x, 3.1, 3.1, 0.0, 1.25)

    def round_cells(self, where: Array) -> None:
        for y, x in self._lattice(where, 11.5, 0.3):
            self._nucleus(y, x, 4.3, 3.9, self.rng.uniform(0, np.pi), 0.95)

    def glands(self, where: Array) -> None:
        for y, x in self._lattice(where, 42, 0.12):
            radius = self.rng.uniform(12, 16) * self.patient.size
            self._ellipse(y, x, radius + 6, radius + 6, 0.0, eosin=0.25)
            self._ellipse(y, x, radius * 0.55, radius * 0.5, 0.0, eosin=-1.0)
            for angle in np.arange(0, 2 * np.pi, 7.2 / radius / self.patient.density):
                turned = angle + self.rng.normal(0, 0.06)
                self._nucleus(y + radius * np.sin(turned), x + radius * np.cos(turned), 5.0, 2.9, turned, 0.95)

    def spindle_cells(self, where: Array) -> None:
        for y, x in self._lattice(where, 11.5, 0.3):
            angle = self.flow[int(y), int(x)] + self.rng.normal(0, 0.12)
            self._nucleus(y, x, 7.6, 2.1, angle, 0.95)

    def large_cells(self, where: Array) -> None:
        for y, x in self._lattice(where, 18.5, 0.25):
            radius = float(np.clip(6.6 * self.rng.lognormal(0, 0.25), 4, 10))
            self._nucleus(y, x, radius, radius * self.rng.uniform(0.7, 1), self.rng.uniform(0, np.pi), 0.6)
            self._ellipse(y + self.rng.normal(0, 1), x + self.rng.normal(0, 1), 1.7, 1.7, 0.0, blue=1.2)

    def _lattice(self, where: Array, spacing: float, jitter: float) -> Array:
        """Places [N, 2] in a region, about `spacing` apart (less in a dense patient)."""
        spacing /= np.sqrt(self.patient.density)
        line = np.arange(spacing / 2, self.size, spacing)
        places = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        places = places + self.rng.normal(0, jitter * spacing, places.shape)
        places = places[((places >= 0) & (places < self.size)).all(1)]
        return places[where[places[:, 0].astype(int), places[:, 1].astype(int)]]

    def _nucleus(self, y: float, x: float, long: float, short: float, angle: float, amount: float) -> None:
        size = self.patient.size * self.rng.uniform(0.9, 1.1)
        self._ellipse(y, x, long * size, short * size, angle, blue=amount * self.rng.uniform(0.85, 1.15))

    def _ellipse(
        self, y: float, x: float, long: float, short: float, angle: float, blue: float = 0.0, eosin: float = 0.0
    ) -> None:
        """A soft ellipse: nuclei do not add up where they overlap; a negative amount of eosin clears what is there."""
        reach = int(long) + 3
        top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
        rows = np.arange(top, min(int(y) + reach + 1, self.size), dtype=np.float32)[:, None] - y
        columns = np.arange(left, min(int(x) + reach + 1, self.size), dtype=np.float32)[None] - x
        if not rows.size or not columns.size:
            return
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle)
        inside = np.clip((1.0 - np.hypot(along / long, across / short)) * short + 0.5, 0, 1)
        part = (slice(top, top + len(rows)), slice(left, left + columns.shape[1]))
        if blue:
            self.blue[part] = np.maximum(self.blue[part], blue * inside)
        if eosin < 0:
            self.eosin[part] *= 1 - inside
        elif eosin:
            self.eosin[part] += eosin * inside

    def picture(self, tissue: Array) -> Array:
        """uint8 [size, size, 3]: light through both stains, with the noise of a camera."""
        chromatin = 1 + 0.18 * self._noise(1.0)
        edge = gaussian_filter(tissue.astype(np.float32), 1.5)
        blue = gaussian_filter(self.blue * chromatin, 0.6) * edge * self.patient.strength[0]
        pink = gaussian_filter(self.eosin, 0.6) * edge * self.patient.strength[1]
        density = blue[..., None] * self.patient.haematoxylin + pink[..., None] * self.patient.eosin
        light = 244 * np.exp(-np.clip(density, 0, None)) + self.rng.normal(0, 2.0, (*density.shape[:2], 1))
        return np.clip(light, 0, 255).round().astype(np.uint8)
