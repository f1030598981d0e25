"""The CNN autoencoder: published sizes of five families, other families' weights, and the patch stem of small networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.autoencoder import Decoder, Encoder, ldm_weights, maskgit_names, to_signed, to_unit
from paperworks.layers.pretrained import load_official
from tests.parity.case import Case, parity_folder


@pytest.mark.parametrize(
    "kwargs, encoder, decoder",
    [
        ({"ch": 160, "z_channels": 32}, 44.11, 64.65),  # VAR, HMAR
        ({"z_channels": 256}, 29.30, 42.45),  # VQGAN-LC f16
        ({"z_channels": 256, "ch_mult": (1, 2, 2, 4), "attention": False}, 26.46, 38.26),  # VQGAN-LC f8
        ({"z_channels": 16, "double_z": True}, 28.27, 38.19),  # KL-16, whose decoder attends in the middle only
        ({"z_channels": 256, "style": "maskgit"}, 23.78, 30.48),  # MaskGIT-VQGAN
    ],
)
def test_published_sizes(kwargs, encoder, decoder):
    with torch.device("meta"):
        double_z = kwargs.pop("double_z", False)
        pair = Encoder(**kwargs, double_z=double_z), Decoder(**({"attention": False} if double_z else {}) | kwargs)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in pair]
    assert millions == pytest.approx([encoder, decoder], abs=0.006)


def recorded(slug: str, name: str) -> Case:
    path = parity_folder() / slug / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no recorded case {slug}/{name}")
    return Case.load(path)


def part(case: Case, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in case.weights.items() if name.startswith(prefix)}


@torch.no_grad()
def test_weights_of_the_vqgan_family_give_the_recorded_features_and_images():
    case = recorded("vqgan-lc", "vqmodel")
    given = case.kwargs["ddconfig"]
    names = ("z_channels", "in_channels", "ch", "ch_mult", "num_res_blocks", "double_z")
    shape = {name: given[name] for name in names}
    encoder = load_official(Encoder(**shape), ldm_weights(part(case, "encoder.")))
    del shape["double_z"]
    decoder = load_official(Decoder(**shape), ldm_weights(part(case, "decoder.")))
    before = load_official(nn.Conv2d(16, 8, 1), part(case, "quant_conv."))
    after = load_official(nn.Conv2d(8, 16, 1), part(case, "post_quant_conv."))
    assert torch.allclose(before(encoder(case.inputs["image"])), case.outputs["h"], atol=1e-5)
    assert torch.allclose(decoder(after(case.outputs["quant"])), case.outputs["reconstruction"], atol=1e-4)


@torch.no_grad()
def test_weights_of_maskgits_vqgan_give_the_recorded_features_and_images():
    case = recorded("titok", "maskgit_vqgan")
    given = case.kwargs
    shape = {
        "ch": given["hidden_channels"],
        "ch_mult": given["channel_mult"],
        "num_res_blocks": given["num_res_blocks"],
        "z_channels": given["z_channels"],
        "style": "maskgit",
    }
    encoder = load_official(Encoder(**shape), part(case, "encoder."), rename=maskgit_names)
    decoder = load_official(Decoder(**shape), part(case, "decoder."), rename=maskgit_names)
    assert torch.allclose(encoder(case.inputs["image"]), case.outputs["hidden"], atol=1e-5)
    codes = F.embedding(case.outputs["indices"], case.weights["quantize.embedding.weight"])
    quantized = codes.view(2, 8, 8, -1).permute(0, 3, 1, 2)
    assert torch.allclose(decoder(quantized), case.outputs["reconstruction"], atol=1e-4)


def test_a_patch_stem_keeps_the_shapes():
    shape = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 3, "in_channels": 1, "groups": 4, "patch": 4}
    encoder, decoder = Encoder(**shape), Decoder(**shape)
    images = torch.rand(2, 1, 16, 32)
    features = encoder(images)
    assert features.shape == (2, 3, 2, 4)
    assert decoder(features).shape == images.shape


def test_attention_only_where_asked():
    kinds = [type(m).__name__ for m in Encoder(ch=32, attention=False, middle_attention=False).modules()]
    assert "SpatialAttention" not in kinds
    assert sum(type(m).__name__ == "SpatialAttention" for m in Encoder(ch=32).modules()) == 3


def test_widths_that_do_not_divide_into_groups_are_named():
    with pytest.raises(InputError, match="ch=20 x 1 channels do not divide into 32"):
        Encoder(ch=20)


def test_ranges_are_inverse_and_clamped():
    images = torch.rand(2, 3, 4, 4)
    assert torch.allclose(to_unit(to_signed(images)), images, atol=1e-6)
    assert to_unit(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]
