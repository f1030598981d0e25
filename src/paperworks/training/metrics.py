"""metrics.jsonl: one JSON object per line. Nothing is lost in a crash, and a resumed run leaves no duplicate rows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "metrics.jsonl"


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The rows a run has logged, in order; empty when there are none. `folder` is the run's folder or the file itself.
    A last line that a crash cut short is left out."""
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class MetricsFile:
    """Appends rows; opened with the step the run continues from, it first drops the rows behind it."""

    def __init__(self, folder: Path, resume_step: int):
        self.path = folder / FILE
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_step]
        aside = self.path.with_name(FILE + ".part")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(aside, self.path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Values that are not finite become null (JSON has no NaN)."""
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(plain) + "\n")


class Running:
    """Means of logged values between two rows, weighted by item counts. They stay on the device until `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor | float, weight: Tensor | float) -> None:
        """One micro-batch's mean of `value` over `weight` items; what is not finite is left out."""
        value = torch.as_tensor(value)
        fine = torch.isfinite(value)
        part, counted = torch.where(fine, value * weight, 0.0), fine * weight
        self._sums[name] = self._sums[name] + part if name in self._sums else part
        self._weights[name] = self._weights[name] + counted if name in self._weights else counted

    def take(self) -> dict[str, tuple[float, float]]:
        """(sum, weight) by name since the last call, as numbers."""
        taken = {name: (float(total), float(self._weights[name])) for name, total in self._sums.items()}
        self._sums, self._weights = {}, {}
        return taken

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"sums": dict(self._sums), "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._weights = {name: value.to(device) for name, value in state["weights"].items()}
