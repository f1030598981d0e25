"""The multi-scale residual quantiser: residual coding, what generators ask of it, and a code book that stays in use."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.tokenizers.multi_scale_quantizer import MultiScaleVQ, phi_index


@pytest.fixture
def quantizer() -> MultiScaleVQ:
    torch.manual_seed(0)
    made = MultiScaleVQ(64, 6, (1, 2, 3, 4))
    torch.nn.init.normal_(made.embedding.weight)
    return made.eval()


def features(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 6, 4, 4, generator=torch.Generator().manual_seed(1))


def test_each_scale_takes_the_nearest_code_of_what_is_left(quantizer):
    indices, totals = quantizer.tokenize(features())
    residual = features()
    for scale, side in enumerate(quantizer.patch_nums):
        pooled = F.adaptive_avg_pool2d(residual, side).flatten(2).transpose(1, 2)
        distance = torch.cdist(pooled, quantizer.codes().expand(3, -1, -1))
        assert torch.equal(indices[scale], distance.argmin(-1))
        residual = features() - totals[scale]


def test_by_angle_the_length_of_codes_does_not_matter(quantizer):
    quantizer.using_znorm = True
    before = quantizer.tokenize(features())[0][0]
    with torch.no_grad():
        quantizer.embedding.weight.mul_(torch.rand(64, 1, generator=torch.Generator().manual_seed(3)) + 0.5)
    assert torch.equal(quantizer.tokenize(features())[0][0], before)
    quantizer.using_znorm = False
    assert not torch.equal(quantizer.tokenize(features(64))[0][0], before)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(1,), (3,), (1, 2), (1, 3, 5), (2, 4), (1, 2, 3, 4)]),
    st.sampled_from([0, 1, 2, 4]),
    st.booleans(),
    st.integers(0, 100),
)
def test_tokens_carry_all_that_encoding_reached(sides, share, angle, seed):
    torch.manual_seed(seed)
    quantizer = MultiScaleVQ(16, 3, sides, share_quant_resi=share, using_znorm=angle)
    torch.nn.init.normal_(quantizer.embedding.weight)
    given_features = torch.randn(2, 3, sides[-1], sides[-1])
    indices, totals = quantizer.tokenize(given_features)
    again = quantizer.features_of(indices)
    assert len(again) == len(sides) and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(again, totals))
    trained = quantizer.train()(given_features)
    assert all(torch.equal(a, b) for a, b in zip(trained.indices, indices))
    assert torch.allclose(trained.features, totals[-1], atol=1e-5)
    assert [len(vectors) for vectors in trained.vectors] == [2 * side * side for side in sides]


def test_teacher_forcing_inputs_are_what_sampling_would_feed(quantizer):
    indices, _ = quantizer.tokenize(features())
    state, fed = quantizer.begin(3), []
    for scale, found in enumerate(indices):
        side = quantizer.patch_nums[scale]
        vectors = quantizer.lookup(found).transpose(1, 2).unflatten(2, (side, side))
        state, following = quantizer.accumulate(scale, vectors, state)
        if following is not None:
            fed.append(following)
    assert torch.equal(torch.cat(fed, 1), quantizer.next_inputs(indices))
    assert quantizer.next_inputs(indices).shape == (3, 4 + 9 + 16, 6)


def test_the_gradient_passes_straight_through_to_the_features(quantizer):
    given = features().requires_grad_()
    quantized = quantizer.train()(given)
    weight = torch.randn(given.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((quantized.features * weight).sum(), given)
    assert torch.equal(gradient, weight)


def test_the_loss_weighs_commitment_by_beta_and_reaches_both_sides(quantizer):
    quantizer.beta = 0.0
    without = quantizer(features()).loss
    quantizer.beta = 1.0
    assert torch.allclose(quantizer(features()).loss, 2 * without)
    given = features().requires_grad_()
    towards = torch.autograd.grad(
        quantizer(given).loss, [given, quantizer.embedding.weight, *quantizer.quant_resi.parameters()]
    )
    assert all(gradient.abs().sum() > 0 for gradient in towards)


def test_tokens_are_the_same_under_autocast(quantizer):
    plain, _ = quantizer.tokenize(features(32))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, totals = quantizer.tokenize(features(32))
        assert quantizer(features(32)).features.dtype == totals[-1].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed))


def test_phi_ticks_of_the_released_weights():
    # four convolutions for ten scales (the released tokenizer), and two for four scales
    assert [phi_index(k / 9, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [phi_index(k / 3, 2) for k in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("share, count, keys", [(0, 0, 3), (0, 2, 2), (1, 0, 1), (3, 0, 3)])
def test_every_way_to_share_phi_round_trips_through_its_key_layout(share, count, keys):
    kwargs = {"share_quant_resi": share, "default_qresi_counts": count}
    made = MultiScaleVQ(16, 4, (1, 2, 4), **kwargs)
    names = {0: "quant_resi.{}.weight", 1: "quant_resi.qresi.weight", 3: "quant_resi.qresi_ls.{}.weight"}[share]
    assert {names.format(k) for k in range(keys)} == {k for k in made.state_dict() if k.endswith("weight") and "quant" in k}
    again = MultiScaleVQ.from_official(made.state_dict(), patch_nums=(1, 2, 4), **kwargs)
    indices = [torch.randint(0, 16, (2, side * side)) for side in (1, 2, 4)]
    assert torch.equal(made.features_of(indices)[-1], again.features_of(indices)[-1])


def test_without_phi_codes_are_added_as_they_are():
    plain = MultiScaleVQ(16, 4, (1, 2), quant_resi=0.0)
    assert sum(p.numel() for p in plain.parameters()) == 64
    indices = [torch.zeros(1, 1, dtype=torch.int64), torch.arange(4)[None]]
    expected = plain.lookup(indices[0])[0, 0] + plain.lookup(indices[1])[0, 3]
    assert torch.allclose(plain.features_of(indices)[-1][0, :, 1, 1], expected)


# --- the code book's health ---


def are_among(rows: torch.Tensor, others: torch.Tensor, tolerance: float) -> bool:
    return bool(((rows[:, None] - others[None]).abs().amax(2).amin(1) <= tolerance).all())


def test_seeded_codes_are_residuals_that_occur_and_nearly_all_are_used(quantizer):
    torch.nn.init.uniform_(quantizer.embedding.weight, -1 / 64, 1 / 64)
    many = features(64) + 3  # far from the initial codes
    before = torch.cat([found.flatten() for found in quantizer.tokenize(many)[0]]).unique()
    quantizer.seed_codes(many, torch.Generator().manual_seed(0))
    after = torch.cat([found.flatten() for found in quantizer.tokenize(many)[0]]).unique()
    assert len(before) < 20 < 56 < len(after)
    # the first quarter serves the first scale: means of whole maps
    means = many.mean((2, 3))
    assert are_among(quantizer.codes()[:16], means, 1e-5)


def test_dead_codes_come_back_and_living_ones_stay(quantizer):
    found = quantizer.train()(features())
    quantizer.note_hits(quantizer.hits(found.indices), step=0)
    used = torch.cat([part.flatten() for part in found.indices]).unique()
    assert quantizer.usage() == len(used) / 64
    before = quantizer.codes().detach().clone()
    lately = torch.cat(found.vectors)
    assert quantizer.revive(lately, torch.Generator().manual_seed(0), below=0.5) == 64 - len(used)
    assert torch.equal(quantizer.codes()[used], before[used])
    dead = torch.ones(64, dtype=torch.bool)
    dead[used] = False
    assert are_among(quantizer.codes()[dead], lately, 0)
    assert quantizer.revive(lately, torch.Generator().manual_seed(0), below=0.5) == 0  # they get time to be found


def test_usage_counts_codes_with_a_twelfth_of_their_share(quantizer):
    hits = torch.zeros(4, 64)
    hits[0, :8], hits[1, :16], hits[2] = 1.0, 0.05, 1.0
    quantizer.note_hits(hits, step=0)
    # 64 positions shared by 64 codes: one each, of which 0.08 are enough
    assert quantizer.usages(64).tolist() == [8 / 64, 0, 1, 0]
    quantizer.note_hits(torch.zeros(4, 64), step=50)
    assert quantizer.ema_vocab_hit_SV[2, 0] == pytest.approx(0.9)
    quantizer.note_hits(torch.zeros(4, 64), step=100)
    assert quantizer.ema_vocab_hit_SV[2, 0] == pytest.approx(0.9 * 0.99)


# --- bad input ---


def test_token_maps_that_do_not_fit_and_senseless_scales_are_named(quantizer):
    def maps(*counts: int) -> list[torch.Tensor]:
        return [torch.zeros(1, count, dtype=torch.int64) for count in counts]

    with pytest.raises(InputError, match=r"\[1, 4\] tokens do not fit"):
        quantizer.features_of(maps(1, 4))
    wrong = maps(1, 4, 9, 16)
    wrong[2][0, 5] = 64
    with pytest.raises(InputError, match=r"must lie in 0\.\.63, these go from 0 to 64"):
        quantizer.next_inputs(wrong)
    with pytest.raises(InputError, match="must give 4 x 4"):
        quantizer.tokenize(torch.zeros(1, 6, 5, 5))
    for sides in ((1, 3, 2), (), (0, 1)):
        with pytest.raises(InputError, match="growing sides"):
            MultiScaleVQ(8, 4, sides)
    with pytest.raises(InputError, match="holds nothing"):
        MultiScaleVQ(0, 4, (1,))
