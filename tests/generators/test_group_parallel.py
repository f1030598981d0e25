"""Groups in parallel: who sees whom, the exact cache, going on from known tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.group_parallel import GroupParallelTransformer, sample_tokens
from paperworks.layers.block_causal import group_causal_mask
from paperworks.objectives.detail_training import GroupPrediction
from paperworks.training.objective import Context


def small(**options) -> GroupParallelTransformer:
    torch.manual_seed(0)
    model = GroupParallelTransformer(3, 8, 11, 16, 2, 2, **{"group": 2, "multiple_of": 8, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, so that mistakes show
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("options", [{}, {"causal": 4}, {"group": 4}, {"group": 1}])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_sampling_is_the_uncached_one(options, guidance):
    model, labels = small(**options), torch.tensor([0, 2])
    both = [
        sample_tokens(model, labels, Draws.seeded(1, 2), guidance=guidance, falling=True, top_k=8, top_p=0.9, cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("options", [{}, {"causal": 4}])
def test_going_on_from_known_tokens_repeats_them_and_the_rest(options):
    model, labels = small(**options), torch.tensor([0, 2])
    whole = sample_tokens(model, labels, Draws.seeded(1, 2))
    for count in (1, 4, 6):
        assert torch.equal(sample_tokens(model, labels, Draws.seeded(1, 2), known=whole[:, :count]), whole)
    with pytest.raises(InputError, match="inside a group"):
        sample_tokens(model, labels, Draws.seeded(1, 2), known=whole[:, :5])


def test_a_group_does_not_see_itself():
    model, labels = small(), torch.tensor([1])
    tokens = torch.randint(11, (1, 8))
    logits = model(labels, tokens)
    assert logits.shape == (1, 8, 11)
    changed = tokens.clone()
    changed[0, 2:4] = (changed[0, 2:4] + 1) % 11
    after = model(labels, changed)
    assert torch.allclose(logits[:, :4], after[:, :4], atol=1e-6)
    assert bool((logits[:, 4:] - after[:, 4:]).abs().amax(-1).gt(1e-5).all())
    assert model.passes == 2 + 3


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_mask_is_causal_first_and_by_group_later(group, groups, first_groups):
    length, first = group * groups, min(first_groups, groups) * group
    mask = group_causal_mask(length, group, first)
    for row in range(length):
        last = row if row < first else (row // group + 1) * group - 1
        assert mask[row].tolist() == [column <= last for column in range(length)]


def test_correction_pairs_take_the_place_of_clean_tokens():
    model = small()
    tokens = torch.randint(11, (64, 8))
    batch = {"tokens": tokens, "erring": (tokens + 1) % 11, "repaired": (tokens + 2) % 11, "label": torch.zeros(64).long()}
    learner = GroupPrediction(model, 0.0, correction=1.0).train()
    model.eval()
    losses = learner.loss(batch, "main", Context(0, 1, 0))
    logits = model(batch["label"], batch["erring"]).flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(logits, batch["repaired"].flatten())
    assert torch.allclose(losses.total / losses.count, wanted, rtol=1e-4)
    with pytest.raises(InputError, match="another tokenizer's"):
        model(batch["label"], tokens + 11)
    with pytest.raises(InputError, match="the network knows 8"):
        model(batch["label"], tokens.repeat(1, 2))
    with pytest.raises(InputError, match="groups of 3"):
        GroupParallelTransformer(3, 8, 11, 16, 1, 2, group=3)
