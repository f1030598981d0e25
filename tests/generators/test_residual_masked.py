"""ResGen: masks from the deep end, counts without replacement, the mixture, refilling, sampling in a fixed number of passes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.residual_masked import (
    Mixture,
    ResidualMaskedTransformer,
    cosine_total,
    draw_masked_counts,
    keep_mask,
    log_probability_of_counts,
    visible_counts,
)
from paperworks.generators.residual_masked_sampling import _guided, _unmask, refill, sample, vectors_of
from paperworks.objectives.residual_masking import ResidualMasking
from paperworks.tokenizers.quantizers import ResidualQuantizer
from paperworks.training.objective import Context


def quantizer(depth: int = 3) -> ResidualQuantizer:
    torch.manual_seed(0)
    made = ResidualQuantizer(depth, 6, 4).eval()
    for level in range(depth):
        torch.nn.init.normal_(made.book(level).embedding.weight, std=1 / (level + 1))
    return made


def model(depth: int = 3) -> ResidualMaskedTransformer:
    torch.manual_seed(1)
    return ResidualMaskedTransformer(3, 5, depth, 4, 16, 1, 2, 4).eval()


def classless() -> ResidualMaskedTransformer:
    return ResidualMaskedTransformer(0, 5, 3, 4, 16, 1, 2, 4).eval()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 100), st.data())
def test_counts_are_drawn_without_replacement(depth, positions, seed, data):
    total = data.draw(st.integers(0, depth * positions))
    counts = draw_masked_counts(7, positions, depth, torch.full((7,), total), torch.Generator().manual_seed(seed))
    assert (counts.sum(1) == total).all() and int(counts.max()) <= depth and int(counts.min()) >= 0
    assert torch.equal(visible_counts(keep_mask(counts, depth)), depth - counts)


@pytest.mark.parametrize(("positions", "depth"), [(2, 3), (3, 2)])
def test_probabilities_of_all_counts_sum_to_one_and_match_frequencies(positions, depth):
    for total in range(positions * depth + 1):
        options = [o for o in itertools.product(range(depth + 1), repeat=positions) if sum(o) == total]
        chances = log_probability_of_counts(torch.tensor(options), depth).exp()
        assert float(chances.sum()) == pytest.approx(1)
    drawn = draw_masked_counts(4000, positions, depth, torch.full((4000,), 3), torch.Generator().manual_seed(0))
    option = torch.tensor([1] * 3 if positions == 3 else [1, 2])
    frequency = float((drawn == option).all(1).float().mean())
    assert frequency == pytest.approx(float(log_probability_of_counts(option, depth).exp()), abs=0.03)


def test_a_single_component_is_a_gaussian_and_mixtures_are_averages_of_them():
    target, mean = torch.randn(2, 3, 4), torch.randn(2, 3, 1, 4)
    log_std = torch.full((2, 3, 1), 0.3)
    one = Mixture(torch.zeros(2, 3, 1), mean, log_std).negative_log_likelihood(target)
    normal = torch.distributions.Normal(mean[:, :, 0], math.exp(0.3)).log_prob(target).sum(-1)
    assert torch.allclose(one, -normal, atol=1e-5)
    both = Mixture(torch.zeros(2, 3, 2), mean.repeat(1, 1, 2, 1), log_std.repeat(1, 1, 2))
    assert torch.allclose(both.negative_log_likelihood(target), one, atol=1e-5)
    several = torch.randn(2, 3, 5, 4)
    each = torch.stack([-both.negative_log_likelihood(several[:, :, i]) for i in range(5)], -1)
    assert torch.allclose(both.log_densities(several), each, atol=1e-4)
    tiny = Mixture(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 4), torch.full((1, 1, 1), -100.0))
    assert tiny.negative_log_likelihood(torch.ones(1, 1, 4)).isfinite().all()


def test_only_hidden_levels_are_filled_and_greedily():
    code = quantizer()
    indices = torch.stack(code.encode(torch.randn(2, 5, 4)), -1)
    visible = torch.tensor([[0, 1, 2, 3, 1], [3, 3, 0, 0, 2]])
    wanted = torch.randn(2, 5, 4)
    filled = refill(code, indices, visible, wanted)
    shown = torch.arange(3) < visible[..., None]
    assert torch.equal(filled[shown], indices[shown])
    assert torch.equal(filled[0, 0], torch.stack(code.encode(wanted[:1, :1]), -1)[0, 0])
    last = (code.book(2).embedding.weight - wanted[0, 2]).square().sum(1).argmin()
    assert filled[0, 2, 2] == last


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100), st.data())
def test_tokens_appear_from_the_coarse_end_and_never_disappear(positions, depth, seed, data):
    generator = torch.Generator().manual_seed(seed)
    visible = torch.randint(0, depth + 1, (3, positions), generator=generator)
    hidden = int((depth - visible).sum(1).min())
    still = data.draw(st.integers(0, hidden))
    score = torch.randn(3, positions, depth, generator=generator)
    after = _unmask(score, visible, still)
    assert (after >= visible).all() and ((depth - after).sum(1) == still).all()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_passes_are_the_steps_whatever_the_depth(depth, guidance):
    net, code, calls = model(depth), quantizer(depth), []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    made = sample(net, code, torch.tensor([0, 1, 2]), Draws.seeded(0, 3), steps=4, guidance=guidance, noise=0.5)
    assert len(calls) == made.passes == 4 and len(made.indices) == depth
    alone = sample(net, code, torch.tensor([2]), Draws.seeded(0, 1, first=2), steps=4, guidance=guidance, noise=0.5)
    assert all(torch.equal(a[2:], b) for a, b in zip(made.indices, alone.indices))


def test_training_has_gradients_everywhere_and_scales_follow_the_data():
    net, code = model().train(), quantizer()
    tokens = torch.cat(code.encode(torch.randn(6, 5, 4)), 1)
    net.set_scales(vectors_of(code, tokens.unflatten(1, (3, 5)).transpose(1, 2)))
    assert float(net.scales[3]) > float(net.scales[1]) > 0
    loss = ResidualMasking(net, code).loss(
        {"tokens": tokens, "label": torch.zeros(6, dtype=torch.int64)}, "main", Context(0, 1, 0)
    )
    loss.total.backward()
    assert all(p.grad is not None for p in net.parameters()) and all(p.grad is None for p in code.parameters())


def test_the_schedule_ends_with_everything_visible():
    totals = [cosine_total(step / 16, 64) for step in range(17)]
    assert totals[0] == 64 and totals[-1] == 0 and totals == sorted(totals, reverse=True)
    assert torch.equal(
        cosine_total(torch.linspace(0, 0.9, 5), 64), torch.tensor([cosine_total(r, 64) for r in (0, 0.225, 0.45, 0.675, 0.9)])
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visible_counts(torch.tensor([[[False, True]]])), "coarser one of its position is masked"),
        (lambda: keep_mask(torch.tensor([[3]]), 2), "there are 2 levels"),
        (lambda: draw_masked_counts(1, 2, 2, torch.tensor([5]), torch.Generator()), "cannot be masked"),
        (lambda: sample(model(), quantizer(), torch.tensor([0]), Draws.seeded(0, 1), steps=0), "at least 1"),
        (lambda: sample(classless(), quantizer(), torch.tensor([0]), Draws.seeded(0, 1), guidance=1.0), "network of classes"),
        (lambda: sample(model(), quantizer(2), torch.tensor([0]), Draws.seeded(0, 1)), "the tokenizer has 2"),
        (lambda: model()(torch.tensor([4]), torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64)), r"0\.\.2"),
        (lambda: model()(torch.tensor([0]), torch.zeros(1, 6, 4), torch.zeros(1, 6, dtype=torch.int64)), "5 x 3"),
        (lambda: ResidualMaskedTransformer(mixtures=0), "at least 1 of each"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- the mixture's two forms, guidance ----------------------------------------------------------------------------------


def test_a_table_with_offsets_is_the_mixture_of_all_means():
    table, offset, logits = torch.randn(6, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 6)
    log_std = torch.randn(2, 3, 6) * 3  # some beyond the bounds
    whole = Mixture(logits, table + offset[..., None, :], log_std)
    short = Mixture(logits, table, log_std, offset)
    target, several, chosen = torch.randn(2, 3, 4), torch.randn(2, 3, 5, 4), torch.randint(6, (2, 3))
    differences = (target[..., None, :] - whole.mean).square().sum(-1)
    bounded = log_std.clamp(-7, 7)
    densities = -differences / (2 * (2 * bounded).exp()) - 4 * (bounded + math.log(2 * math.pi) / 2)
    expected = -torch.logsumexp(logits.log_softmax(-1) + densities, -1)
    for mixture in (whole, short):
        assert torch.allclose(mixture.negative_log_likelihood(target), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(whole.log_densities(several), short.log_densities(several), rtol=1e-3, atol=1e-2)
    assert torch.allclose(whole.mean_of(chosen), short.mean_of(chosen))
    assert float(short.std_of(chosen).log().abs().max()) <= 7 + 1e-4


def test_likelihoods_hold_one_number_a_component():
    net = ResidualMaskedTransformer(3, 5, 3, 4, 16, 1, 2, 4)
    found = net(torch.tensor([0, 1]), torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64))
    assert found.mean.shape == (4, 4) and found.offset is not None and found.offset.shape == (2, 5, 4)
    found.negative_log_likelihood(torch.randn(2, 5, 4)).sum().backward()
    assert all(part.grad is not None for part in (net.component_mean, net.offset.weight, net.head.weight))


def test_guidance_moves_shares_and_means():
    logits, offset = torch.randn(4, 5, 6), torch.randn(4, 5, 4)
    mixture = Mixture(logits, torch.randn(6, 4), torch.randn(4, 5, 6), offset)
    both, shares = (_guided(mixture, 2, 1.5, means) for means in (True, False))
    assert torch.allclose(both.logits, logits[:2] + 1.5 * (logits[:2] - logits[2:]), atol=1e-5)
    assert torch.allclose(both.offset, offset[:2] + 1.5 * (offset[:2] - offset[2:]), atol=1e-5)
    assert torch.equal(shares.offset, offset[:2]) and torch.equal(shares.logits, both.logits)
    assert torch.equal(both.log_std, mixture.log_std[:2]) and torch.equal(both.mean, mixture.mean)


def test_refilling_takes_a_mask_of_what_is_visible():
    code = quantizer()
    indices = torch.stack(code.encode(torch.randn(2, 5, 4)), -1)
    visible, wanted = torch.tensor([[0, 1, 2, 3, 1], [3, 3, 0, 0, 2]]), torch.randn(2, 5, 4)
    keep = torch.arange(3) < visible[..., None]
    assert torch.equal(refill(code, indices, keep, wanted), refill(code, indices, visible, wanted))
    keep[0, 0, 2] = True  # a fine level of a position whose coarse ones are hidden
    with pytest.raises(InputError, match="coarser one of its position is masked"):
        refill(code, indices, keep, wanted)
