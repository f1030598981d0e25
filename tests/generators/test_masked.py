"""Masked generators and their parallel decoding; random orders and their cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, pick
from paperworks.generators.masked import MaskedTransformer, masked_prediction_loss
from paperworks.generators.masked_sampling import MaskedSampling, decode_masked, masked_count, sample
from paperworks.generators.random_order import RandomOrderTransformer, sample_tokens
from paperworks.objectives.masked_prediction import MaskedPrediction, RandomOrderPrediction, draw_hidden


def moved(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, so that mistakes show
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def masked(form: str = "bert") -> MaskedTransformer:
    return moved(MaskedTransformer(3, 6, 11, 16, 2, 2, form=form))


def in_order() -> RandomOrderTransformer:
    return moved(RandomOrderTransformer(3, 6, 11, 16, 2, 2))


@pytest.mark.parametrize("form", ["bert", "uvit"])
def test_every_token_sees_every_other_and_the_class(form):
    model, tokens = masked(form), torch.randint(11, (1, 6))
    logits = model(torch.tensor([1]), tokens)
    assert logits.shape == (1, 6, 11)
    for position in (0, 5):
        changed = tokens.clone()
        changed[0, position] = model.mask_token
        assert bool((model(torch.tensor([1]), changed) - logits).abs().amax(-1).gt(1e-5).all())
    assert not torch.allclose(model(torch.tensor([3]), tokens), logits, atol=1e-4)
    with pytest.raises(InputError, match=r"labels must lie in 0\.\.3"):
        model(torch.tensor([4]), tokens)
    with pytest.raises(InputError, match="6 positions"):
        model(torch.tensor([1]), tokens[:, :5])


@given(st.integers(1, 12), st.integers(1, 9), st.floats(0, 3), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_decoding_fills_everything_and_never_changes_a_known_token(length, steps, noise, known):
    generator = torch.Generator().manual_seed(length * 100 + steps)
    logits = torch.randn(2, length, 7, generator=generator)
    start = torch.full((2, length), 7)
    start[:, : min(known, length - 1)] = 3
    plan = MaskedSampling(steps, 0.0, "constant", noise=noise)
    left = []

    def logits_of(tokens, step):
        left.append(int((tokens == 7).sum()))
        return logits

    made = decode_masked(logits_of, start, 7, Draws.seeded(0, 2), plan)
    assert int(made.max()) < 7 and torch.equal(made[start == 3], start[start == 3])
    assert left == sorted(left, reverse=True) and len(left) == steps


@given(st.lists(st.integers(0, 9), min_size=2, max_size=4), st.integers(1, 8), st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_rows_with_more_and_fewer_known_tokens_keep_them_all(known, steps, noise):
    rows, length = len(known), 9
    logits = torch.randn(rows, length, 7, generator=torch.Generator().manual_seed(steps))
    start = torch.full((rows, length), 7)
    for row, count in enumerate(known):
        start[row, :count] = row
    plan, seen = MaskedSampling(steps, 0.0, "constant", noise=noise), []

    def logits_of(tokens, step):
        seen.append(tokens)
        return logits

    made = decode_masked(logits_of, start, 7, Draws.seeded(0, rows), plan)
    assert int(made.max()) < 7
    for tokens in (*seen, made):
        assert torch.equal(tokens[start != 7], start[start != 7])
    for row in range(rows):  # and every row is as it would be alone
        alone = decode_masked(
            lambda tokens, step, row=row: logits[row : row + 1], start[row : row + 1], 7, Draws.seeded(0, 1, first=row), plan
        )
        assert torch.equal(alone[0], made[row])


def test_an_edit_keeps_what_it_was_given():
    model, labels = masked(), torch.tensor([0, 2, 1])
    start = torch.tensor([[1, 2, 3, 4, 5, 6], [11, 11, 11, 11, 11, 11], [11, 2, 3, 11, 5, 6]])
    made = sample(model, labels, Draws.seeded(0, 3), MaskedSampling(4, 2.0, noise=1.0), start=start)
    assert torch.equal(made[start != 11], start[start != 11]) and int(made.max()) < 11


def test_fewer_tokens_stay_masked_at_every_step():
    assert [int(masked_count(torch.tensor(32), step / 8)) for step in range(1, 9)] == [29, 26, 24, 21, 18, 14, 10, 0]


def test_only_berts_attention_drops_and_only_while_training():
    torch.manual_seed(0)
    share = {
        form: {module.attention_dropout for module in MaskedTransformer(3, 6, 11, 16, 2, 2, form=form).modules() if has(module)}
        for form in ("bert", "uvit")
    }
    assert share == {"bert": {0.1}, "uvit": {0.0}}
    model = MaskedTransformer(3, 6, 11, 16, 2, 2, dropout=0.0, attention_dropout=0.5)
    labels, tokens = torch.tensor([1]), torch.randint(11, (1, 6))
    assert not torch.equal(model(labels, tokens), model(labels, tokens))
    assert torch.equal(model.eval()(labels, tokens), model(labels, tokens))


def has(module):
    return hasattr(module, "attention_dropout")


def test_without_noise_one_step_takes_the_best_token():
    model, labels = masked(), torch.tensor([0, 2])
    made = sample(model, labels, Draws.seeded(0, 2), MaskedSampling(1, 0.0, "constant", noise=0.0))
    hidden = torch.full((2, 6), model.mask_token)
    assert torch.equal(made, model(labels, hidden).argmax(-1))


def test_guidance_schedules_start_and_end_where_they_should():
    linear = MaskedSampling(8, 4.0, "linear")
    assert linear.extra_weight(0) == 0 and linear.extra_weight(7) == pytest.approx(3.5)
    cosine = MaskedSampling(64, 6.9, "power-cosine")
    assert cosine.extra_weight(0) == 0 and cosine.extra_weight(63) == pytest.approx(5.9, rel=0.01)
    with pytest.raises(InputError, match="constant, linear, power-cosine"):
        MaskedSampling(schedule="square").check()


def test_a_row_does_not_depend_on_its_batch():
    model, plan = masked(), MaskedSampling(4, 2.0, noise=1.0)
    both = sample(model, torch.tensor([0, 2]), Draws.seeded(5, 2), plan)
    alone = sample(model, torch.tensor([2]), Draws.seeded(5, 1, first=1), plan)
    assert torch.equal(both[1:], alone)


def test_loss_weighs_masked_and_known_tokens():
    logits, targets = torch.randn(1, 4, 5), torch.tensor([[0, 1, 2, 3]])
    hidden = torch.tensor([[True, False, False, True]])
    each = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none")
    wanted = (each[0] + each[3] + 0.1 * (each[1] + each[2])) / 2.2
    assert masked_prediction_loss(logits, targets, hidden, 0.0, 0.1) == pytest.approx(float(wanted), rel=1e-5)
    with pytest.raises(InputError, match="kept_weight"):
        MaskedPrediction(masked(), kept_weight=2.0)


@given(st.floats(0, 1), st.integers(1, 40))
def test_hidden_share_is_exact_and_never_empty(share, length):
    hidden = draw_hidden(torch.tensor([[share], [share]]), length, torch.Generator().manual_seed(0))
    wanted = max(1, round(torch.tensor(share).mul(length).round().item()))
    assert hidden.sum(1).tolist() == [wanted, wanted]


# --- random orders ----------------------------------------------------------------------------------------------------


def test_a_token_sees_only_what_came_before_it_in_the_order():
    model, labels = in_order(), torch.tensor([1])
    tokens, order = torch.randint(11, (1, 6)), torch.tensor([[3, 0, 5, 1, 4, 2]])
    logits = model(labels, tokens, order)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 11  # third in the order
    after = model(labels, changed, order)
    assert torch.allclose(logits[:, :3], after[:, :3], atol=1e-6)
    assert bool((logits[:, 3:] - after[:, 3:]).abs().amax(-1).gt(1e-5).all())


def test_the_target_changes_what_is_predicted():
    model, labels, tokens = in_order(), torch.tensor([1]), torch.randint(11, (1, 6))
    one, other = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([[0, 2, 1, 3, 4, 5]])
    first, second = model(labels, tokens, one), model(labels, tokens, other)
    assert torch.allclose(first[:, 0], second[:, 0], atol=1e-6) and not torch.allclose(first[:, 1], second[:, 1], atol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_cached_sampling_is_what_full_passes_give(guidance):
    model, labels = in_order(), torch.tensor([0, 2])
    made = sample_tokens(model, labels, Draws.seeded(0, 2), guidance=guidance, power=1.0)
    uniform = Draws.seeded(0, 2).uniform("uniform", (2, 6))
    with torch.no_grad():
        logits = model(labels, made)
        if guidance:
            weights = 1 + 2 * (1 - torch.cos(torch.pi * torch.arange(6) / 6)) / 2
            null = model(torch.full_like(labels, 3), made)
            logits = null + weights[:, None] * (logits - null)
        assert torch.equal(pick(logits, uniform), made)


def test_orders_are_random_first_and_raster_last():
    learner = RandomOrderPrediction(in_order(), anneal=(0.5, 0.75))
    assert [learner.random_share(progress) for progress in (0, 0.49, 0.625, 0.75, 1)] == [1, 1, 0.5, 0, 0]
    with pytest.raises(InputError, match="anneal"):
        RandomOrderPrediction(in_order(), anneal=(0.8, 0.5))
