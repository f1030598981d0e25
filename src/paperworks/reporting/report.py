"""A run's page: one file that needs nothing else, readable on a phone and on a desk."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from torch import Tensor

from paperworks.config import to_plain
from paperworks.errors import InputError
from paperworks.paper import versions
from paperworks.reporting.cells import settings, shown, table
from paperworks.reporting.pictures import data_uri, enlargement, grid, single
from paperworks.reporting.style import draw_curves, legend_above, styled, svg_uri, svgs, wrap_labels
from paperworks.training.metrics import read_metrics

HERE = Path(__file__).parent
LETTER = 8
"""pixels that a letter of a heading takes"""


class Report:
    """Collects blocks in order; `save` writes them. Every text is escaped, every picture lies inside the file."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self.blocks: list[dict[str, Any]] = []

    def figures(self, numbers: Mapping[str, Any]) -> None:
        """A strip of key figures: name -> value as it should be read."""
        self.blocks.append({"kind": "figures", "items": [(name, shown(value)) for name, value in numbers.items()]})

    def text(self, text: str) -> None:
        """Plain paragraphs, separated by empty lines."""
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
        self.blocks.append({"kind": "text", "paragraphs": paragraphs})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
        """Rows of numbers and words. More than 40 rows are folded."""
        self.blocks.append(table(title, columns, rows, note))

    def images(
        self,
        title: str,
        images: Tensor,
        columns: int = 10,
        labels: Sequence[str] | None = None,
        caption: str = "",
        scale: int | None = None,
    ) -> None:
        """A grid of images [N, 1 or 3, H, W] in [0, 1].

        `labels`: as many as images stand below each, up to `columns` stand above the columns. `scale`: whole enlargement,
        chosen when None.
        """
        columns = max(1, min(columns, len(images)))
        if labels is not None and len(labels) == len(images):
            factor = scale or enlargement(columns, images.shape[-1])
            items = [(data_uri(single(image, factor)), str(label)) for image, label in zip(images, labels)]
            width = factor * images.shape[-1]
            block = {"kind": "gallery", "items": items, "width": width, "columns": columns}
            self.blocks.append(block | {"title": title, "caption": caption})
            return
        if labels is not None and len(labels) > columns:
            raise InputError(f"{title!r}: {len(labels)} labels for {len(images)} images in {columns} columns")
        self._pictures(title, {"": grid(images, columns, scale=scale)}, columns, labels, caption)

    def compare(self, title: str, rows: Mapping[str, Tensor], caption: str = "", labels: Sequence[str] | None = None) -> None:
        """Rows of images [N, 1 or 3, H, W] that belong together column by column (before and after).

        Rows of smaller images are enlarged to the size of the largest. `labels`: a word above each column.
        """
        counts = {name: len(images) for name, images in rows.items()}
        if len(set(counts.values())) != 1 or not all(counts.values()):
            raise InputError(f"{title!r}: every row needs as many images as the others, and one at least, not {counts}")
        columns = next(iter(counts.values()))
        largest = max(rows.values(), key=lambda images: images.shape[-1])
        factor = enlargement(columns, largest.shape[-1])
        cell = (factor * largest.shape[-1], factor * largest.shape[-2])
        pictures = {name: grid(images, columns, cell=cell) for name, images in rows.items()}
        self._pictures(title, pictures, columns, labels, caption)

    def curves(
        self,
        title: str,
        series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        xlabel: str = "step",
        ylabel: str = "",
        log_y: bool = False,
        caption: str = "",
    ) -> None:
        """Lines name -> (xs, ys) in one plot."""
        if not series:
            raise InputError(f"{title!r}: there is no curve to draw")
        drawn = []
        with styled() as pyplot:
            for size, narrow in (((7.2, 3.6), False), ((4.2, 3.3), True)):
                figure, axes = pyplot.subplots(figsize=size)
                draw_curves(axes, series)
                names = list(series)
                axes.set(xlabel=xlabel, ylabel=ylabel or (names[0] if len(names) == 1 else ""))
                wrap_labels(figure)
                if log_y:
                    axes.set_yscale("log")
                if len(names) > 1:
                    legend_above(figure, names, narrow)
                drawn.append(svg_uri(figure))
                pyplot.close(figure)
        self._plot(title, drawn[0], drawn[1], caption)

    def metrics(self, title: str, path: str | Path, keys: Sequence[str], log_y: bool = False) -> None:
        """Curves of some keys of a metrics.jsonl; keys that never occur are left out, as are values that are not finite."""
        rows = read_metrics(path)
        series = {}
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
            if points:
                series[key] = ([x for x, _ in points], [y for _, y in points])
        if series:
            self.curves(title, series, log_y=log_y)

    def figure(self, title: str, figure: Any, caption: str = "") -> None:
        """A matplotlib figure; it is closed. Make it within `reporting.style.styled` to look like the others."""
        with styled():
            wide, narrow = svgs(figure)
        self._plot(title, wide, narrow, caption)

    def recipe(self, config: Any, command: str) -> None:
        """The exact command and the configuration it stands for."""
        self.blocks.append({"kind": "recipe", "groups": settings(to_plain(config)), "words": command.split(" ")})

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        template = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True).get_template("report.html")
        made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
        css = (HERE / "report.css").read_text()
        page = template.render(title=self.title, subtitle=self.subtitle, blocks=self.blocks, css=css, made_with=made_with)
        aside = path.with_name(path.name + ".part")
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, path)
        return path

    def _pictures(
        self, title: str, pictures: Mapping[str, Any], columns: int, labels: Sequence[str] | None, caption: str
    ) -> None:
        """Pictures below one another, with their names beside and words above the columns."""
        width = max(picture.width for picture in pictures.values())
        longest = max((len(word) for label in labels or [] for word in str(label).split()), default=0) * LETTER
        rows = [(name, data_uri(picture), picture.width, picture.height) for name, picture in pictures.items()]
        block = {"kind": "pictures", "title": title, "rows": rows, "columns": columns, "width": width, "caption": caption}
        # labels are turned where their words are wider than a column: on a desk, on a phone
        turned = "turned" if longest > width / columns else "turned-on-phones" if longest > 350 / columns else ""
        self.blocks.append(block | {"labels": [str(label) for label in labels or []], "turned": turned})

    def _plot(self, title: str, wide: str, narrow: str | None, caption: str) -> None:
        self.blocks.append({"kind": "plot", "title": title, "wide": wide, "narrow": narrow, "caption": caption})
