"""xAR: entities, what a token may see, cached sampling against full passes, flow matching, the Gaussian autoencoder."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import NextEntityTransformer, make_entities, time_features
from paperworks.generators.next_entity_sampling import sample
from paperworks.objectives.flow_matching import EntityFlow, noised
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.tokenizers.kl_autoencoder import GaussianPosterior, KLAutoencoder
from paperworks.training import TrainConfig, fit
from paperworks.training.objective import Context

KINDS = ("token", "cell", "subsample", "scale", "image")


def model(kind: str = "cell", **options) -> NextEntityTransformer:
    torch.manual_seed(0)
    return NextEntityTransformer(3, 4, 2, 16, 1, 2, entity=kind, entity_size=2, **options).eval()  # type: ignore[arg-type]


@given(st.sampled_from(KINDS), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3))
def test_every_entity_covers_the_grid_once_and_merging_undoes_splitting(kind, size, rows, columns):
    height, width = rows * size, columns * size
    entities = make_entities(kind, height, width, size)
    assert sorted(entities.order.tolist()) == list(range(height * width)) and sum(entities.sizes) == height * width
    latents = torch.randn(2, 3, height, width)
    assert torch.equal(entities.merge(entities.split(latents), height, width), latents)


def test_cells_are_neighbours_subsamples_are_far_apart_and_scales_are_nested():
    assert make_entities("cell", 4, 4, 2).order[:4].tolist() == [0, 1, 4, 5]
    assert make_entities("subsample", 4, 4, 2).order[:4].tolist() == [0, 2, 8, 10]
    scale = make_entities("scale", 4, 4, 4)
    assert scale.sizes == (1, 3, 12) and scale.order[:4].tolist() == [0, 2, 8, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_sees_its_entity_and_earlier_ones_only(kind):
    net = model(kind)
    count = len(net.entities.sizes)
    labels, tokens, times = torch.tensor([1]), torch.randn(1, 16, 2), torch.rand(1, count)
    whole = net(labels, tokens, times)
    first = net.entities.sizes[0]
    changed = tokens.clone()
    changed[:, first:] += 1
    after = net(labels, changed, times)
    assert torch.allclose(whole[:, :first], after[:, :first], atol=1e-6)
    if count > 1:
        earlier = tokens.clone()
        earlier[:, :first] += 1
        assert not torch.allclose(net(labels, earlier, times)[:, -1], whole[:, -1], atol=1e-5)


@pytest.mark.parametrize("method", ["sde", "ode"])
@pytest.mark.parametrize("kind", ["cell", "token", "image"])
def test_cached_sampling_follows_the_velocities_of_full_passes(kind, method):
    """Replays every step with the whole sequence: clean entities at time 0, the present one at its own."""
    net, labels, steps = model(kind), torch.tensor([0, 2]), 3
    made = sample(net, labels, Draws.seeded(1, 2), steps=steps, guidance=1.0, method=method)
    sizes = net.entities.sizes
    assert made.passes == len(sizes) * steps
    if method == "sde":
        return
    draws, begin = Draws.seeded(1, 2), 0
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    for number, size in enumerate(sizes):
        x = draws.normal(f"start_{number}", (2, size, 2)).double()
        for now, following in pairwise(times):
            tokens = made.tokens.clone()
            tokens[:, begin : begin + size] = x.float()
            at = torch.zeros(2, len(sizes))
            at[:, number] = now
            velocity = net(labels, tokens, at)[:, begin : begin + size].double()
            x = x + velocity * (following - now)
        assert torch.allclose(made.tokens[:, begin : begin + size], x.float(), atol=1e-4)
        begin += size


def test_guidance_grows_from_nothing_and_images_do_not_depend_on_the_batch():
    net = model()
    one, other = (sample(net, torch.tensor([0, 1]), Draws.seeded(0, 2), steps=3, guidance=g).tokens for g in (1.0, 4.0))
    assert torch.allclose(one[:, :4], other[:, :4], atol=1e-5) and not torch.allclose(one[:, 12:], other[:, 12:], atol=1e-4)
    alone = sample(net, torch.tensor([1]), Draws.seeded(0, 1, first=1), steps=3, guidance=4.0).tokens
    assert torch.allclose(alone, other[1:], atol=1e-5)


def test_the_path_is_straight_and_both_contexts_train():
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    given_, velocity = noised(clean, noise, torch.tensor(0.25))
    assert torch.allclose(given_ - 0.25 * velocity, clean, atol=1e-6)
    assert torch.allclose(given_ + 0.75 * velocity, noise, atol=1e-6)
    batch = {"latents": torch.randn(6, 2, 4, 4), "label": torch.zeros(6, dtype=torch.int64)}
    for context in ("noisy", "clean"):
        net = model().train()
        EntityFlow(net, context=context).loss(batch, "main", Context(0, 1, 0)).total.backward()
        assert all(p.grad is not None for p in net.parameters())


def test_times_are_embedded_in_thousandths():
    assert torch.equal(time_features(torch.tensor(0.5001)), time_features(torch.tensor(0.5009)))
    assert time_features(torch.tensor(0.0))[:128].eq(1).all()


def test_the_divergence_is_that_of_gaussians():
    posterior = GaussianPosterior(weight=1.0).eval()
    mean, log_variance = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    found = posterior(torch.cat((mean, log_variance), 1))
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    assert torch.allclose(found.loss, expected, rtol=1e-4) and torch.equal(found.features, mean)


def test_the_autoencoder_trains_scales_and_comes_back(tmp_path):
    torch.manual_seed(0)
    net = KLAutoencoder(16, 3, ch=8, ch_mult=(1, 2), num_res_blocks=1, groups=4, patch=2, in_channels=1)
    images = torch.rand(16, 1, 16, 16)

    class Data:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return {"image": images[index]}

    before = net.decoder.last_layer.clone()
    fit(TokenizerTraining(net, revive_every=0), Data(), TrainConfig(3, 8, precision="32"), tmp_path / "fit", label="")  # type: ignore[arg-type]
    assert not torch.equal(net.decoder.last_layer, before)
    net.eval().set_scale(images)
    latents = net.encode_latents(images)
    assert latents.shape == (16, 3, 4, 4) and net.side == 4 and float(latents.std()) == pytest.approx(1, rel=1e-3)
    assert not torch.equal(net.encode_latents(images, torch.Generator().manual_seed(0)), latents)
    net.save_pretrained(tmp_path / "model")
    again = KLAutoencoder.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(again.decode_latents(latents), net.decode_latents(latents))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_entities("cell", 4, 4, 3), "does not divide into cell entities of 3"),
        (lambda: make_entities("scale", 6, 6, 3), "power of two"),
        (lambda: make_entities("row", 4, 4), "there are token"),
        (lambda: sample(model(), torch.tensor([0]), Draws.seeded(0, 1), guidance=0.5), "1 switches it off"),
        (lambda: sample(model(), torch.tensor([0]), Draws.seeded(0, 1), steps=1), "at least 2"),
        (lambda: sample(model(), torch.tensor([4]), Draws.seeded(0, 1)), r"0\.\.2"),
        (lambda: model()(torch.tensor([0]), torch.zeros(1, 16, 2), torch.full((1, 4), 1.5)), r"lie in \[0, 1\]"),
        (lambda: EntityFlow(model(), context="dirty"), "'noisy' and 'clean'"),
        (lambda: KLAutoencoder(30), "does not divide by 16"),
        (lambda: GaussianPosterior(-1), "not be negative"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
