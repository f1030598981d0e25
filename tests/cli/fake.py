"""A paper with two recipes, two verbs and four claims, so that the command line can be tested without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from paperworks.errors import InputError
from paperworks.paper import Bench, Card, ClaimText, Measured, Paper, Recipe, Run, Stage, Variant, at_least, equals

CARD = Card(
    slug="fake",
    title="A Fake Paper [with brackets]",
    year=2020,
    arxiv="2001.00001",
    family="generation",
    official="someone/fake",
    summary="Does nothing much, but does it in two stages.",
    claims=(
        ClaimText("c1", "Has this many parameters", "12", "parameters", "exact"),
        ClaimText("c2", "Is this much faster", "20", "x", "direction"),
        ClaimText("c3", "Works at all", "-", "-", "capability"),
        ClaimText("c4", "Reaches this FID", "1.80", "FID", "cluster"),
    ),
)


@dataclass(frozen=True)
class Model:
    dim: int = 8
    kind: str = "plain"


@dataclass(frozen=True)
class Config:
    data: str = "default"
    minutes: float = 1.0
    model: Model = field(default_factory=Model)


def make_paper() -> Paper:
    paper = Paper(CARD, variants={"fake_tiny": Variant(lambda: torch.nn.Linear(3, 3), parameters=12e-6, note="the only one")})

    def train(config: Config, run: Run) -> Mapping[str, Any]:
        if config.data == "typo":
            raise InputError("no folder called typo")
        (run.stage_folder("train") / "weights.txt").write_text(str(config.model.dim))
        return {"loss": 0.5, "where": run.stage_folder("train")}

    def report(config: Config, run: Run) -> None:
        if config.model.kind == "interrupted":
            raise KeyboardInterrupt
        if config.model.kind == "unreadable":
            raise InputError("nothing can be read\nthere")
        (run.folder / "report.html").write_text("<html></html>")

    @paper.recipe("laptop")
    def laptop(data: str = "default", *, minutes: float = 1.0, verbose: bool = False) -> Recipe:
        """Two stages in no time.

        Args:
            data: your images
            minutes: how long it may take
        """
        return Recipe(Config(data, minutes), [Stage("train", train), Stage("report", report)])

    @paper.recipe("paper")
    def published(depth: int = 30) -> Recipe:
        """The published setting."""
        return Recipe(Config(model=Model(dim=depth)), [Stage("train", train), Stage("report", report)])

    @paper.verb("sample")
    def sample(run: Run, *, count: int = 4, style: Literal["plain", "wild"] = "plain") -> Path:
        """Makes pictures.

        Args:
            count: how many pictures
        """
        print(f"sampling {count} {style}")
        return run.folder / "samples.png"

    @paper.verb("evaluate")
    def evaluate(run: Run) -> dict[str, float]:
        print("evaluating")
        return {"loss": run.result("train")["loss"], "images": 5000}

    @paper.claim("c1", rule=equals(12), says="exactly 12")
    def parameters(bench: Bench) -> Measured:
        return Measured(12.0, scale="any")

    @paper.claim("c2", rule=at_least(5.0), says="at least 5x on every seed")
    def speed(bench: Bench) -> Measured:
        values = [4.0 + seed for seed in bench.seeds]
        return Measured(sum(values) / len(values), scale="toy", per_seed=values, seeds=bench.seeds)

    @paper.claim("c3", rule=at_least(1.0), says="every picture can be read")
    def works(bench: Bench) -> Measured:
        raise RuntimeError("it broke")

    return paper
