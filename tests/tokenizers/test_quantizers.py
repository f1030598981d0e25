"""Quantisers: exact search, gradients, moving averages, levels, projected tables, and the health of code books."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.tokenizers.projected_quantizer import ProjectedQuantizer, class_wise_centres
from paperworks.tokenizers.quantizers import GumbelQuantizer, ResidualQuantizer, VectorQuantizer


def vectors(count: int = 12, channels: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, count // 2, channels, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 10_000))
def test_the_nearest_code_is_the_nearest_code(codes, channels, normalize, seed):
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(codes, channels, normalize=normalize, start=0.0)
    x = torch.randn(3, 5, channels)
    table = F.normalize(quantizer.embedding.weight, dim=1) if normalize else quantizer.embedding.weight
    searched = F.normalize(x, dim=-1) if normalize else x
    distances = (searched[..., None, :] - table).square().sum(-1)
    chosen = quantizer.encode(x)
    best = distances.gather(-1, chosen[..., None])[..., 0]
    assert torch.allclose(best, distances.amin(-1), atol=1e-5)
    assert torch.equal(quantizer(x).indices[0], chosen)
    assert torch.allclose(quantizer(x).features, quantizer.lookup(chosen), atol=1e-5)


@pytest.mark.parametrize("straight_through", ["raw", "searched"])
def test_gradients_pass_straight_through(straight_through):
    quantizer = VectorQuantizer(8, 4, normalize=True, straight_through=straight_through, start=0.0)
    x = vectors().requires_grad_()
    weights = torch.randn(4)
    (found,) = torch.autograd.grad((quantizer(x).features * weights).sum(), x)
    target = x if straight_through == "raw" else F.normalize(x, dim=-1)
    (expected,) = torch.autograd.grad((target * weights).sum(), x)
    assert torch.allclose(found, expected, atol=1e-6)


def test_each_half_of_the_loss_moves_its_own_side():
    x = vectors().requires_grad_()
    only_encoder = VectorQuantizer(8, 4, beta=1.0, codebook_weight=0.0)
    gradients = torch.autograd.grad(only_encoder(x).loss, [x, only_encoder.embedding.weight], allow_unused=True)
    assert gradients[0].abs().sum() > 0 and (gradients[1] is None or gradients[1].abs().sum() == 0)
    only_codes = VectorQuantizer(8, 4, beta=0.0)
    gradients = torch.autograd.grad(only_codes(x).loss, [x, only_codes.embedding.weight])
    assert gradients[0].abs().sum() == 0 and gradients[1].abs().sum() > 0


def test_averaged_codes_move_to_the_mean_of_their_vectors_in_training_only():
    quantizer = VectorQuantizer(2, 1, ema=0.5, beta=1.0)
    quantizer.embedding.weight.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.embed_avg.copy_(quantizer.embedding.weight)
    quantizer.cluster_size.fill_(1.0)
    before = quantizer.embedding.weight.clone()
    quantizer.eval()(torch.tensor([[[1.0], [9.0]]]))
    assert torch.equal(quantizer.embedding.weight, before)
    for _ in range(20):
        quantizer.train()(torch.tensor([[[1.0], [9.0]]]))
    assert torch.allclose(quantizer.embedding.weight, torch.tensor([[1.0], [9.0]]), atol=1e-2)
    assert not quantizer.embedding.weight.requires_grad


def test_frozen_codes_stay():
    quantizer = VectorQuantizer(8, 4, frozen=True)
    before = quantizer.embedding.weight.clone()
    quantizer.seed_codes(vectors(), torch.Generator())
    assert torch.equal(quantizer.embedding.weight, before) and not quantizer.embedding.weight.requires_grad


def test_codes_start_from_data_and_dead_ones_return_to_it():
    quantizer, x = VectorQuantizer(5, 4), vectors(20)
    quantizer.seed_codes(x, torch.Generator().manual_seed(0))
    rows = {tuple(row.tolist()) for row in x.flatten(0, 1)}
    assert all(tuple(row.tolist()) in rows for row in quantizer.embedding.weight)
    quantizer.note_hits(quantizer.hits([torch.tensor([[0, 0, 1, 2]])]), 0)
    assert float(quantizer.usage()) == pytest.approx(0.6)
    kept = quantizer.embedding.weight[:3].clone()
    assert quantizer.revive(torch.full((7, 4), 9.0), torch.Generator().manual_seed(0), below=0.5) == 2
    assert torch.equal(quantizer.embedding.weight[:3], kept) and (quantizer.embedding.weight[3:] == 9).all()


def test_soft_weights_of_one_code_are_that_code():
    quantizer = VectorQuantizer(6, 4, normalize=True, start=0.0)
    indices = torch.tensor([[0, 5, 2]])
    assert torch.allclose(quantizer.soft_lookup(F.one_hot(indices, 6).float()), quantizer.lookup(indices), atol=1e-6)


def test_gumbel_codes_are_mixed_in_training_and_the_nearest_ones_else():
    quantizer, x = GumbelQuantizer(8, 4), vectors()
    plain = VectorQuantizer(8, 4, normalize=True)
    plain.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer.eval()(x).indices[0], plain(x).indices[0])
    mixed = quantizer.train()(x)
    assert mixed.features.shape == x.shape and mixed.loss >= -1e-5 and mixed.features.requires_grad


# --- levels -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_more_levels_never_reconstruct_worse(depth, seed):
    torch.manual_seed(seed)
    quantizer, x = ResidualQuantizer(depth, 16, 3), torch.randn(4, 50, 3)
    quantizer.seed_codes(x, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for book in quantizer.books:
            book.embedding.weight[0] = 0  # a level may add nothing
    indices = quantizer.encode(x)
    errors = [float((quantizer.lookup(indices[:levels]) - x).square().mean()) for levels in range(1, depth + 1)]
    assert all(after <= before + 1e-6 for before, after in pairwise(errors))
    assert torch.allclose(quantizer(x).features, quantizer.lookup(indices), atol=1e-5)


def test_a_shared_table_serves_all_levels_with_unit_codes():
    quantizer, x = ResidualQuantizer(3, 16, 4, shared=True, normalize=True), vectors()
    assert len(quantizer.books) == 1
    found = quantizer(x)
    assert len(found.indices) == 3 and all(level.shape == (2, 6) for level in found.indices)
    steps = [quantizer.book(0).lookup(level) for level in found.indices]
    assert torch.allclose(torch.stack(steps).norm(dim=-1), torch.ones(3, 2, 6), atol=1e-5)
    with pytest.raises(InputError, match="4 levels of tokens"):
        quantizer.lookup([found.indices[0]] * 4)


@pytest.mark.parametrize("options", [{"shared": True, "normalize": True}, {}])
def test_every_level_pulls_at_the_encoder_and_codes_alone_follow_the_residual(options):
    quantizer, x = ResidualQuantizer(3, 16, 4, beta=1.0, codebook_weight=0.0, **options), vectors().requires_grad_()
    for book in quantizer.books:
        torch.nn.init.normal_(book.embedding.weight)
    (found,) = torch.autograd.grad(quantizer(x).loss, x)
    residual, total, expected = x, torch.zeros_like(x), torch.zeros(())
    for level in range(3):
        code = quantizer.book(level).lookup(quantizer.book(level).encode(residual)).detach()
        total = total + code
        left = (F.normalize(residual, dim=-1) - code) if options else (x - total)
        expected, residual = expected + left.square().mean() / 3, residual - code
    (wanted,) = torch.autograd.grad(expected, x)
    assert found.abs().sum() > 0 and torch.allclose(found, wanted, atol=1e-6)
    only_codes = ResidualQuantizer(3, 16, 4, beta=0.0, **options)
    (moved,) = torch.autograd.grad(only_codes(x).loss, x)
    assert moved.abs().sum() == 0


# --- a projected table --------------------------------------------------------------------------------------------------


def test_the_tree_finds_what_the_product_finds():
    torch.manual_seed(0)
    quantizer, x = ProjectedQuantizer(torch.randn(300, 20), 6), torch.randn(2, 40, 6)
    searched = quantizer.train().encode(x)
    assert torch.equal(quantizer.eval().encode(x), searched)
    assert torch.equal(quantizer(x).indices[0], searched)


def test_only_the_projector_is_trained_and_every_code_moves():
    quantizer = ProjectedQuantizer(torch.randn(30, 20), 6)
    assert {name for name, p in quantizer.named_parameters() if p.requires_grad} == {
        "codebook_projection.weight",
        "codebook_projection.bias",
    }
    before = quantizer.codes().detach().clone()
    optimizer = torch.optim.SGD(quantizer.codebook_projection.parameters(), lr=0.5)
    quantizer(vectors(12, 6)).loss.backward()
    optimizer.step()
    assert ((quantizer.codes() - before).abs().sum(1) > 0).all()


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_projected_codes_take_the_mean_and_covariance_of_the_first_batch(projector):
    torch.manual_seed(0)
    quantizer = ProjectedQuantizer(torch.randn(500, 20), 3, projector=projector)
    features = torch.randn(4, 100, 3) @ torch.tensor([[1.0, 0.5, 0], [0, 0.3, 0.1], [0, 0, 2]]) + torch.tensor([5.0, -2, 0])
    quantizer.seed_codes(features, torch.Generator())
    codes, wanted = quantizer.codes().detach(), features.flatten(0, 1)
    assert torch.allclose(codes.mean(0), wanted.mean(0), atol=1e-3)
    assert torch.allclose(torch.cov(codes.T), torch.cov(wanted.T), atol=1e-2)
    paper = ProjectedQuantizer(torch.randn(50, 20), 3, start="paper")
    before = paper.codebook_projection.weight.clone()
    paper.seed_codes(features, torch.Generator())
    assert torch.equal(paper.codebook_projection.weight, before)


def test_kept_projections_are_forgotten_when_weights_change():
    quantizer = ProjectedQuantizer(torch.randn(30, 20), 6).eval()
    with torch.no_grad():
        first = quantizer.codes().clone()
        state = {name: value * 2 for name, value in quantizer.state_dict().items()}
        quantizer.load_state_dict(state)
        assert not torch.equal(quantizer.codes(), first)


def test_a_new_table_is_checked_and_what_was_kept_of_the_old_one_is_forgotten():
    quantizer, x = ProjectedQuantizer(torch.randn(30, 20), 6).eval(), vectors(12, 6)
    with torch.no_grad():
        quantizer.encode(x), quantizer.codes()
        table = torch.randn(30, 20)
        quantizer.set_table(table)
        fresh = ProjectedQuantizer(table, 6).eval()
        fresh.codebook_projection.load_state_dict(quantizer.codebook_projection.state_dict())
        assert torch.equal(quantizer.codes(), fresh.codes()) and torch.equal(quantizer.encode(x), fresh.encode(x))
    table[3, 4] = float("nan")
    with pytest.raises(InputError, match="finite numbers"):
        quantizer.set_table(table)
    with pytest.raises(InputError, match="does not fit"):
        quantizer.set_table(torch.zeros(29, 20))


def test_centres_are_found_class_by_class():
    torch.manual_seed(0)
    features = [torch.cat((torch.randn(50, 2) * 0.1 + 5 * k, torch.randn(50, 2) * 0.1 - 5 * k - 3)) for k in (1, 2)]
    centres = class_wise_centres([*features, torch.tensor([[100.0, 100.0]])], 2)
    assert centres.shape == (5, 2) and centres[4].tolist() == [100, 100]
    assert sorted(round(float(c)) for c in centres[:2, 0]) == [-8, 5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorQuantizer(0, 4), "hold nothing"),
        (lambda: VectorQuantizer(4, 4, ema=1.0), "decay below 1"),
        (lambda: ProjectedQuantizer(torch.full((3, 2), float("nan")), 2), "finite numbers"),
        (lambda: VectorQuantizer(4, 4).lookup(torch.tensor([[4]])), r"0\.\.3"),
        (lambda: VectorQuantizer(4, 4).lookup(torch.tensor([[0.5]])), "soft_lookup"),
        (lambda: class_wise_centres([torch.full((3, 2), float("inf"))], 1), "not finite"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
