"""Checkpoints on disk: `checkpoints/step-0000200/` holds weights.safetensors, ema.safetensors, state.pt and manifest.json.

A checkpoint is written into a hidden folder, flushed, and renamed: whatever happens at any moment, a folder called step-*
is complete, and the manifest's check sums find what a disk did to it afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paperworks.errors import InputError

WEIGHTS, AVERAGED, STATE, MANIFEST = "weights.safetensors", "ema.safetensors", "state.pt", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / WEIGHTS)

    def averaged(self) -> dict[str, Tensor] | None:
        """The averaged weights, None when the run keeps no average."""
        return load_file(self.path / AVERAGED) if (self.path / AVERAGED).is_file() else None

    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / MANIFEST).read_text())["summary"]

    def state(self) -> dict[str, Any]:
        """Everything else a resumed run needs. Only tensors and plain values are read: no code in the file can run."""
        return torch.load(self.path / STATE, map_location="cpu", weights_only=True)


def path_of(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:07d}"


def write(
    folder: Path,
    step: int,
    weights: dict[str, Tensor],
    averaged: dict[str, Tensor] | None,
    state: dict[str, Any],
    summary: Mapping[str, Any],
) -> Checkpoint:
    """Save atomically below `folder`; `summary` is for reading without loading anything."""
    check_plain(state)
    final = path_of(folder, step)
    root, aside = final.parent, final.with_name(f".writing-{final.name}")
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(_separate(weights), aside / WEIGHTS)
    if averaged is not None:
        save_file(_separate(averaged), aside / AVERAGED)
    torch.save(state, aside / STATE)
    sums = {path.name: [path.stat().st_size, _checksum(path)] for path in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps({"step": step, "summary": dict(summary), "files": sums}, indent=1))
    for path in [*aside.iterdir(), aside]:
        _flush(path)
    if final.exists():  # only one that was found broken: a sound one would have been resumed from
        shutil.rmtree(final)
    os.rename(aside, final)
    _flush(root)
    return Checkpoint(final, step)


def latest(folder: Path, say: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """The newest sound checkpoint; broken ones are passed over with a message, unfinished ones removed."""
    for path in _all(folder):
        problem = _problem(path)
        if problem is None:
            return Checkpoint(path, _step(path) or 0)
        say(f"{path.name} is passed over: {problem}")
    return None


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` and the best checkpoint, and what a killed save left."""
    for path in _all(folder)[max(1, keep) :]:
        if _step(path) != best_step:
            # renamed first: a deletion cut short must not leave half a checkpoint that looks like one
            doomed = path.with_name(f".deleting-{path.name}")
            os.rename(path, doomed)
            shutil.rmtree(doomed)
    for left in [*(folder / "checkpoints").glob(".writing-*"), *(folder / "checkpoints").glob(".deleting-*")]:
        shutil.rmtree(left, ignore_errors=True)


def latest_weights(folder: str | Path, below: str = "", *, averaged: bool = True) -> dict[str, Tensor]:
    """The newest weights of a run's training folder, for use without the training loop: the averaged ones where the run
    keeps an average and `averaged` is set.

    below: a prefix such as "model."; only what lies below it is given, without the prefix, ready for `load_state_dict`.
    """
    found = latest(Path(folder))
    if found is None:
        raise InputError(f"{folder} holds no checkpoint: nothing was trained there yet")
    weights = (found.averaged() if averaged else None) or found.weights()
    chosen = {name.removeprefix(below): value for name, value in weights.items() if name.startswith(below)}
    if not chosen:
        tops = sorted({name.split(".")[0] for name in weights})
        raise InputError(f"{folder} holds no weights below {below!r}; there are {', '.join(tops)}")
    return chosen


# --- which recipe a folder belongs to ---------------------------------------------------------------------------------------

IDENTITY = "config.json"
FREE = (
    "workers",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep",
    "parallel",
    "non_finite",
    "max_skipped",
    "computed_in",
)
"""what may change between a run and its continuation: it does not change what is learned"""


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises InputError naming the first field in which the run in `folder` was made differently."""
    path = folder / IDENTITY
    if not path.is_file():
        raise InputError(
            f"{folder} holds checkpoints but no {IDENTITY}: they cannot be matched to this run; use another folder"
        )
    difference = _first_difference(json.loads(path.read_text()), json.loads(json.dumps(identity)))
    if difference:
        field, then, now = difference
        raise InputError(
            f"{folder} holds a run with {field} = {_short(then)}, but this one has {_short(now)}: "
            "use another folder, or delete that one"
        )


def read_identity(folder: Path) -> dict[str, Any]:
    path = folder / IDENTITY
    return json.loads(path.read_text()) if path.is_file() else {}


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / (IDENTITY + ".part")
    aside.write_text(json.dumps(identity, indent=1) + "\n")
    os.replace(aside, folder / IDENTITY)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_difference(then: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            if path == "" and key in FREE:
                continue
            found = _first_difference(then.get(key), now.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if then == now else (path, then, now)


# --- helpers ----------------------------------------------------------------------------------------------------------------


def check_plain(value: Any, path: str = "state") -> None:
    """Raises TypeError naming what could not be loaded again without running code from the file."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(item, f"{path}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            check_plain(item, f"{path}[{index}]")
    elif not (value is None or type(value) in (bool, int, float, str) or isinstance(value, (Tensor, torch.dtype))):
        raise TypeError(
            f"{path} is a {type(value).__name__}: checkpoints hold tensors, numbers, texts, and lists or dicts of them"
        )


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights get a copy per name: the format does not store aliases, and any reader finds every name."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _all(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in (folder / "checkpoints").glob("step-*") if _step(path) is not None]
    return sorted(found, key=lambda path: _step(path) or 0, reverse=True)


def _step(path: Path) -> int | None:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else None


def _problem(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, (size, checksum) in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != size or _checksum(path / name) != checksum:
                return f"{name} is damaged"
        return None if WEIGHTS in manifest["files"] else f"{WEIGHTS} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
