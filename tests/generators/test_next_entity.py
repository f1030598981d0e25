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
    draws, begin = Draws.seeded(1, 2), 0
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    if method == "sde":
        times = [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
    for number, size in enumerate(sizes):
        x = draws.normal(f"start_{number}", (2, size, 2)).double()
        for now, following in pairwise(times):
            tokens = made.tokens.clone()
            tokens[:, begin : begin + size] = x.float()
            at = torch.zeros(2, len(sizes))
            at[:, number] = now
            velocity = net(labels, tokens, at)[:, begin : begin + size].double()
            drift, noise = velocity, torch.zeros(())
            if method == "sde":  # the reverse equation for noise of variance 2 t, its score from the velocity
                score = (-(1 - now) * velocity - x) / (now**2 + (1 - now) * now)
                drift = velocity - 0.5 * (2 * now) * score
                if following > 0:
                    noise = (2 * now * (now - following)) ** 0.5 * draws.normal("eps", (2, size, 2)).double()
            x = x + drift * (following - now) + noise
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


def watched(net: NextEntityTransformer, context: str, batch, **options) -> tuple[float, list[torch.Tensor]]:
    """Loss of a batch, and labels, tokens, times and velocities of the pass that gave it."""
    seen: list[torch.Tensor] = []
    handle = net.register_forward_hook(lambda module, given, made: seen.extend((*given, made)))
    found = EntityFlow(net, context=context, **options).loss(batch, "main", Context(0, 1, 0))  # type: ignore[arg-type]
    handle.remove()
    assert found.count == len(batch["label"])
    return float(found.total.detach()) / len(batch["label"]), seen


def images(rows: int) -> dict[str, torch.Tensor]:
    return {"latents": torch.randn(rows, 2, 4, 4), "label": torch.arange(rows) % 3}


def test_every_entity_has_a_time_of_its_own():
    net, batch = model(), images(2000)
    loss, (labels, tokens, times, made) = watched(net, "noisy", batch, label_dropout=0.0)
    assert times.shape == (2000, 4) and torch.equal(labels, batch["label"])
    normal = times.logit()
    assert torch.allclose(normal.mean(0), torch.zeros(4), atol=0.1) and torch.allclose(normal.std(0), torch.ones(4), atol=0.1)
    assert float((torch.corrcoef(normal.T) - torch.eye(4)).abs().max()) < 0.1
    clean, t = net.entities.split(batch["latents"]), times.repeat_interleave(4, 1)[..., None]
    noise = (tokens - (1 - t) * clean) / t
    assert float(noise.std()) == pytest.approx(1, abs=0.05) and abs(float(noise.mean())) < 0.05
    assert loss == pytest.approx(float((made - (noise - clean)).square().mean().detach()), rel=1e-3)


def test_teacher_forcing_learns_every_entity_after_clean_ones():
    net, batch = model(), images(200)
    loss, (labels, tokens, times, made) = watched(net, "clean", batch, label_dropout=0.0)
    noisy_loss, (_, _, own, _) = watched(net, "noisy", batch, label_dropout=0.0)
    clean = net.entities.split(batch["latents"])
    assert times.shape == (800, 4) and torch.equal(labels, batch["label"].repeat(4))
    errors = []
    for number in range(4):
        mine, here = slice(200 * number, 200 * (number + 1)), slice(4 * number, 4 * (number + 1))
        others = torch.ones(16, dtype=torch.bool)
        others[here] = False
        assert times[mine, torch.arange(4) != number].eq(0).all() and torch.equal(times[mine, number], own[:, number])
        assert torch.equal(tokens[mine][:, others], clean[:, others])
        t = times[mine, number, None, None]
        noise = (tokens[mine, here] - (1 - t) * clean[:, here]) / t
        errors.append((made[mine, here] - (noise - clean[:, here])).square().mean())
    assert loss == pytest.approx(float(torch.stack(errors).mean().detach()), rel=1e-3) and loss != noisy_loss


def test_dropout_is_on_attention_too_and_hides_no_mask():
    net = model(dropout=0.5).train()
    attention, x = net.encoder_blocks[0].attn, torch.randn(1, 16, 16)
    used: list[float] = []
    attention(x, lambda q, k, v, scale, dropout=0.0: used.append(dropout) or v)
    attention.eval()(x, lambda q, k, v, scale, dropout=0.0: used.append(dropout) or v)
    assert used == [0.5, 0.0] and attention.dropout == 0.5
    net.train()
    for block in (*net.encoder_blocks, *net.decoder_blocks):
        block.attn.dropout = block.mlp.dropout = 0.0  # what is left falls on the attention
    labels, tokens, times = torch.tensor([1]), torch.randn(1, 16, 2), torch.rand(1, 4)
    changed = tokens.clone()
    changed[:, 4:] += 1

    def first(given: torch.Tensor, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return net(labels, given, times)[:, :4]

    assert torch.allclose(first(tokens, 0), first(changed, 0), atol=1e-6)
    assert not torch.allclose(first(tokens, 0), first(tokens, 1), atol=1e-3)


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


def official_names() -> list[str]:
    """Of MAR's file for two levels of one block, without the projections' weight and bias."""

    def block(name: str, widens: bool = False) -> list[str]:
        parts = ["norm1", "conv1", "norm2", "conv2", *(["nin_shortcut"] if widens else [])]
        return [f"{name}.{part}" for part in parts]

    def attention(name: str) -> list[str]:
        return [f"{name}.{part}" for part in ("norm", "q", "k", "v", "proj_out")]

    names = ["quant_conv", "post_quant_conv", "encoder.down.0.downsample.conv", "decoder.up.1.upsample.conv"]
    for half in ("encoder", "decoder"):
        names += [f"{half}.{part}" for part in ("conv_in", "norm_out", "conv_out")]
        names += block(f"{half}.mid.block_1") + attention(f"{half}.mid.attn_1") + block(f"{half}.mid.block_2")
    names += block("encoder.down.0.block.0") + block("encoder.down.1.block.0", widens=True) + attention("encoder.down.1.attn.0")
    for level in (1, 0):
        names += block(f"decoder.up.{level}.block.0", widens=level == 0) + block(f"decoder.up.{level}.block.1")
    return names


def test_released_autoencoders_load():
    torch.manual_seed(0)
    settings = {"image_size": 16, "latent_channels": 3, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "groups": 4}
    net = KLAutoencoder(**settings).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours, theirs = net.state_dict(), {}
    for name in official_names():
        stem, _, last = name.rpartition(".")
        for kind in ("weight", "bias"):
            if last in ("q", "k", "v"):
                theirs[f"{name}.{kind}"] = ours[f"{stem}.qkv.{kind}"].chunk(3)["qkv".index(last)]
            else:
                theirs[f"{name}.{kind}"] = ours[f"{name}.{kind}"]
    loaded = KLAutoencoder.from_official({**theirs, "loss.logvar": torch.zeros(())}, **settings).eval()
    assert float(loaded.scale) == pytest.approx(0.2325)
    pictures = torch.rand(2, 3, 16, 16)
    assert torch.allclose(loaded.encode_latents(pictures), 0.2325 * net.encode_latents(pictures), atol=1e-6)
    latents = torch.randn(2, 3, 8, 8)
    assert torch.allclose(loaded.decode_latents(0.2325 * latents), net.decode_latents(latents), atol=1e-5)
    del theirs["decoder.conv_in.bias"]
    with pytest.raises(InputError, match=r"1 missing: decoder\.conv_in\.bias"):
        KLAutoencoder.from_official(theirs, **settings)


def test_moments_are_those_that_samples_come_from():
    torch.manual_seed(0)
    net = KLAutoencoder(16, 3, ch=8, ch_mult=(1, 2), num_res_blocks=1, groups=4, patch=2, in_channels=1).eval()
    net.scale.fill_(0.5)
    pictures = torch.rand(4, 1, 16, 16)
    mean, deviation = net.encode_moments(pictures)
    given_mean, log_variance = net.features(pictures).chunk(2, 1)
    assert torch.allclose(mean, given_mean / 2) and torch.allclose(deviation, (log_variance / 2).exp() / 2)
    assert torch.equal(net.encode_latents(pictures), mean)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(net.encode_latents(pictures, torch.Generator().manual_seed(3)), mean + deviation * noise)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_entities("cell", 4, 4, 3), "does not divide into cell entities of 3"),
        (lambda: make_entities("scale", 6, 6, 3), "power of two"),
        (lambda: make_entities("row", 4, 4), "there are token"),
        (lambda: sample(model(), torch.tensor([0]), Draws.seeded(0, 1), guidance=0.5), "1 switches it off"),
        (lambda: sample(model(), torch.tensor([0]), Draws.seeded(0, 1), steps=1), "at least 2"),
        (lambda: sample(model().train(), torch.tensor([0]), Draws.seeded(0, 1)), r"model\.eval\(\)"),
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
