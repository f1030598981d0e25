"""A run's page: one file that needs nothing else, readable on a phone and on a desk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader
from torch import Tensor

from paperworks.config import to_plain
from paperworks.errors import InputError
from paperworks.reporting.pictures import data_uri, grid
from paperworks.reporting.style import styled, svg

HERE = Path(__file__).parent
POINTS = 400
"""points drawn per curve at most"""


class Report:
    """Collects blocks in order; `save` writes them. Every text is escaped."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self.blocks: list[dict[str, Any]] = []

    def figures(self, numbers: Mapping[str, Any]) -> None:
        """A strip of key figures: name -> value as it should be read."""
        self.blocks.append({"kind": "figures", "items": [(name, _shown(value)) for name, value in numbers.items()]})

    def text(self, text: str) -> None:
        """Plain paragraphs, separated by empty lines."""
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
        self.blocks.append({"kind": "text", "paragraphs": paragraphs})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
        for row in rows:
            if len(row) != len(columns):
                raise InputError(f"table {title!r}: a row has {len(row)} cells for {len(columns)} columns")
        cells = [[{"text": _shown(cell), "number": isinstance(cell, int | float)} for cell in row] for row in rows]
        self.blocks.append({"kind": "table", "title": title, "columns": list(columns), "rows": cells, "note": note})

    def images(
        self,
        title: str,
        images: Tensor,
        columns: int = 10,
        labels: Sequence[str] | None = None,
        caption: str = "",
        scale: int | None = None,
    ) -> None:
        """A grid of images [N, 1 or 3, H, W] in [0, 1]; `labels`: a word above each column."""
        self._picture(title, grid(images, columns, labels=labels, scale=scale), caption)

    def compare(self, title: str, rows: Mapping[str, Tensor], caption: str = "") -> None:
        """Rows of images that belong together column by column (before and after)."""
        counts = {name: len(images) for name, images in rows.items()}
        if len(set(counts.values())) != 1:
            raise InputError(f"{title!r}: every row needs as many images as the others, not {counts}")
        channels = max(images.shape[1] for images in rows.values())
        stacked = torch.cat([images.detach().cpu().float().expand(-1, channels, -1, -1) for images in rows.values()])
        self._picture(title, grid(stacked, next(iter(counts.values())), rows=list(rows)), caption)

    def curves(
        self,
        title: str,
        series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        xlabel: str = "step",
        ylabel: str = "",
        log_y: bool = False,
        caption: str = "",
    ) -> None:
        with styled() as pyplot:
            figure, axes = pyplot.subplots()
            for name, (xs, ys) in series.items():
                every = max(1, len(xs) // POINTS)
                axes.plot(xs[::every], ys[::every], label=name, marker="o" if len(xs) < 15 else None)
            axes.set(xlabel=xlabel, ylabel=ylabel)
            if log_y:
                axes.set_yscale("log")
            if len(series) > 1 or not ylabel:
                axes.legend()
            self.figure(title, figure, caption)

    def metrics(self, title: str, path: str | Path, keys: Sequence[str], log_y: bool = False) -> None:
        """Curves of some keys of a metrics.jsonl; keys that never occur are left out."""
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        series = {}
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
            if points:
                series[key] = ([x for x, _ in points], [y for _, y in points])
        if series:
            self.curves(title, series, log_y=log_y)

    def figure(self, title: str, figure: Any, caption: str = "") -> None:
        """A matplotlib figure; it is closed."""
        self.blocks.append({"kind": "plot", "title": title, "svg": svg(figure), "caption": caption})

    def recipe(self, config: Any, command: str) -> None:
        """The exact command and the configuration it stands for."""
        plain = json.dumps(to_plain(config), indent=2)
        self.blocks.append({"kind": "recipe", "config": plain, "command": command})

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        template = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True).get_template("report.html")
        page = template.render(
            title=self.title, subtitle=self.subtitle, blocks=self.blocks, css=(HERE / "report.css").read_text()
        )
        aside = path.with_name(path.name + ".part")
        aside.write_text(page)
        os.replace(aside, path)
        return path

    def _picture(self, title: str, picture: Any, caption: str) -> None:
        self.blocks.append(
            {"kind": "picture", "title": title, "uri": data_uri(picture), "width": picture.width, "caption": caption}
        )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
