"""VAR's tokenizer: size, key layout, images in and out, and who may use its tokens."""

import pytest
import torch

from paperworks.errors import InputError
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE, scales_for
from paperworks.tokenizers.protocol import Tokenizer, reconstruct


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
    assert model.image_size == 256 and sum(side**2 for side in model.patch_nums) == 680


def test_the_key_layout_is_that_of_the_released_checkpoint():
    with torch.device("meta"):
        keys = set(MultiScaleVQVAE().state_dict())
    assert {
        "encoder.down.0.block.0.conv1.weight",
        "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.down.3.downsample.conv.bias",
        "encoder.down.4.attn.1.qkv.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "decoder.up.4.attn.2.norm.weight",
        "decoder.up.1.upsample.conv.weight",
        "decoder.mid.block_2.norm2.bias",
        "quantize.quant_resi.qresi_ls.3.bias",
        "quantize.embedding.weight",
        "quantize.ema_vocab_hit_SV",
        "quant_conv.weight",
        "post_quant_conv.bias",
    } <= keys
    assert not any(".attn." in key and ".down.4." not in key and ".up.4." not in key for key in keys)


def small(**kwargs) -> MultiScaleVQVAE:
    torch.manual_seed(0)
    return MultiScaleVQVAE(16, 4, 8, (1, 2), 1, (1, 2, 4), **({"groups": 4, "in_channels": 1} | kwargs)).eval()


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
    model = small(patch=2)
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 1, 16, 16)
    again = MultiScaleVQVAE.from_pretrained(tmp_path)
    assert torch.equal(model.decode(model.encode(images)), again.decode(again.encode(images)))
    assert model.image_size == again.image_size == 16
    assert model.spec == again.spec


def test_reconstruction_counts_codes_over_all_images():
    model, images = small(), torch.rand(7, 1, 8, 8)
    made, usage = reconstruct(model, images, batch_size=3)
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
    assert int(usage.counts.sum()) == 7 * (1 + 4 + 16)
    assert torch.allclose(made[5:6], model.decode(model.encode(images[5:6])), atol=1e-5)


def test_encoder_and_decoder_run_under_autocast_and_tokens_stay_integers():
    model, images = small(), torch.rand(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        indices = model.encode(images)
        assert model.decode(indices).shape == images.shape
    assert [found.dtype for found in indices] == [torch.int64] * 3


def test_the_spec_follows_the_codes_and_nothing_else():
    model = small()
    assert isinstance(model, Tokenizer)
    spec = model.spec
    assert spec.tokens == 21 and spec.shapes == ((1, 1), (2, 2), (4, 4)) and spec.id.startswith("multiscale-8px-1.2.4-16x4-")
    with torch.no_grad():
        model.decoder.conv_out.weight.add_(1)  # tokens mean the same to a fine-tuned decoder
        model.quantize.note_hits(torch.ones(3, 16), 0)
    assert model.spec == spec
    assert small().bfloat16().spec.id == spec.id
    spec.check("")
    spec.check(spec.id)
    with torch.no_grad():
        model.quantize.embedding.weight[3] += 0.5
    with pytest.raises(InputError, match=r"the generator was trained on tokens of multiscale-8px-1\.2\.4-16x4-"):
        model.spec.check(spec.id)
    assert small(using_sa=False).spec.shapes == spec.shapes


@pytest.mark.parametrize(
    "side, sides",
    [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (5, (1, 2, 3, 4, 5)), (8, (1, 2, 3, 4, 6, 8)), (12, (1, 2, 3, 4, 6, 8, 12))],
)
def test_scales_grow_to_the_side(side, sides):
    assert scales_for(side) == sides


def test_published_scales():
    assert [sum(side**2 for side in scales_for(last)) for last in (16, 32, 64)] == [680, 2240, 9451]
    for last in range(1, 70):
        sides = scales_for(last)
        assert sides[-1] == last and list(sides) == sorted(set(sides))
    with pytest.raises(InputError, match="too small"):
        scales_for(0)


@pytest.mark.parametrize(
    "images, named",
    [
        (torch.rand(1, 3, 8, 8), "3 channels, the tokenizer was built for 1"),
        (torch.rand(1, 1, 9, 9), "do not divide by 2"),
        (torch.rand(1, 1, 12, 12), "must give 4 x 4"),
        (torch.full((1, 1, 8, 8), -0.9), r"must lie in \[0, 1\], these reach from -0\.9 to -0\.9"),
        (torch.randint(0, 255, (1, 1, 8, 8)), "floats .* not torch.int64"),
        (torch.rand(1, 8, 8), r"not torch.float32 \[1, 8, 8\]"),
    ],
)
def test_images_that_do_not_fit_are_named(images, named):
    with pytest.raises(InputError, match=named):
        small().encode(images)


def test_widths_that_do_not_divide_are_named():
    with pytest.raises(InputError, match="do not divide into 32 norm groups"):
        MultiScaleVQVAE(ch=16)
