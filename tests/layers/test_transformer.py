"""Transformer blocks and positions."""

import math

import pytest
import torch
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.positions import resized_positions, rotary_1d, rotary_2d, rotate, sincos_2d
from paperworks.layers.transformer import (
    ACTIVATIONS,
    Attention,
    Block,
    FeedForward,
    GatedFeedForward,
    causal_attention,
    fuse_qkv,
    make_sequence_norm,
    masked_attention,
)


def test_attention_is_the_textbook_formula():
    layer, x = Attention(8, 2), torch.randn(1, 5, 8)
    q, k, v = layer.qkv(x).view(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = ((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v).transpose(1, 2).reshape(1, 5, 8)
    assert torch.allclose(layer(x), layer.proj(expected), atol=1e-6)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.allclose(layer(x, causal_attention), layer(x, masked_attention(mask)), atol=1e-6)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "swiglu", "geglu"])
@pytest.mark.parametrize("norm", ["layer", "layer_plain", "rms", "rms_plain"])
def test_every_block_trains_all_its_parameters(activation, norm):
    block = Block(8, 2, 12, activation=activation, norm=norm, qk_norm="rms", head_dim=6)
    block(torch.randn(2, 4, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters() if p.requires_grad)


def test_activations_and_gates():
    x = torch.randn(3, 8)
    assert torch.allclose(ACTIVATIONS["gelu_sigmoid"](x), x * torch.sigmoid(1.702 * x))
    assert torch.allclose(ACTIVATIONS["relu2"](x), F.relu(x) ** 2)
    gated = GatedFeedForward(8, 5)
    assert torch.allclose(gated(x), gated.fc2(F.silu(gated.gate(x)) * gated.fc1(x)))
    with pytest.raises(InputError, match="activation 'sin'"):
        FeedForward(8, 8, "sin")
    with pytest.raises(InputError, match="norm 'batch'"):
        make_sequence_norm("batch", 8)
    with pytest.raises(InputError, match="does not divide into 3 heads"):
        Attention(8, 3)


def test_attention_dropout_falls_on_probabilities_and_only_while_training():
    torch.manual_seed(0)
    plain, dropping = Attention(8, 2), Attention(8, 2, attention_dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(1, 6, 8)
    assert torch.equal(dropping.eval()(x), plain(x))
    with torch.no_grad():  # values of one and a projection that changes nothing: what is put out is the sum of probabilities
        dropping.qkv.weight[16:].zero_()
        dropping.qkv.bias[16:].fill_(1.0)
        dropping.proj.weight.copy_(torch.eye(8))
        dropping.proj.bias.zero_()
        sums = torch.stack([dropping.train()(x) for _ in range(400)])
        assert (sums - 1).abs().max() > 0.5 and (sums.mean((0, 2)) - 1).abs().max() < 0.1
        assert torch.allclose(dropping.eval()(x), torch.ones(1, 6, 8), atol=1e-6)
    assert (sums[..., :4] == sums[..., :1]).all(), "a head drops whole probabilities, not single values"


def test_every_mask_takes_attention_dropout_and_a_block_hands_it_on():
    mask, x = torch.ones(5, 5, dtype=torch.bool).tril(), torch.randn(2, 5, 8)
    block = Block(8, 2, 12, attention_dropout=0.4).train()
    for attend in (causal_attention, masked_attention(mask)):
        assert not torch.equal(block(x, attend), block(x, attend))
        assert torch.equal(block.eval()(x, attend), block(x, attend))
        block.train()
    with pytest.raises(InputError, match="a share below 1"):
        Attention(8, 2, attention_dropout=1.0)


def test_separate_projections_are_fused_in_order():
    parts = {f"a.{name}.weight": torch.full((2, 3), float(i)) for i, name in enumerate(("key", "query", "value"))}
    fused = fuse_qkv({**parts, "a.proj.weight": torch.zeros(1)})
    assert fused["a.qkv.weight"][:, 0].tolist() == [1, 1, 0, 0, 2, 2] and set(fused) == {"a.qkv.weight", "a.proj.weight"}


def test_rotations_keep_lengths_and_depend_on_distances_only():
    table = rotary_1d(torch.arange(10), 8)
    q, k = torch.randn(8), torch.randn(8)
    turned = [(rotate(q[None], table[i : i + 1]) @ rotate(k[None], table[j : j + 1]).T).item() for i, j in ((2, 5), (4, 7))]
    assert turned[0] == pytest.approx(turned[1], abs=1e-5)
    assert torch.allclose(rotate(q.expand(10, 8), table).norm(dim=1), q.norm().expand(10), atol=1e-5)
    assert torch.allclose(rotate(q[None], torch.tensor([[[0.0, 1.0]] * 4]))[0, :2], torch.stack((-q[1], q[0])), atol=1e-6)


def test_two_axes_take_half_of_the_channels_each():
    rows, columns = torch.tensor([0, 3]), torch.tensor([2, 0])
    table = rotary_2d(rows, columns, 8)
    assert torch.allclose(table[0, :2], torch.tensor([[1.0, 0.0]] * 2)) and torch.allclose(table[1, 2:], table[0, :2])
    fixed = sincos_2d(2, 3, 8)
    assert fixed.shape == (6, 8)
    assert torch.equal(fixed[0, :4], fixed[3, :4]) and torch.equal(fixed[0, 4:], fixed[1, 4:])  # same column, same row
    assert fixed[1, 0] == pytest.approx(math.sin(1))
    with pytest.raises(InputError, match="divisible by 4"):
        sincos_2d(2, 2, 6)


def test_learned_positions_change_size():
    table = torch.randn(4, 4, 6)
    assert torch.allclose(resized_positions(table, (4, 4)), table.flatten(0, 1), atol=1e-5)
    assert torch.allclose(resized_positions(torch.ones(4, 4, 6), (7, 2)), torch.ones(14, 6), atol=1e-5)
