"""Labelled slides and their patients: folders of files, or made-up ones; parts that share no patient."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paperworks.data.folder import walk
from paperworks.data.made_tissue import KINDS, Patient, make_slide
from paperworks.data.seeds import share
from paperworks.data.slides import SLIDE_SUFFIXES, PlainSlide, Slide, open_slide
from paperworks.errors import InputError

MADE = ("default", "made")
"""names of the made-up slides"""
TCGA = re.compile(r"^(TCGA-\w{2}-\w{4})")
"""a slide's file name begins with its patient's"""


@dataclass(frozen=True)
class SlideEntry:
    """One slide that has not been opened."""

    name: str
    label: int
    patient: str
    path: str = ""
    made: tuple[int, ...] = ()
    """seeds of a made-up slide: of all, kind, patient, slide"""
    size: int = 0
    tumour: float = 0.0
    magnification: float | None = None

    def open(self) -> Slide:
        if not self.made:
            return open_slide(self.path, self.magnification)
        patient = Patient.draw(np.random.default_rng(self.made[:3]))
        pixels = make_slide(KINDS[self.label], patient, np.random.default_rng(self.made), self.size, self.tumour)
        return PlainSlide(pixels, self.name)


@dataclass
class SlideSet:
    entries: list[SlideEntry]
    classes: list[str]
    name: str
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """files that are no part of it, with the reason"""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def labels(self) -> Tensor:
        return torch.tensor([entry.label for entry in self.entries], dtype=torch.int64)

    @property
    def patients(self) -> list[str]:
        return [entry.patient for entry in self.entries]

    def subset(self, chosen: Sequence[int]) -> SlideSet:
        return replace(self, entries=[self.entries[number] for number in chosen])

    def split(self, held_out: float, seed: int = 0) -> tuple[SlideSet, SlideSet]:
        """(the rest, the share `held_out` of each class's patients, one at least). InputError where a class has but one."""
        labels = {entry.patient: entry.label for entry in self.entries}
        names = sorted(labels)
        chosen: set[str] = set()
        for number, word in enumerate(self.classes):
            own = [name for name in names if labels[name] == number]
            if len(own) < 2:
                raise InputError(f"{self.name}: class {word!r} has {len(own)} patient; two at least: one to learn, one to test")
            count = min(max(1, round(held_out * len(own))), len(own) - 1)
            chosen |= {name for name, taken in zip(own, share(own, None, count, seed)) if taken}
        tested = [number for number, entry in enumerate(self.entries) if entry.patient in chosen]
        learned = [number for number, entry in enumerate(self.entries) if entry.patient not in chosen]
        return self.subset(learned), self.subset(tested)


def made_slides(patients: int, slides: int, seed: int = 0, size: int = 576, tumour: float = 0.25) -> SlideSet:
    """`slides` of each of `patients` per kind of made-up tissue."""
    if patients < 1 or slides < 1:
        raise InputError(f"{patients} patients with {slides} slides each: one of both at least")
    entries = [
        SlideEntry(
            f"{KINDS[kind]} {patient}.{slide}",
            kind,
            f"{kind}.{patient}",
            made=(seed, kind, patient, slide),
            size=size,
            tumour=tumour,
        )
        for kind in range(len(KINDS))
        for patient in range(patients)
        for slide in range(slides)
    ]
    return SlideSet(entries, list(KINDS), "made-up slides")


def list_slides(folder: str | Path, magnification: float | None = None) -> SlideSet:
    """Slides in a folder per class: class/slide.svs, or class/patient/slide.svs.

    A patient is a folder below the class, else the beginning of a TCGA name, else the slide by itself.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one with a sub-folder of slides for each class, or 'made'")
    files = [Path(path) for path in walk(folder) if Path(path).suffix.lower() in SLIDE_SUFFIXES]
    labelled = [path for path in files if len(path.parts) > 1]
    if not labelled:
        raise InputError(
            f"{folder} holds no slides in sub-folders: the sub-folder names the class, as in {folder}/class/slide.svs"
        )
    classes = sorted({path.parts[0] for path in labelled})
    entries = [
        SlideEntry(str(path), classes.index(path.parts[0]), patient_of(path), str(folder / path), magnification=magnification)
        for path in labelled
    ]
    stray = [path for path in files if len(path.parts) == 1]
    skipped = [(str(path), "lies beside the class folders, so it has no label") for path in stray]
    return SlideSet(entries, classes, folder.name, skipped)


def patient_of(path: Path) -> str:
    """Whose slide `class/.../slide` is."""
    if len(path.parts) > 2:
        return "/".join(path.parts[:2])
    found = TCGA.match(path.name)
    return found[1] if found else str(path.with_suffix(""))


def read_sites(path: str | Path, classes: Sequence[str]) -> list[str]:
    """The tumour site of each class, from a csv file with a row `class,site` for every class."""
    path = Path(path).expanduser()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no csv file of tumour sites can be read there ({error})") from None
    for row in rows:
        if len(row) != 2:
            raise InputError(f"{path}: {','.join(row)!r} is no row class,site")
    sites = {name: site for name, site in rows}
    missing = [name for name in classes if not sites.get(name)]
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise InputError(f"{path} names no tumour site of {shown}: it needs a row class,site for every class folder")
    return [sites[name] for name in classes]
