"""T2T-ViT: soft splits, both attentions against their formulas, positions on any grid, the blocks of the study."""

import math

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.nn import functional as F

import paperworks  # noqa: F401  (registers the networks with timm)
from paperworks.analysis.counting import count_macs
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.t2t_blocks import DenseBlock, GhostAttention, GhostFeedForward, SqueezedAttention, T2TBlock
from paperworks.backbones.t2t_vit import DenseT2TViT, T2TViT, resize_positions, sinusoid_table
from paperworks.backbones.tokens_to_token import (
    TokenPerformer,
    TokensToToken,
    TokenTransformer,
    performer_attention,
    soft_split,
    split_size,
)
from paperworks.errors import InputError

SMALL = {"img_size": 48, "embed_dim": 24, "depth": 2, "num_heads": 2, "token_dim": 8, "num_classes": 5}


def lively(module: nn.Module) -> nn.Module:
    """Weights and norms that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


# --- tokens-to-token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(7, 4, 2), (3, 2, 1), (3, 1, 1), (4, 4, 0)])
def test_soft_splits_are_unfolded_windows_row_by_row(window):
    kernel, stride, padding = window
    x = torch.rand(2, 3, 19, 30)
    windows = soft_split(x, *window)
    assert windows.shape[1:3] == split_size((19, 30), window)
    assert torch.equal(windows.flatten(1, 2), F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2))


def test_performer_attention_is_a_ratio_of_positive_features():
    torch.manual_seed(0)
    kqv, w = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    k, q, v = kqv.split(4, -1)

    def features(x):
        return torch.exp(x @ w.T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(3)

    weights = features(q) @ features(k).transpose(1, 2)
    expected = weights @ v / (weights.sum(-1, keepdim=True) + 1e-8)
    assert torch.allclose(performer_attention(kqv, w).double(), expected, atol=1e-5)


def test_performer_attention_stays_in_float32_where_half_precision_would_overflow():
    w = math.sqrt(32) * torch.eye(32)
    kqv = torch.cat((w[:1], w[:1], torch.full((1, 32), 4.0)), 1).expand(1, 6, 96)
    assert math.exp(32 - 16) > torch.finfo(torch.float16).max  # the features of these keys and queries
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            found = performer_attention(kqv.to(dtype), w)
        assert found.dtype == torch.float32 and torch.allclose(found, torch.full_like(found, 4.0), rtol=1e-2)


def test_directions_are_orthogonal_fixed_and_saved():
    step = TokenPerformer(3, 16, (3, 2, 1))
    assert step.w.shape == (8, 16) and not step.w.requires_grad and "w" in step.state_dict()
    assert torch.allclose(step.w @ step.w.T, 8 * torch.eye(8), atol=1e-5)


def test_token_transformer_divides_by_the_windows_width_and_adds_the_values():
    step, x = lively(TokenTransformer(3, 8, (3, 2, 1))), torch.rand(1, 3, 8, 12)
    windows = F.layer_norm(F.unfold(x, 3, padding=1, stride=2).transpose(1, 2), (27,), step.norm1.weight, step.norm1.bias)
    q, k, v = step.attn["qkv"](windows).chunk(3, -1)
    tokens = v + step.attn["proj"]((q @ k.transpose(1, 2) / math.sqrt(27)).softmax(-1) @ v)
    tokens = tokens + step.mlp(step.norm2(tokens))
    found = step(x)
    assert found.shape == (1, 8, 4, 6)
    assert torch.allclose(found, tokens.transpose(1, 2).reshape(1, 8, 4, 6), atol=1e-5)


def test_the_last_projection_is_a_linear_layer_of_windows():
    module, x = lively(TokensToToken(3, 24, 8)), torch.rand(2, 3, 45, 70)
    maps = module.attention2(module.attention1(x))
    expected = F.linear(soft_split(maps, 3, 2, 1), module.project.weight, module.project.bias)
    found = module(x)
    assert module.grid((45, 70)) == (3, 5) and torch.allclose(found, expected.flatten(1, 2), atol=1e-5)


def test_dropout_of_the_performer_is_active_in_training_only():
    step, x = lively(TokenPerformer(3, 16, (3, 2, 1))), torch.rand(1, 3, 8, 8)
    assert torch.equal(step(x), step(x))
    step.train()
    assert not torch.equal(step(x), step(x))


def test_the_performers_cost_grows_with_the_tokens_and_softmax_with_their_square():
    def growth(kind):
        with torch.device("meta"):
            module = TokensToToken(tokens_type=kind)
            return count_macs(module, torch.zeros(1, 3, 448, 448)) / count_macs(module, torch.zeros(1, 3, 224, 224))

    assert growth("performer") == pytest.approx(4.0, abs=0.001)
    assert growth("transformer") == pytest.approx(14.0, abs=0.05)


# --- positions and sizes --------------------------------------------------------------------------------------------------


def test_positions_alternate_sines_and_cosines_from_the_class_token_on():
    table = sinusoid_table(4, 6)
    slow = 3 / 10000 ** (2 / 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert table[3, :4].tolist() == pytest.approx([math.sin(3), math.cos(3), math.sin(slow), math.cos(slow)], abs=1e-6)


def test_positions_are_resized_row_by_row_and_the_class_token_keeps_its_own():
    table = torch.zeros(1, 1 + 6, 1)
    table[0, :, 0] = torch.tensor([9.0, 0, 0, 0, 6, 6, 6])  # two rows of three
    found = resize_positions(table, (2, 3), (2, 5))[0, :, 0]
    assert found.tolist() == pytest.approx([9] + 5 * [0] + 5 * [6])
    assert torch.equal(resize_positions(table, (2, 3), (2, 3)), table)
    with pytest.raises(InputError, match="7 rows"):
        resize_positions(table, (2, 2), (3, 3))


@pytest.mark.parametrize("size", [(16, 16), (33, 200), (101, 75), (47, 48)])
def test_oblong_and_odd_images_give_maps_in_their_own_shape(size):
    model = lively(T2TViT(**SMALL))
    x = torch.rand(1, 3, *size)
    tokens, maps = model.forward_intermediates(x)
    height, width = model.tokens_to_token.grid(size)
    assert tokens.shape == (1, 1 + height * width, 24) and maps[-1].shape == (1, 24, height, width)
    before_norm = maps[-1].flatten(2).transpose(1, 2)
    assert torch.allclose(model.norm(before_norm), tokens[:, 1:], atol=1e-5)
    assert torch.allclose(maps[1], model.tokens_to_token.attention2(maps[0]), atol=1e-5)


def test_a_table_of_an_oblong_size_is_used_as_it_is(monkeypatch):
    model = lively(T2TViT(**{**SMALL, "img_size": (32, 80)}))
    assert model.grid == (2, 5) and model.pos_embed.shape == (1, 11, 24)
    monkeypatch.setattr("paperworks.backbones.t2t_vit.resize_positions", None)
    assert model(torch.rand(2, 3, 32, 80)).shape == (2, 5)


def test_official_weights_say_their_token_width_and_fit_another_size():
    source = lively(T2TViT(**SMALL))
    arguments = {name: value for name, value in SMALL.items() if name != "token_dim"}
    again = T2TViT.from_official(source.state_dict(), **arguments).eval()
    x = torch.rand(1, 3, 48, 48)
    assert torch.equal(again(x), source(x))
    larger = T2TViT.from_official(source.state_dict(), **{**arguments, "img_size": 96}).eval()
    assert larger.pos_embed.shape == (1, 37, 24)
    assert torch.allclose(larger(y := torch.rand(1, 3, 96, 96)), source(y), atol=1e-5)
    with pytest.raises(InputError, match="missing"):
        T2TViT.from_official(source.state_dict(), **{**arguments, "depth": 3})


# --- blocks ---------------------------------------------------------------------------------------------------------------


def test_the_scale_of_attention_can_be_given():
    block, x = lively(T2TBlock(8, 2, 2.0, qk_scale=0.3)), torch.randn(1, 5, 8)
    q, k, v = block.attn.qkv(block.norm1(x)).view(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.transpose(2, 3) * 0.3).softmax(-1) @ v).transpose(1, 2).reshape(1, 5, 8)
    after = x + block.attn.proj(mixed)
    assert torch.allclose(block(x), after + block.mlp(block.norm2(after)), atol=1e-5)


def test_squeezed_attention_gates_channels_by_their_mean_over_all_tokens():
    layer, x = lively(SqueezedAttention(32, 4, False, 0.0)), torch.randn(2, 5, 32)
    plain = super(SqueezedAttention, layer).forward(x)
    gate = layer.se_layer.fc(plain.mean(1))
    assert layer.se_layer.fc[0].weight.shape == (2, 32)
    assert torch.allclose(layer(x), plain * gate[:, None], atol=1e-6)


def test_half_of_a_ghost_is_a_scaled_copy():
    layer, x = lively(GhostAttention(8, 2, False, 0.0)), torch.randn(2, 5, 8)
    seen = {}
    layer(x, lambda q, k, v, scale: seen.setdefault("q", q))
    whole = seen["q"].transpose(1, 2).flatten(2)
    assert torch.allclose(whole[..., :4], layer.q(x))
    assert torch.allclose(whole[..., 4:], layer.q(x) * layer.cheap_operation_q.weight[:, 0, 0])
    mlp = lively(GhostFeedForward(8, 0.0))
    first = F.gelu(mlp.fc1(x))
    copies = [F.gelu(first * scale.weight[:, 0, 0]) for scale in (mlp.cheap_operation2, mlp.cheap_operation3)]
    assert torch.allclose(mlp(x), mlp.fc2(torch.cat((first, *copies), -1)), atol=1e-6)


def test_dense_blocks_keep_their_input_and_transitions_halve_it():
    block, x = lively(DenseBlock(4, 8, 2, 2.0)), torch.randn(2, 5, 8)
    assert block(x).shape == (2, 5, 12) and torch.equal(block(x)[..., :8], x)
    model = DenseT2TViT(4, block_config=(2, 1), img_size=32, embed_dim=8, num_heads=2, token_dim=8)
    assert [info["num_chs"] for info in model.feature_info] == [8, 8, 12, 16, 12]
    assert [info["module"] for info in model.feature_info][2:] == ["blocks.0", "blocks.1", "blocks.3"]
    assert model.num_features == 12


# --- protocol and inference --------------------------------------------------------------------------------------------------


def test_timm_gives_maps_and_cuts_the_network_behind_them():
    model = timm.create_model("t2t_vit_14", features_only=True, out_indices=(0, 1, 3), **{**SMALL, "num_classes": 0})
    maps = model(torch.rand(1, 3, 48, 64))
    assert [tuple(found.shape[1:]) for found in maps] == [(8, 12, 16), (8, 6, 8), (24, 3, 4)]
    cut = T2TViT(**SMALL)
    assert cut.prune_intermediate_layers([1]) == [1] and len(cut.blocks) == 0
    assert cut.forward_intermediates(torch.rand(1, 3, 48, 48), intermediates_only=True)[-1].shape == (1, 8, 6, 6)


def test_parameters_are_grouped_by_depth():
    model = T2TViT(**SMALL)
    depth = group_parameters(model, model.group_matcher(), reverse=True)
    names = ("tokens_to_token.attention1.w", "cls_token", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight")
    assert [depth[name] for name in names] == [0, 0, 1, 2, 3]
    assert model.no_weight_decay() == {"cls_token"}


@pytest.mark.parametrize("kind", ["performer", "transformer", "patch"])
def test_the_fused_form_is_the_network(kind):
    model = lively(T2TViT(**{**SMALL, "tokens_type": kind, "qkv_bias": True, "qk_scale": 0.4}))
    x = torch.rand(2, 3, 75, 50)
    fast = prepare_for_inference(model, precision="32", example=x, tolerance=2e-5)
    report = str(fast.report)
    assert "transformer block as four packed products, norms folded, activation and residuals in place (2x)" in report
    assert ("tokens-to-token step" in report) == (kind != "patch")


def test_hard_patches_have_no_maps_before_the_blocks():
    model = T2TViT(**{**SMALL, "tokens_type": "patch", "splits": [[3, 2, 1], [3, 2, 1], [3, 1, 1]]})
    assert [info["reduction"] for info in model.feature_info] == [4, 4] and model.grid == (12, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens_type": "convolution"}, "tokens_type='convolution'"),
        ({"splits": [[7, 4, 2]]}, "three times"),
        ({"block": "wide"}, "block='wide'"),
        ({"block": "ghost", "mlp_ratio": 2.0}, "mlp_ratio=2.0"),
        ({"num_heads": 5}, "5 heads"),
        ({"depth": 0}, "depth=0"),
        ({"img_size": 8}, "at least 16 pixels"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        T2TViT(**{**SMALL, **arguments})


def test_images_smaller_than_a_token_and_empty_stages_are_refused():
    with pytest.raises(InputError, match="at least 16x16"):
        T2TViT(**SMALL)(torch.rand(1, 3, 15, 48))
    with pytest.raises(InputError, match="block_config"):
        DenseT2TViT(block_config=(2, 0))
