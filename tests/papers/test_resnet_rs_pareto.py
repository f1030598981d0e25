from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib import pyplot

from paperworks.analysis.pareto import Point
from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers import resnet_rs
from paperworks.papers._resnet_rs_pareto import PAIRS, Candidate, candidates, picture


def test_pairs_are_of_nearly_equal_accuracy() -> None:
    top1 = {each.name: each.top1 for each in candidates()}
    assert all(abs(top1[ours] - top1[theirs]) <= 0.401 for ours, theirs in PAIRS.items())


def test_every_candidate_has_the_resolution_in_its_name() -> None:
    assert all(each.name.endswith(f"@ {each.pixels}") for each in candidates())
    assert {each.family for each in candidates(79.0)} == {"ResNet-RS", "EfficientNet"}


def test_smallest_networks_are_timed_and_drawn(tmp_path: Path) -> None:
    recipe = resnet_rs.paper.recipes["pareto"](precision="32", largest=78.9, rounds=1)
    run = Run.open(tmp_path, slug="resnet-rs", recipe="pareto", arguments={}, config=recipe.config, command="test")
    run.execute(recipe, say=lambda _: None)
    found = run.result("timing")["networks"]
    assert round(found["RS-50 @ 160"]["parameters"] / 1e6, 3) == 35.692
    assert found["RS-50 @ 160"]["macs"] / 1e9 == pytest.approx(2.279, abs=0.01)
    assert all(each["milliseconds"] > 0 for each in found.values()) and len(found) == 2
    assert "B0 @ 224" in (tmp_path / "report.html").read_text()


def test_a_line_per_family() -> None:
    some = [Candidate("a", "a1 @ 1", 1, 70.0), Candidate("a", "a2 @ 1", 1, 80.0), Candidate("b", "b1 @ 1", 1, 75.0)]
    figure = picture(some, {each.name: Point(each.top1, each.top1 / 100, each.name) for each in some})
    assert len(figure.axes[0].lines) == 2
    pyplot.close(figure)


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one round"):
        resnet_rs.paper.recipes["pareto"](largest=10.0)
