"""ViT-VQGAN's and VQGAN-LC's tokenizers: shapes, protocol, training, persistence, errors."""

import pytest
import torch
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.tokenizers.protocol import Tokenizer, reconstruct
from paperworks.tokenizers.vit_vqgan import ViTVQGAN
from paperworks.tokenizers.vqgan_lc import VQGANLC
from paperworks.training import TrainConfig, fit

SIZE = {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "head_dim": 8}


def vit(**options) -> ViTVQGAN:
    torch.manual_seed(0)
    return ViTVQGAN(16, 4, SIZE, SIZE, code_dim=4, vocab_size=32, in_channels=1, **options).eval()


def cnn(kind: str = "projected", **options) -> VQGANLC:
    torch.manual_seed(0)
    sizes = {"z_channels": 8, "ch": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "groups": 4, "in_channels": 1}
    model = VQGANLC(16, 32, 10, 4, kind=kind, **{**sizes, **options}).eval()
    if kind.startswith("projected"):
        model.set_table(torch.randn(32, 10))
    return model


BUILDS = {
    "vit": vit,
    "vit residual": lambda: vit(quantizer="residual", num_quantizers=3),
    "vit gumbel": lambda: vit(quantizer="gumbel"),
    **{kind: lambda kind=kind: cnn(kind) for kind in ("projected", "projected_mlp", "fc", "fc_l2", "ema", "fixed")},
    "patched cnn": lambda: cnn(patch=2, ch_mult=(1, 2)),
}


@pytest.mark.parametrize("name", list(BUILDS))
def test_images_become_tokens_and_come_back_in_range(name, tmp_path):
    model, images = BUILDS[name](), torch.rand(3, 1, 16, 16)
    assert isinstance(model, Tokenizer)
    tokens = model.encode(images)
    assert [tuple(found.shape) for found in tokens] == [(3, torch.Size(shape).numel()) for shape in model.spec.shapes]
    made = model.decode(tokens)
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
    assert torch.allclose(model.encode(images[1:2])[0], tokens[0][1:2])
    again_made, usage = reconstruct(model, images)
    assert torch.allclose(again_made, made, atol=1e-5) and int(usage.counts.sum()) == 3 * model.spec.tokens
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again.decode(tokens), made) and again.spec == model.spec


@pytest.mark.parametrize("name", list(BUILDS))
def test_they_train_with_the_common_objective(name, tmp_path):
    images = torch.rand(16, 1, 16, 16)

    class Data:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return {"image": images[index]}

    model = BUILDS[name]().train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    fit(TokenizerTraining(model), Data(), TrainConfig(3, 8, precision="32"), tmp_path, label="")  # type: ignore[arg-type]
    moved = [key for key, value in model.named_parameters() if value.requires_grad and not torch.equal(value, before[key])]
    assert any("encoder" in key for key in moved) and any("decoder" in key for key in moved)
    fixed = [key for key, value in model.named_parameters() if "tok_embeddings" in key or "positions" in key]
    assert all(key not in moved for key in fixed)


@pytest.mark.parametrize("name", ["vit", "projected", "fc"])
def test_soft_weights_of_one_code_each_decode_to_the_same_image(name):
    model, images = BUILDS[name](), torch.rand(2, 1, 16, 16)
    tokens = model.encode(images)
    weights = F.one_hot(tokens[0], model.vocab_size).float()
    assert torch.allclose(model.decode_soft([weights]), model.decode(tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vit().encode(torch.rand(1, 1, 20, 20)), "positions are fixed for 16"),
        (lambda: vit().encode(torch.rand(1, 3, 16, 16)), "3 channels"),
        (lambda: vit().decode([torch.zeros(1, 9, dtype=torch.int64)]), "this tokenizer has 16"),
        (lambda: ViTVQGAN(30, 8), "does not divide into patches"),
        (lambda: vit(quantizer="fuzzy"), "there are vq, residual, gumbel"),
        (lambda: cnn("fc").set_table(torch.zeros(32, 10)), "has no frozen table"),
        (lambda: cnn().set_table(torch.zeros(31, 10)), "does not fit"),
        (lambda: cnn().encode(torch.rand(1, 1, 18, 18)), "do not divide by 4"),
        (lambda: cnn().decode([torch.zeros(1, 9, dtype=torch.int64)]), "9 tokens an image, this tokenizer has 16"),
        (lambda: cnn("other"), "there are projected"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


DD = {"resolution": 16, "ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 8, "in_channels": 1}


@pytest.mark.parametrize(("listed", "attention"), [([], False), ([2], False), ([4], True), ([4, 2], True)])
def test_official_attention_is_where_a_listed_resolution_is_reached(listed, attention):
    made = VQGANLC(16, 32, 10, 4, **{k: v for k, v in DD.items() if k != "resolution"}, attention=attention)
    weights = {key.removeprefix("quantize."): value for key, value in made.state_dict().items() if "hit" not in key}
    for key in [key for key in weights if ".qkv." in key]:
        parts = weights.pop(key).chunk(3)
        weights |= {key.replace(".qkv.", f".{name}."): part for name, part in zip("qkv", parts)}
    official = {"ddconfig": {**DD, "attn_resolutions": listed}, "n_vision_words": 32, "codebook_dim": 10, "embed_dim": 4}
    loaded = VQGANLC.from_official(weights, **official)
    assert bool(loaded.encoder.down[2].attn) == attention and not loaded.encoder.down[1].attn


def test_official_attention_above_the_lowest_resolution_is_refused():
    official = {"ddconfig": {**DD, "attn_resolutions": [8, 4]}, "n_vision_words": 32, "codebook_dim": 10, "embed_dim": 4}
    with pytest.raises(InputError, match=r"attn_resolutions=\[8\]"):
        VQGANLC.from_official({}, **official)
