"""TiTok and the MaskGIT-VQGAN behind it: shapes, both stages, what freezes, errors."""

import pytest
import torch
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.proxy_codes import ProxyCodes
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN
from paperworks.tokenizers.protocol import Tokenizer
from paperworks.tokenizers.titok import TiTok

PIXELS = {"z_channels": 6, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "groups": 4, "patch": 2}


def vqgan() -> MaskGITVQGAN:
    torch.manual_seed(1)
    return MaskGITVQGAN(16, 20, **PIXELS).eval()


def titok(**options) -> TiTok:
    torch.manual_seed(0)
    given = {"vocab_size": 12, "code_dim": 4, "proxy_codes": 20, **options}
    return TiTok(16, 4, 5, (16, 1, 2), (16, 1, 2), **given).eval()


def test_an_image_becomes_so_many_tokens_and_an_image_again():
    model = titok(pixel_decoder=PIXELS)
    assert isinstance(model, Tokenizer) and model.spec.shapes == ((5,),)
    (tokens,) = model.encode(torch.rand(2, 3, 16, 16))
    assert tokens.shape == (2, 5) and int(tokens.max()) < 12
    made = model.decode([tokens])
    assert made.shape == (2, 3, 16, 16) and float(made.min()) >= 0 and float(made.max()) <= 1
    assert torch.equal(made, model.decode([tokens[:, None]]))
    certain = F.one_hot(tokens, 12).float()
    assert torch.allclose(model.decode_soft([certain]), made, atol=1e-5)


def test_the_bridge_reads_the_expected_code():
    model = titok(pixel_decoder=PIXELS)
    features = model.quantize.lookup(model.encode(torch.rand(1, 3, 16, 16))[0])
    with torch.no_grad():
        last = model.decoder.ffn[-1]
        last.weight.zero_()
        last.bias.fill_(-1e4)
        last.bias[7] = 0.0  # certain of code 7 everywhere
        expected = model.pixel_quantize.lookup(torch.full((1, 16), 7)).view(1, 4, 4, 6).permute(0, 3, 1, 2)
        assert torch.allclose(model.decode_raw(features), model.pixel_decoder(expected), atol=1e-5)


def test_legacy_models_reshape_where_later_ones_transpose():
    images = torch.rand(1, 3, 16, 16)
    new, old = titok(), titok(legacy=True)
    assert not torch.allclose(new.features(images), old.features(images), atol=1e-3)


def test_stage_two_starts_from_stage_one_and_leaves_codes_alone():
    proxy, first = vqgan(), titok()
    second = titok(pixel_decoder=PIXELS)
    images = torch.rand(4, 3, 16, 16)
    (before,) = first.encode(images)
    second.start_second_stage(first, proxy)
    assert torch.equal(second.encode(images)[0], before)
    trained = {name.split(".")[0] for name, p in second.named_parameters() if p.requires_grad}
    assert trained == {"decoder", "pixel_decoder"}
    assert second.quantize.table(0) is None  # codes are never put elsewhere
    learner = TokenizerTraining(second, codebook_weight=0.0)
    loss = learner._compare(second.quantize(second.features(images)).features, images).loss
    loss.backward()
    assert second.pixel_decoder.conv_out.weight.grad.abs().sum() > 0 and second.decoder.ffn[0].weight.grad.abs().sum() > 0
    with pytest.raises(InputError, match="no second stage"):
        titok().start_second_stage(first, proxy)


def test_stage_one_predicts_the_teachers_codes():
    learner = ProxyCodes(titok(), vqgan())
    images = torch.rand(2, 3, 16, 16)
    logits, _, loss, _ = learner._compare(learner.tokenizer.quantize(learner.tokenizer.features(images)).features, images)
    wanted = learner.teacher.encode(images)[0]
    assert logits.shape == (2, 20, 16)
    assert torch.allclose(loss, F.cross_entropy(logits, wanted))
    assert not any(p.requires_grad for p in learner.teacher.parameters()) and not learner.train().teacher.training
    with pytest.raises(InputError, match="20 codes, but the decoder predicts 16 of 21"):
        ProxyCodes(titok(proxy_codes=21), vqgan())


def test_a_vae_has_latents_and_says_so():
    model = titok(quantizer="vae", target="pixels")
    latents = model.encode_latents(torch.rand(2, 3, 16, 16))
    assert latents.shape == (2, 4, 1, 5) and model.decode_latents(latents).shape == (2, 3, 16, 16)
    with pytest.raises(InputError, match="VAE"):
        model.encode(torch.rand(1, 3, 16, 16))
    with pytest.raises(InputError, match="codes, not latents"):
        titok().encode_latents(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: TiTok(30, 4), "does not divide"),
        (lambda: titok(quantizer="rvq"), "'vq' and 'vae'"),
        (lambda: TiTok(16, 4, encoder="huge"), "small, base, large"),
        (lambda: titok().encode(torch.rand(1, 3, 20, 20)), "positions are fixed for 16"),
        (lambda: titok().encode(torch.rand(1, 3, 16, 16) * 3 - 1), "0, 1"),
        (lambda: titok(pixel_decoder=PIXELS).decode([torch.zeros(1, 4, dtype=torch.int64)]), "4 tokens an image"),
        (lambda: titok(pixel_decoder=PIXELS).decode([torch.full((1, 5), 12)]), "0..11"),
        (lambda: titok().decode([torch.zeros(1, 5, dtype=torch.int64)]), "no pixel decoder"),
        (lambda: vqgan().decode([torch.zeros(1, 15, dtype=torch.int64)]), "no square map"),
    ],
)
def test_bad_input_is_named(act, message):
    with pytest.raises(InputError, match=message):
        act()


def test_weights_come_back_from_a_folder(tmp_path):
    model = titok(pixel_decoder=PIXELS)
    model.save_pretrained(tmp_path)
    again = TiTok.from_pretrained(tmp_path).eval()
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.decode(again.encode(images)), model.decode(model.encode(images)))
    assert again.spec.id == model.spec.id
