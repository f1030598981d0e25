"""IBN-Net: a run's page of other domains, evaluation under shifts, and rules of its claims."""

from pathlib import Path

import pytest
import torch

from paperworks.paper import Measured
from paperworks.papers import ibn_net
from paperworks.papers._classification import Trained
from paperworks.papers._ibn_domains import SHIFTS, blocks_of
from tests.papers.test_recognition import carry_out, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return carry_out("ibn-net", tmp_path_factory.mktemp("ibn") / "run", tiny("ibn-net"))


def test_a_run_shows_accuracy_and_divergence_in_other_domains(run):
    page = (Path(run.folder) / "domains.html").read_text()
    assert all(name in page for name in SHIFTS) and "Divergence by block" in page
    found = run.result("domains")
    blocks = blocks_of(Trained.of(run).objective.model)
    assert blocks == [f"layer{number}.0" for number in (1, 2, 3, 4)]
    assert set(found["divergence"]) == {*SHIFTS, "content"}
    assert all(list(row) == blocks and min(row.values()) >= 0 for row in found["divergence"].values())


def test_evaluation_adds_the_shifts_when_asked(run):
    verb = ibn_net.paper.verbs["evaluate"]
    plain, shifted = verb(run, limit=60), verb(run, limit=60, shifts=True)
    assert {name: shifted[name] for name in plain} == plain
    values = [shifted[f"{name}, top-1 %"] for name in SHIFTS]
    assert len(shifted) == len(plain) + len(SHIFTS) + 1
    assert shifted["mean of the shifts, top-1 %"] == pytest.approx(sum(values) / len(values), abs=0.01)


def test_shifts_do_what_they_are_called():
    images = torch.rand(2, 3, 8, 8)
    shifted = {name: shift(images) for name, shift in SHIFTS.items()}
    assert all(value.shape == images.shape and value.min() >= 0 and value.max() <= 1 for value in shifted.values())
    assert (shifted["brighter"] >= images).all()
    assert torch.equal(shifted["redder"][:, 1:], images[:, 1:]) and (shifted["redder"][:, 0] >= images[:, 0]).all()
    assert shifted["contrast"].std() > images.std()


def test_the_rule_of_invariance_wants_batch_norm_to_move():
    rule = ibn_net.paper.claims["c3"].rule
    assert rule(Measured(5e-5, "", numbers={"batch norm": 3.0}))
    assert not rule(Measured(5e-4, "", numbers={"batch norm": 3.0}))
    assert not rule(Measured(5e-5, "", numbers={"batch norm": 0.0}))
