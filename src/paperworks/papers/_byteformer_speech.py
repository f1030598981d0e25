"""Sound for ByteFormer: WAV files as recordings of one second, written anew; Speech Commands as it is distributed.

In training, waveforms are moved and mixed before there are bytes, as images are cropped before they are written.
"""

from __future__ import annotations

import copy
import io
import math
import struct
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.decode import Unreadable
from paperworks.data.file_bytes import (
    Changes,
    FileSource,
    SampleFormat,
    as_numbers,
    check_keep,
    encode_wave,
    open_files,
    pad,
)
from paperworks.data.listing import Split
from paperworks.data.mixing import soft_labels
from paperworks.data.progress import watched
from paperworks.data.seeds import mix, share
from paperworks.errors import InputError
from paperworks.papers._classification import AugmentConfig

RATE = 16_000
"""samples of a second, which is what a recording lasts"""
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, BACKGROUND = "_unknown_", "_silence_", "_background_noise_"
TRAINING_FILES = 36_923
"""of the twelve classes: 30,769 commands, and a tenth as many of other words and of silence"""

FARTHEST = RATE // 10
"""samples by which training moves a recording to and fro; what leaves it at one end comes in at the other"""
QUIET = 10 ** (-50 / 20)
"""loudness of the background that training adds: -50 dB"""


class Recordings(FileSource):
    """The WAV files of a source (16,000 samples a second) as files of one second with samples of the type `samples`: the end is
    cut off, or silence follows. `background`: longer waveforms, of which training adds a second at a time."""

    def __init__(self, files: FileSource, samples: SampleFormat, background: Sequence[Tensor] = ()):
        super().__init__(
            files.read,
            files.keys,
            name=files.name,
            labels=files.labels,
            classes=files.classes,
            skipped=files.skipped,
            changes=files.changes,
            seed=files.seed,
        )
        self.samples, self.background = samples, list(background)
        self.augment: AugmentConfig | None = None

    def augmented(self, augment: AugmentConfig) -> Self:
        """The same moved, with background, and blended with one another (augment.mixup is the parameter of the Beta
        distribution of the share; 0 for none). Batches hold soft labels as "target" beside "label"."""
        other = copy.copy(self)
        other.augment = augment
        return other

    def wave(self, index: int) -> Tensor:
        """float32 [16000] in [-1, 1]."""
        try:
            return one_second(decode_wave(self.read(index)))
        except Unreadable as error:
            raise InputError(f"{self.name}: {self.key(index)} {error}") from None

    def file(self, index: int) -> Tensor:
        if self.augment is None:
            return self._written(self.wave(index), index)
        return self._made(index, self.augment)[0]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if self.augment is None:
            return super().batch(indices)
        assert self.labels is not None
        files, targets = zip(*(self._made(index, self.augment) for index in indices))
        return {"bytes": pad(files), "label": self.labels[torch.as_tensor(indices)], "target": torch.stack(targets)}

    def _made(self, index: int, augment: AugmentConfig) -> tuple[Tensor, Tensor]:
        """A file for training, and its soft label."""
        assert self.labels is not None and self.classes is not None
        draws = np.random.default_rng(mix(self.seed, self.epoch, index))
        wave, rows, shares = self._moved(index, draws), [index], [1.0]
        if augment.mixup:
            kept, second = float(draws.beta(augment.mixup, augment.mixup)), int(draws.integers(len(self)))
            wave = kept * wave + (1 - kept) * self._moved(second, draws)
            rows, shares = [index, second], [kept, 1 - kept]
        target = torch.tensor(shares) @ soft_labels(self.labels[rows], len(self.classes), augment.smoothing)
        return self._written(wave, index), target

    def _moved(self, index: int, draws: np.random.Generator) -> Tensor:
        wave = self.wave(index).roll(int(draws.integers(-FARTHEST, FARTHEST)))
        if not self.background:
            return wave
        return wave + QUIET * _cut(self.background, draws)

    def _written(self, wave: Tensor, index: int) -> Tensor:
        file = as_numbers(encode_wave(wave.clamp(-1, 1), RATE, self.samples))
        return self.changes(file, mix(self.seed, self.epoch, index))


def open_recordings(
    source: str | Path,
    samples: SampleFormat = "float32",
    *,
    split: Split | None = None,
    labels: Literal["required", "none"] = "none",
    changes: Changes | None = None,
    seed: int = 0,
) -> Recordings:
    """WAV files below a folder, or one. What is none, or of another rate, is left out and listed in `.skipped`.

    Speech Commands as it is distributed is known by its testing_list.txt and gives the twelve classes of the paper; any other
    folder is taken as by `open_files`.
    """
    changes = changes or Changes()
    check_keep("wav", changes.keep)
    root = Path(source).expanduser()
    background: list[Tensor] = []
    if (root / "testing_list.txt").is_file():
        files, background = _twelve_classes(root, split)
    else:
        files = open_files(source, split=split, labels=labels)
    good, skipped = [], []
    for index in watched(range(len(files)), len(files), "reading"):
        try:
            decode_wave(files.read(index))
        except Unreadable as error:
            skipped.append((files.key(index), str(error)))
        else:
            good.append(index)
    if not good:
        raise InputError(f"{source} has no recording that can be used; {': '.join((skipped or files.skipped)[0])}")
    found = Recordings(files.subset(torch.tensor(good)), samples, background)
    found.skipped += skipped
    found.changes, found.seed = changes, seed
    return found


def decode_wave(file: bytes) -> Tensor:
    """float32 [L] in [-1, 1] from a WAV file of 16,000 samples a second, channels averaged; raises Unreadable."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # about comments between the samples
            rate, values = wavfile.read(io.BytesIO(file))
    except (ValueError, EOFError, struct.error, UnboundLocalError):  # the last is scipy's for a file without samples
        raise Unreadable("is not a WAV file that can be read") from None
    if rate != RATE:
        raise Unreadable(f"has {rate} samples a second; resample it to {RATE}")
    wave, kind = values.astype(np.float64), values.dtype
    if kind.kind == "u":
        wave = wave / 128 - 1
    elif kind.kind == "i":
        wave = wave / 2.0 ** (8 * kind.itemsize - 1)
    if not len(wave) or not np.isfinite(wave).all():
        raise Unreadable("holds no samples, or some that are not numbers")
    return torch.from_numpy(wave.mean(1) if wave.ndim == 2 else wave).float().clamp(-1, 1)


def one_second(wave: Tensor) -> Tensor:
    """[L] -> [16000]."""
    return F.pad(wave[:RATE], (0, max(0, RATE - len(wave))))


def _cut(waves: Sequence[Tensor], draws: np.random.Generator) -> Tensor:
    """A second from somewhere in one of them."""
    wave = waves[int(draws.integers(len(waves)))]
    start = int(draws.integers(len(wave) - RATE + 1))
    return wave[start : start + RATE]


def _silence(background: Sequence[Tensor], seed: int) -> bytes:
    return encode_wave(_cut(background, np.random.default_rng(seed)), RATE, "int16")


def _twelve_classes(root: Path, split: Split | None) -> tuple[FileSource, list[Tensor]]:
    """Ten commands, other words, and silence, which is cut from the background (1804.03209): of the last two a tenth as many
    as commands. Parts are those of the distributed lists; validation belongs to "all" only. And the background."""
    everything = open_files(root, labels="required")
    lists = {part: root / f"{part}_list.txt" for part in ("testing", "validation")}
    listed = {part: set(path.read_text().split()) for part, path in lists.items() if path.is_file()}
    parts: dict[str, list[int]] = {"training": [], "validation": [], "testing": []}
    background = []
    for position, key in enumerate(everything.keys):
        if not key.endswith(".wav"):
            continue
        if key.startswith(f"{BACKGROUND}/"):
            try:
                wave = decode_wave(everything.read(position))
            except Unreadable as error:
                raise InputError(f"{root}: {key} {error}") from None
            background.append(wave if len(wave) >= RATE else one_second(wave))
        else:
            parts[next((part for part, keys in listed.items() if key in keys), "training")].append(position)

    classes = sorted((*COMMANDS, UNKNOWN, SILENCE))
    number = {name: index for index, name in enumerate(classes)}
    rows: list[tuple[str, int, Callable[[], bytes]]] = []
    wanted = {"train": ["training"], "test": ["testing"]}.get(split or "all", list(parts))
    for part in wanted:
        words = {position: everything.key(position).split("/")[0] for position in parts[part]}
        others = [position for position, word in words.items() if word not in number]
        tenth = math.ceil((len(words) - len(others)) / 10)
        picked = share([everything.key(position) for position in others], None, tenth, seed=0)
        left_out = {position for position, taken in zip(others, picked) if not taken}
        for position, word in words.items():
            if position not in left_out:
                label = number.get(word, number[UNKNOWN])
                rows.append((everything.key(position), label, partial(everything.read, position)))
        for index in range(tenth if background else 0):
            seed = mix(list(parts).index(part), index)
            rows.append((f"{SILENCE}/{part}-{index:05d}", number[SILENCE], partial(_silence, background, seed)))
    if not rows:
        raise InputError(f"{root} has no recording of a command ({', '.join(COMMANDS)}) in this part")
    files = FileSource(
        lambda index: rows[index][2](),
        [key for key, _, _ in rows],
        name=everything.name,
        labels=torch.tensor([label for _, label, _ in rows]),
        classes=classes,
        skipped=[(key, why) for key, why in everything.skipped if key.endswith(".wav")],
    )
    return files, background
