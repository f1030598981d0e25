"""The multi-scale tokenizer: key layout, residual coding, and what generators ask of it."""

import pytest
import torch
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQ, MultiScaleVQVAE, phi_index


@pytest.fixture
def quantizer() -> MultiScaleVQ:
    torch.manual_seed(0)
    made = MultiScaleVQ(64, 6, (1, 2, 3, 4))
    torch.nn.init.normal_(made.embedding.weight)
    return made.eval()


def features(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 6, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_published_tokenizer_has_109_million_parameters():
    with torch.device("meta"):
        model = MultiScaleVQVAE()
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 2) == 108.95
    parts = {
        name: sum(p.numel() for p in getattr(model, name).parameters()) / 1e6 for name in ("encoder", "decoder", "quantize")
    }
    assert parts["encoder"] == pytest.approx(44.11, abs=0.01)
    assert parts["decoder"] == pytest.approx(64.65, abs=0.01)
    assert parts["quantize"] == pytest.approx(0.168, abs=0.001)


def test_each_scale_takes_the_nearest_code_of_what_is_left(quantizer):
    indices, totals = quantizer.tokenize(features())
    residual = features()
    for scale, side in enumerate(quantizer.patch_nums):
        pooled = F.adaptive_avg_pool2d(residual, side).flatten(2).transpose(1, 2)
        distance = torch.cdist(pooled, quantizer.codes().expand(3, -1, -1))
        assert torch.equal(indices[scale], distance.argmin(-1))
        residual = features() - totals[scale]


def test_decoding_the_tokens_gives_the_features_that_encoding_reached(quantizer):
    indices, totals = quantizer.tokenize(features())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(quantizer.features_of(indices), totals))


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


def test_the_gradient_passes_straight_through_to_the_features(quantizer):
    given = features().requires_grad_()
    quantized = quantizer.train()(given)
    weight = torch.randn(given.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((quantized.features * weight).sum(), given)
    assert torch.equal(gradient, weight)
    assert torch.allclose(quantized.features, quantizer.features_of(quantized.indices)[-1], atol=1e-5)


def test_the_loss_weighs_commitment_by_beta(quantizer):
    quantizer.beta = 0.0
    without = quantizer(features()).loss
    quantizer.beta = 1.0
    assert torch.allclose(quantizer(features()).loss, 2 * without)


def test_dead_codes_come_back_and_living_ones_stay(quantizer):
    quantizer.train()
    found = quantizer(features()).indices
    quantizer.note_hits(found, momentum=0.0)
    used = torch.cat([part.flatten() for part in found]).unique()
    before = quantizer.codes().detach().clone()
    revived = quantizer.revive(torch.Generator().manual_seed(0), below=0.5)
    assert revived == 64 - len(used)
    assert torch.equal(quantizer.codes()[used], before[used])
    assert quantizer.usages(48) == pytest.approx([float((row > 0).float().mean()) for row in quantizer.ema_vocab_hit_SV])


def test_phi_ticks_of_the_released_weights():
    # four convolutions for ten scales (the released tokenizer), and two for four scales
    assert [phi_index(k / 9, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [phi_index(k / 3, 2) for k in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("share", [0, 1, 3])
def test_every_way_to_share_phi_round_trips_through_its_key_layout(share):
    made = MultiScaleVQ(16, 4, (1, 2, 4), share_quant_resi=share)
    again = MultiScaleVQ.from_official(made.state_dict(), patch_nums=(1, 2, 4), share_quant_resi=share)
    indices = [torch.randint(0, 16, (2, side * side)) for side in (1, 2, 4)]
    assert torch.equal(made.features_of(indices)[-1], again.features_of(indices)[-1])


def small() -> MultiScaleVQVAE:
    torch.manual_seed(0)
    return MultiScaleVQVAE(16, 4, 8, (1, 2), 1, (1, 2, 4), groups=4, in_channels=1).eval()


def test_usage_counts_of_other_scales_do_not_stop_loading_and_wrong_weights_do():
    model = small()
    state = model.state_dict() | {"quantize.ema_vocab_hit_SV": torch.zeros(10, 16)}
    kwargs = {"vocab_size": 16, "z_channels": 4, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "v_patch_nums": (1, 2, 4)}
    again = MultiScaleVQVAE.from_official(state, **kwargs, groups=4, in_channels=1, test_mode=True).eval()
    images = torch.rand(2, 1, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(model.encode(images), again.encode(images)))
    del state["encoder.conv_in.bias"]
    with pytest.raises(InputError, match=r"1 missing: encoder\.conv_in\.bias"):
        MultiScaleVQVAE.from_official(state, **kwargs, groups=4, in_channels=1)


def test_saved_and_loaded_again_it_is_the_same_tokenizer(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 1, 8, 8)
    again = MultiScaleVQVAE.from_pretrained(tmp_path)
    assert torch.equal(model.decode(model.encode(images)), again.decode(again.encode(images)))
    assert model.image_size == 8


@pytest.mark.parametrize(
    "images, named",
    [
        (torch.rand(1, 3, 8, 8), "3 channels, the tokenizer was built for 1"),
        (torch.rand(1, 1, 9, 9), "do not divide by 2"),
        (torch.rand(1, 1, 12, 12), "must give 4 x 4"),
    ],
)
def test_images_that_do_not_fit_are_named(images, named):
    with pytest.raises(InputError, match=named):
        small().encode(images)


def test_token_maps_of_other_scales_and_senseless_scales_are_named(quantizer):
    with pytest.raises(InputError, match=r"\[1, 4\] tokens do not fit"):
        quantizer.features_of([torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)])
    with pytest.raises(InputError, match="growing sides"):
        MultiScaleVQ(8, 4, (1, 3, 2))
    with pytest.raises(InputError, match="do not divide into 32 norm groups"):
        MultiScaleVQVAE(ch=16)
