from __future__ import annotations

import pytest
import torch

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.residual_autoregressive import RQTransformer, sample_tokens

POSITIONS, LEVELS, CODES = 5, 3, 7


def small() -> RQTransformer:
    torch.manual_seed(0)
    model = RQTransformer(4, POSITIONS, LEVELS, CODES, 16, 2, 2, level_blocks=2).eval()
    with torch.no_grad():
        model.level_embedding.normal_()
        model.position_embedding.normal_()
    return model


def by_position(values: torch.Tensor) -> torch.Tensor:
    """[B, D P, ...] level after level -> [B, P D, ...], position after position."""
    return values.unflatten(1, (LEVELS, POSITIONS)).transpose(1, 2).flatten(1, 2)


def test_a_token_sees_earlier_positions_and_coarser_levels_only() -> None:
    model, labels = small(), torch.tensor([1])
    tokens = torch.randint(CODES, (1, LEVELS * POSITIONS))
    before = by_position(model(labels, tokens))
    for order in range(LEVELS * POSITIONS):
        position, level = divmod(order, LEVELS)
        changed = tokens.clone()
        column = level * POSITIONS + position
        changed[0, column] = (tokens[0, column] + 1) % CODES
        after = by_position(model(labels, changed))
        moved = (after - before).abs().amax(-1)[0] > 1e-6
        assert not moved[: order + 1].any()
        assert moved[order + 1 :].all()


def test_cached_sampling_follows_the_training_pass() -> None:
    model, labels = small(), torch.tensor([0, 3])
    drawn = sample_tokens(model, labels, Draws.seeded(0, 2), top_k=1)
    best = model(labels, drawn).argmax(-1)
    assert torch.equal(drawn, best)


def test_guidance_extrapolates_from_no_class() -> None:
    model, labels = small(), torch.tensor([0, 3])
    drawn = sample_tokens(model, labels, Draws.seeded(0, 2), top_k=1, guidance=2.0)
    nothing = torch.full_like(labels, 4)
    own, free = model(labels, drawn), model(nothing, drawn)
    assert torch.equal(drawn, (own + 2.0 * (own - free)).argmax(-1))


def test_errors_name_the_remedy() -> None:
    model = small()
    with pytest.raises(InputError, match="5 positions x 3 levels"):
        model(torch.tensor([0]), torch.zeros(1, 14, dtype=torch.int64))
    with pytest.raises(InputError, match="must lie in"):
        model(torch.tensor([9]), torch.zeros(1, 15, dtype=torch.int64))
    with pytest.raises(InputError, match="temperature"):
        sample_tokens(model, torch.tensor([0]), Draws.seeded(0, 1), temperature=0)
    with pytest.raises(InputError, match="at least 1"):
        RQTransformer(4, 0, 1)


def test_places_differ_from_the_start_and_each_level_has_a_head_of_its_own() -> None:
    torch.manual_seed(0)
    model = RQTransformer(4, 50, LEVELS, CODES, 64, 1, 2)
    assert float(model.position_embedding.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.level_embedding.std()) == pytest.approx(0.02, rel=0.3)
    tokens = torch.randint(CODES, (1, LEVELS * 50))
    model(torch.tensor([0]), tokens).unflatten(1, (LEVELS, 50))[:, 1].sum().backward()
    assert [head.weight.grad is not None and bool(head.weight.grad.any()) for head in model.level_heads] == [False, True, False]
