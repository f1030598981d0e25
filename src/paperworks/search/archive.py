"""What has been evaluated: a file with one line per architecture, so that nothing is evaluated twice.

A search is a function of its seed and of the rewards. Started again it proposes the same architectures, finds their rewards
here, and so continues exactly where it was stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paperworks.errors import InputError
from paperworks.search.space import Arch, Space


@dataclass(frozen=True)
class Record:
    """One evaluated architecture."""

    arch: Arch
    """canonical"""
    reward: float
    """what is maximised"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """everything else that is known about it: parameters, operations, loss"""
    seconds: float = 0.0


class Archive:
    """Records in the order in which they came, on disk at `path` (JSON lines; the first one describes the space).

    key: what a reward depends on besides the architecture (data, budget, seed): another key needs another file.
    """

    def __init__(self, path: str | Path, space: Space, key: Any = None):
        self.path, self.space = Path(path), space
        self._records: dict[Arch, Record] = {}
        head = {"space": space.describe(), "key": key}
        lines = self._whole_lines()
        if not lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(head) + "\n")
            return
        if json.loads(lines[0]) != json.loads(json.dumps(head)):
            raise InputError(f"{self.path} was written for another space or budget; give another file, or move this one away")
        for line in lines[1:]:
            plain = json.loads(line)
            self._keep(Record(**plain | {"arch": space.check(plain["arch"])}))

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def find(self, arch: Arch) -> Record | None:
        return self._records.get(self.space.canonical(arch))

    def add(self, arch: Arch, reward: float, metrics: Mapping[str, float], seconds: float) -> Record:
        """Keep an evaluation, on disk before this returns."""
        record = Record(self.space.canonical(self.space.check(arch)), reward, dict(metrics), seconds)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(record)
        return record

    def best(self, count: int = 1) -> list[Record]:
        """The records with the highest rewards, the best first."""
        return sorted(self, key=lambda record: -record.reward)[:count]

    def _keep(self, record: Record) -> None:
        self._records.setdefault(record.arch, record)

    def _whole_lines(self) -> list[str]:
        """Complete lines; what a killed process wrote half is cut off the file."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)
        return content[:end].decode().splitlines()
