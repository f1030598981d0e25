"""DetailFlow's tokenizer: who sees whom, prefixes, planted errors; its resolution map."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.objectives.detail_training import DetailTraining, training_sequences
from paperworks.tokenizers.detailflow import DetailFlow
from paperworks.tokenizers.protocol import Tokenizer
from paperworks.tokenizers.resolution_map import ResolutionMap, resize
from paperworks.training.objective import Context


def small(**options) -> DetailFlow:
    torch.manual_seed(0)
    model = DetailFlow(16, 4, 8, 2, (16, 2, 2, 32), (16, 1, 2, 32), **{"vocab_size": 60, "code_dim": 4, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, so that mistakes show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_prefixes_decode_at_their_own_resolution():
    model = small()
    assert isinstance(model, Tokenizer)
    (tokens,) = model.encode(torch.rand(2, 3, 16, 16))
    sides = {count: model.decode_prefix(tokens, count).shape[-1] for count in model.map.lengths}
    assert sides == {count: model.map.decoded(count) for count in model.map.lengths}
    assert sides[1] == 4 and sides[8] == 16
    assert torch.equal(model.decode([tokens]), model.decode_prefix(tokens, 8))
    with pytest.raises(InputError, match="ends inside a group of 2: take"):
        model.decode_prefix(tokens, 5)


def test_a_prefix_does_not_know_later_tokens_and_patches_know_no_latent():
    model, images = small(), torch.rand(1, 3, 16, 16)
    z = model.features(images)
    assert torch.allclose(model.features(images, 4), z[:, :4], atol=1e-5)
    with torch.no_grad():
        model.encoder.latent_tokens[:, 5] = torch.randn(16)
    changed = model.features(images)
    assert torch.allclose(changed[:, :4], z[:, :4], atol=1e-5)
    assert not torch.allclose(changed[:, 4], z[:, 4], atol=1e-4)  # 4 and 5 are one group


def test_a_planted_error_changes_only_what_comes_after_it():
    model, images = small(), torch.rand(3, 3, 16, 16)
    z = model.features(images)
    clean = model.quantize(z)
    tokens = clean.indices[0]
    found = model.corrupt(images, z, clean, 4, torch.full((3, 8), 7))
    assert (found.start, found.end) == (4, 6)
    assert torch.equal(found.inputs[:, :4], tokens[:, :4]) and torch.equal(found.label[:, :6], tokens[:, :6])
    assert bool((found.inputs[:, 4:6] != tokens[:, 4:6]).all())
    assert torch.equal(found.inputs[:, 6:], found.label[:, 6:])
    assert torch.allclose(found.features, model.quantize.lookup(found.inputs), atol=1e-5)
    same = model.corrupt(images, z, clean, 4, torch.zeros(3, 8, dtype=torch.int64))
    assert torch.equal(same.inputs[:, :6], tokens[:, :6])  # the nearest code is no error
    with pytest.raises(InputError, match="without correction"):
        small(correction=False).features(images, 8, z[:, :2])


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_training_reaches_every_part_that_is_used(correction):
    learner = DetailTraining(small(), prefix_share=0.0, correction=correction, revive_every=0).train()
    batch = {"image": torch.rand(4, 3, 16, 16)}
    losses = learner.loss(batch, "generator", Context(1, 10, 0))
    total, _, logs = learner(batch, "generator", Context(1, 10, 0))
    assert losses.count == 4 and float(logs["mse"]) > 0
    total.backward()
    reached = {name for name, p in learner.tokenizer.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert ("refine_conv.weight" in reached) == (correction > 0)
    assert {"quant_conv.weight", "post_quant_conv.weight", "encoder.latent_tokens", "decoder.mask_token"} <= reached


def test_the_first_token_is_turned_towards_a_teacher():
    class Teacher(torch.nn.Module):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    learner = DetailTraining(
        small(), prefix_share=0.0, correction=0.0, revive_every=0, teacher=Teacher(), teacher_width=3, global_weight=2.0
    ).train()
    assert learner.global_projection is not None
    (main, *_) = learner.phases()
    assert main.modules == ("tokenizer", "global_projection")
    images = torch.rand(4, 3, 16, 16)
    features = learner._quantized(images, Context(0, 10, 0)).features
    found = learner._compare(features, images)
    cosine = torch.nn.functional.cosine_similarity(learner.global_projection(features[:, 0]), images.mean((2, 3)), dim=-1)
    assert float(found.logs["global"]) == pytest.approx(-float(cosine.mean()), rel=1e-5)
    learner.global_weight = 0.0
    plain = learner._compare(features, images)
    assert float(found.loss - plain.loss) == pytest.approx(-2 * float(cosine.mean()), rel=1e-3)


def test_prefix_steps_compare_with_the_shrunken_image():
    learner = DetailTraining(small(), prefix_share=1.0, correction=0.0, revive_every=0).train()
    images = torch.rand(2, 3, 16, 16)
    sides = set()
    for step in range(12):
        features = learner._quantized(images, Context(step, 20, 0)).features
        found = learner._compare(features, images)
        count, side = learner._prefix, learner.tokenizer.map.decoded(learner._prefix)
        assert count in learner.tokenizer.map.lengths and found.made.shape == found.real.shape == (2, 3, 16, 16)
        wanted = resize(resize(images, learner.tokenizer.map.resolution(count)), side).clamp(0, 1) * 2 - 1
        assert torch.allclose(found.real, resize(wanted, 16), atol=1e-5)
        made = learner.tokenizer.decode_signed(features[:, :count], side)
        assert torch.allclose(found.logs["mse"], (made - wanted).square().mean(), rtol=1e-4)
        sides.add(side)
    assert len(sides) > 1
    with pytest.raises(InputError, match="without correction"):
        DetailTraining(small(correction=False), correction=0.5)


# --- the map ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(2, 20), st.sampled_from([4, 8, 16]), st.floats(1.0, 3.0))
def test_resolution_grows_with_the_prefix_and_ends_at_the_image(group, groups, patch, power):
    found = ResolutionMap(64, group * groups, group, patch, power=power)
    sides = [found.resolution(count) for count in found.lengths]
    assert sides == sorted(sides) and sides[0] >= 1 and sides[-1] == 64
    for count in found.lengths:
        assert found.decoded(count) % patch == 0 and found.resolution(count) <= found.decoded(count) <= 64
        assert found.round_up(count) == count
    assert set(found.best()) == {found.decoded(count) for count in found.lengths}


@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 8, 12, 16]))
def test_errors_are_planted_where_something_can_still_be_repaired(seed, length):
    found = ResolutionMap(32, 16, 4, 4)
    start = found.corrupted(length, torch.Generator().manual_seed(seed))
    assert start is not None and found.corrupted_end(start) < 16  # of all 16 tokens some are left to repair it
    assert found.corrupted_end(start) <= (length if length <= 4 else length - 4)
    assert start < 4 or start % 4 == 0


@pytest.mark.parametrize(("tokens", "patch", "message"), [(10, 4, "groups of 4"), (8, 5, "patches of 5")])
def test_bad_sizes_are_named(tokens, patch, message):
    with pytest.raises(InputError, match=message):
        ResolutionMap(32, tokens, 4, patch)


def test_images_larger_than_trained_are_refused():
    with pytest.raises(InputError, match="at most 16"):
        small().encode(torch.rand(1, 3, 20, 20))


def test_before_quantising_all_features_pass_as_they_are():
    learner = DetailTraining(small(), prefix_share=1.0, correction=1.0, quantize_from=5, revive_every=0).train()
    images = torch.rand(2, 3, 16, 16)
    free = learner._quantized(images, Context(4, 20, 0))
    assert free.features.shape == (2, 8, 4) and float(free.loss) == 0 and learner._prefix == 8
    assert torch.allclose(free.features.norm(dim=-1), torch.ones(2, 8))
    later = learner._quantized(images, Context(5, 20, 0))
    assert float(later.loss) > 0 and learner._prefix < 8


def test_training_sequences_pair_an_error_with_what_repairs_it():
    model, images = small(), torch.rand(5, 3, 16, 16)
    found = training_sequences(model, images, torch.Generator().manual_seed(0), batch_size=2)
    assert set(found) == {"tokens", "erring", "repaired"} and all(part.shape == (5, 8) for part in found.values())
    assert torch.equal(found["tokens"], model.encode(images)[0])
    assert bool((found["erring"] != found["repaired"]).any())
    assert set(training_sequences(model, images, torch.Generator(), correction=False)) == {"tokens"}
