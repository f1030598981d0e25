"""Filters and draws: against plain definitions, and reproducible whatever the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, filter_logits, guide, pick


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.05, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p_among_the_top_k(seed, top_k, top_p):
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))
    kept = filter_logits(logits, top_k, top_p) > -torch.inf
    for row, mask in zip(logits, kept):
        order = row.argsort(descending=True)[:top_k]
        mass = row[order].softmax(0)
        wanted = 1
        while wanted < top_k and mass[:wanted].sum() < top_p - 1e-6:
            wanted += 1
        assert abs(int(mask.sum()) - wanted) <= (1 if abs(float(mass[:wanted].sum()) - top_p) < 1e-5 else 0)
        assert set(mask.nonzero()[:, 0].tolist()) == set(order[: int(mask.sum())].tolist())


def test_filters_off_change_nothing_and_the_best_token_always_stays():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert filter_logits(logits) is logits
    kept = filter_logits(logits, top_p=1e-6) > -torch.inf
    assert kept.sum(-1).eq(1).all() and kept.float().argmax(-1).equal(logits.argmax(-1))


@pytest.mark.parametrize("arguments, named", [((10, 0.0), "top_k=10"), ((0, 1.5), "top_p=1.5")])
def test_impossible_filters_name_the_argument(arguments, named):
    with pytest.raises(InputError, match=named):
        filter_logits(torch.zeros(2, 9), *arguments)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pick_is_the_inverse_cumulative_distribution(seed, uniform):
    logits = torch.randn(20, generator=torch.Generator().manual_seed(seed)).masked_fill(torch.arange(20) % 3 == 0, -torch.inf)
    token = int(pick(logits, torch.tensor(uniform)))
    cumulative = logits.double().softmax(0).cumsum(0)
    assert logits[token] > -torch.inf
    assert cumulative[token] > uniform - 1e-12
    assert token == 0 or cumulative[token - 1] <= uniform + 1e-12


def test_pick_draws_with_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    tokens = pick(logits.expand(20_000, 3), torch.rand(20_000, generator=torch.Generator().manual_seed(1)))
    assert torch.bincount(tokens).div(20_000).sub(torch.tensor([0.1, 0.2, 0.7])).abs().max() < 0.01


def test_guidance_zero_is_the_conditional_branch():
    conditional, null = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.allclose(guide(conditional, null, 0.0), conditional)
    assert torch.allclose(guide(conditional, null, 1.5), 2.5 * conditional - 1.5 * null, atol=1e-5)


def test_a_row_draws_the_same_in_any_batch():
    alone = Draws.seeded(3, rows=1, first=2).uniform("u", (1, 4))
    together = Draws.seeded(3, rows=5).uniform("u", (5, 4))
    assert torch.equal(alone[0], together[2])


def test_missing_or_mismatched_draws_are_named():
    with pytest.raises(InputError, match="no recorded draw 'u'"):
        Draws(recorded={"v": torch.zeros(1)}).uniform("u", (1,))
    with pytest.raises(InputError, match="2 generators cannot draw for 3 rows"):
        Draws.seeded(0, rows=2).uniform("u", (3, 1))
