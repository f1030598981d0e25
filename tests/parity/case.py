"""A parity case: the tensors that a reference implementation read and produced, and how ours are compared with them.

File: `<folder>/<slug>/<name>.safetensors` with tensors `inputs/...`, `weights/...`, `outputs/...` and, as metadata,
`official` (repository@commit path:Object), `kwargs` (constructor and call arguments, JSON), `call` and `notes` (text).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

ROOT = Path(__file__).parents[2]
DEFAULT_TOLERANCE = (1e-4, 1e-5)
"""(relative, absolute) for floating-point outputs; integers and booleans must be equal"""


@dataclass(frozen=True)
class Case:
    """One recorded call. A replay looks at `official`, `kwargs` and at which tensors are present, never at `name`."""

    slug: str
    name: str
    metadata: dict[str, str]
    kwargs: dict[str, Any]
    official: str
    call: str
    notes: str
    inputs: dict[str, Tensor]
    weights: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Case:
        groups: dict[str, dict[str, Tensor]] = {"inputs": {}, "weights": {}, "outputs": {}}
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
        return cls(
            slug=path.parent.name,
            name=path.stem,
            metadata=metadata,
            kwargs=json.loads(metadata.get("kwargs", "{}")),
            official=metadata.get("official", ""),
            call=metadata.get("call", ""),
            notes=metadata.get("notes", ""),
            **groups,
        )


@dataclass(frozen=True)
class Comparison:
    """Ours against the recorded outputs of one case."""

    worst: float
    """largest absolute difference over all floating-point outputs"""
    worst_output: str
    """the output that comes closest to its tolerance, or exceeds it most"""
    problems: tuple[str, ...]
    """one line per output that is missing, of another shape, or outside the tolerance"""


def parity_folder() -> Path:
    """$PAPERWORKS_PARITY, else `../shared/parity` beside the repository."""
    return Path(os.environ.get("PAPERWORKS_PARITY") or ROOT.parent / "shared" / "parity")


def find_cases(folder: Path) -> list[Path]:
    """All case files below `folder`, by slug and name; an absent folder has none."""
    return sorted(folder.glob("*/*.safetensors"))


def compare(
    ours: dict[str, Tensor], recorded: dict[str, Tensor], tolerance: tuple[float, float] = DEFAULT_TOLERANCE
) -> Comparison:
    """Every recorded output must be in `ours`: |ours - recorded| <= absolute + relative * |recorded| elementwise."""
    worst, worst_share, worst_output, problems = 0.0, -1.0, "", []
    for name, expected in recorded.items():
        if name not in ours:
            problems.append(f"{name}: not returned by the replay")
            continue
        actual = ours[name].detach().cpu()
        if actual.shape != expected.shape:
            problems.append(f"{name}: shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}")
            continue
        if not expected.is_floating_point():
            different = int((actual != expected).sum())
            if different:
                problems.append(f"{name}: {different} of {expected.numel()} values differ")
            continue
        error, share = _errors(actual.double(), expected.double(), *tolerance)
        worst = max(worst, error)
        if share > worst_share:
            worst_share, worst_output = share, name
        if not share <= 1:
            problems.append(f"{name}: largest difference {error:.3g} is {share:.3g} x the tolerance {tolerance}")
    return Comparison(worst, worst_output, tuple(problems))


def _errors(actual: Tensor, expected: Tensor, relative: float, absolute: float) -> tuple[float, float]:
    """(largest absolute difference, largest difference / allowed); equal infinities and NaN in the same place agree."""
    if expected.numel() == 0:
        return 0.0, 0.0
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = torch.where(same, torch.zeros_like(actual), (actual - expected).abs()).nan_to_num(nan=torch.inf)
    share = torch.where(same, torch.zeros_like(actual), difference / (absolute + relative * expected.abs()))
    return float(difference.max()), float(share.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
