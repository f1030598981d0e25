"""The distance between ratings: its numbers, its gradient, and that it learns what people gave."""

import math

import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.objectives.rating import Rate, mean_score, rating_distance
from paperworks.training import Context

CTX = Context(step=0, max_steps=1, seed=0)


def one_score(*scores: int) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(scores), 10).float()


def test_a_mass_that_lies_n_scores_away_costs_the_root_of_n_tenths():
    found = rating_distance(one_score(2, 2, 2, 9), one_score(3, 6, 0, 0))
    assert found.tolist() == pytest.approx([math.sqrt(n / 10) for n in (1, 4, 2, 9)])
    halves = (one_score(4) + one_score(6)) / 2  # half of the mass moves by one score each way
    assert float(rating_distance(halves, one_score(5))) == pytest.approx(math.sqrt(2 * 0.25 / 10))


def test_distributions_that_agree_have_no_distance_and_a_finite_gradient():
    logits = torch.zeros(1, 10, requires_grad=True)
    distance = rating_distance(logits.softmax(1), torch.full((1, 10), 0.1)).sum()
    distance.backward()
    assert float(distance.detach()) < 1e-5 and bool(logits.grad.isfinite().all())


def test_mean_scores_begin_at_one():
    assert mean_score(one_score(0, 9)).tolist() == [1, 10]
    assert float(mean_score(torch.full((1, 10), 0.1))) == pytest.approx(5.5)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def test_counts_shares_and_single_scores_are_learned():
    counts = torch.tensor([[0, 0, 1, 4, 9, 20, 10, 4, 2, 0]]).float()
    batch = {"image": torch.rand(1, 3, 4, 4), "target": counts}
    objective = Rate(Constant())
    shares = objective.loss({**batch, "target": counts / counts.sum()}, "main", CTX)
    assert torch.allclose(objective.loss(batch, "main", CTX).total, shares.total)
    label = objective.loss({"image": batch["image"], "label": torch.tensor([3])}, "main", CTX)
    exact = objective.loss({"image": batch["image"], "target": one_score(3)}, "main", CTX)
    assert torch.allclose(label.total, exact.total)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        objective.loss(batch, "main", CTX).total.backward()
        optimizer.step()
    learned = objective.logits(batch["image"]).softmax(1)
    assert (learned - counts / 50).abs().max() < 0.02


def test_another_number_of_scores_is_named():
    with pytest.raises(InputError, match="target has 5 scores, the network 10"):
        Rate(Constant()).loss({"image": torch.rand(1, 3, 4, 4), "target": torch.ones(1, 5)}, "main", CTX)
