"""ResFormer: positions, grids of any size, tokens in timm's form."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create
from paperworks.backbones.resformer import GlobalPosition, LocalAttention, ResFormer, sine_map
from paperworks.errors import InputError

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def small(**more) -> ResFormer:
    torch.manual_seed(0)
    model = ResFormer(**{**SMALL, "num_classes": 5, **more}).eval()
    for module in model.modules():
        if isinstance(module, LocalAttention):  # they start at zero, which would hide mistakes
            nn.init.normal_(module.get_v.weight, std=0.3)
            nn.init.normal_(module.get_v.bias, std=0.3)
    return model


# --- positions --------------------------------------------------------------------------------------------------------------


def test_the_sine_map_is_stretched_over_any_grid():
    found = sine_map((3, 5), 8)
    assert found.shape == (8, 3, 5)
    row, column = 2 * math.pi * 2 / 3, 2 * math.pi * 4 / 5  # the second of three rows, the fourth of five columns
    slow = 10000**-0.5
    rows = [math.sin(row), math.cos(row), math.sin(row * slow), math.cos(row * slow)]
    columns = [math.sin(column), math.cos(column), math.sin(column * slow), math.cos(column * slow)]
    assert found[:, 1, 3].tolist() == pytest.approx(rows + columns, abs=1e-5)
    assert torch.allclose(sine_map((6, 4), 8)[:4, 1, 0], sine_map((3, 4), 8)[:4, 0, 0], atol=1e-5)


def test_kept_maps_are_those_computed_anew_in_every_precision():
    positions = GlobalPosition(16)
    first, again = positions((4, 3)), positions((4, 3))
    assert torch.equal(first, again) and len(positions._maps) == 1
    with torch.inference_mode():
        positions((5, 5))
    positions((5, 5)).sum().backward()  # a map made in inference mode serves training too
    assert positions.to(torch.bfloat16)((4, 3)).dtype == torch.bfloat16
    for side in range(1, 60):
        positions((side, 1))
    assert len(positions._maps) == GlobalPosition.KEPT


def test_attention_adds_the_convolved_values_of_each_head():
    torch.manual_seed(0)
    layer, grid = LocalAttention(12, 3), (4, 5)
    plain = layer(x := torch.randn(2, 21, 12), grid)
    nn.init.normal_(layer.get_v.weight)
    nn.init.normal_(layer.get_v.bias)
    values = layer.qkv(x)[:, 1:, 24:].unflatten(2, (3, 4))
    maps = values.permute(0, 2, 3, 1).reshape(6, 4, 4, 5)  # a map of each head of each image
    local = layer.get_v(maps).reshape(2, 12, 20).transpose(1, 2)
    expected = plain + F.linear(F.pad(local, (0, 0, 1, 0)), layer.proj.weight)
    assert torch.allclose(layer(x, grid), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(layer(x, grid), expected, atol=1e-5)


# --- tokens and maps --------------------------------------------------------------------------------------------------------


def test_tokens_and_maps_have_timm_s_form_at_sizes_that_nothing_divides():
    model, x = small(), torch.rand(2, 3, 101, 75)
    with torch.no_grad():
        tokens, maps = model.forward_intermediates(x)
        assert tokens.shape == (2, 1 + 13 * 10, 24) and [m.shape for m in maps] == [(2, 24, 13, 10)] * 2
        assert torch.equal(model.forward_features(x), tokens)
        assert torch.allclose(model.forward_head(tokens), model(x), atol=1e-6)
        assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 0])
        [last] = model.forward_intermediates(x, indices=[-1], norm=True, intermediates_only=True)
        assert torch.equal(last.flatten(2).transpose(1, 2), tokens[:, 1:])
        assert torch.equal(model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)[0], maps[0])


def test_zeros_complete_the_last_patches():
    model, x = small(), torch.rand(1, 3, 30, 33)
    with torch.no_grad():
        assert torch.allclose(model(x), model(F.pad(x, (0, 7, 0, 2))), atol=1e-6)


def test_blocks_after_the_last_wanted_map_can_be_dropped():
    model, x = small(depth=3), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_intermediates(x, [1], intermediates_only=True)[0]
        assert model.prune_intermediate_layers([1]) == [1]
        assert len(model.blocks) == 2 and torch.equal(model.forward_intermediates(x, 1, intermediates_only=True)[0], expected)


def test_official_files_load_and_their_image_size_is_passed_over():
    model, x = small(), torch.rand(1, 3, 48, 48)
    again = ResFormer.from_official(model.state_dict(), img_size=[224, 160], num_classes=5, **SMALL).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert {"cls_token", "pos_embed.embed_layer.weight", "blocks.0.attn.get_v.bias"} <= set(model.state_dict())


def test_positions_and_class_token_do_not_decay():
    names = small().no_weight_decay()
    assert {"cls_token", "pos_embed.embed_layer.weight", "blocks.1.attn.get_v.weight"} <= names
    assert not any("qkv" in name or "mlp" in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"embed_dim": 22}, "embed_dim=22"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"embed_dim": 12, "num_heads": 4}, "even width"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_widths_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(InputError, match=words):
        ResFormer(**{**SMALL, **arguments})


def test_other_bad_input_is_named():
    with pytest.raises(InputError, match="vanishes"):
        small()(torch.rand(1, 3, 7, 40))
    with pytest.raises(InputError, match="token"):
        small().reset_classifier(3, global_pool="avg")
    with pytest.raises(InputError, match="NCHW"):
        small().forward_intermediates(torch.rand(1, 3, 32, 32), output_fmt="NLC")


@pytest.mark.parametrize("more", [{}, {"qkv_bias": False}])
def test_prepared_blocks_agree(more):
    model, x = small(**more), torch.rand(2, 3, 40, 24)
    fast = prepare_for_inference(model, precision="32", example=x, tolerance=1e-4)
    assert "transformer block" in str(fast.report)
    with torch.no_grad():
        assert torch.allclose(fast.forward_features(x), model.forward_features(x), atol=1e-4)


# --- counts and graphs ----------------------------------------------------------------------------------------------------


def test_counts_are_the_published_ones():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in create(f"resformer_{size}_patch16").parameters()) for size in ("tiny", "small", "base")
        ]
    assert counts == [5_689_192, 21_986_536, 86_431_720]


def test_traced_networks_take_other_sizes():
    model = small()
    traced = torch.jit.trace(model, torch.rand(1, 3, 32, 32), check_trace=False)
    x = torch.rand(2, 3, 30, 41)
    with torch.no_grad():
        assert torch.allclose(traced(x), model(x), atol=1e-5)
