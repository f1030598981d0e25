import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.layers.folding import fold_after, fold_before


def norm(channels: int) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels).double().eval()
    nn.init.normal_(module.running_mean)
    nn.init.uniform_(module.running_var, 0.1, 3)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_folding_is_exact(groups: int, per_group: int, kernel: int, stride: int, bias: bool, seed: int):
    torch.manual_seed(seed)
    channels, x = groups * per_group, torch.randn(2, groups * per_group, 7, 8).double()
    conv = nn.Conv2d(channels, 2 * channels, kernel, stride, groups=groups, bias=bias).double()
    before, after = norm(channels), norm(2 * channels)
    expected = after(conv(before(x)))
    assert fold_before(before, conv) and fold_after(conv, after)
    assert torch.allclose(conv(x), expected)


def test_padding_prevents_folding_from_the_front():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    weight = conv.weight.clone()
    assert not fold_before(norm(4), conv) and torch.equal(conv.weight, weight)


def test_batch_statistics_cannot_be_folded():
    conv = nn.Conv2d(4, 4, 1)
    assert not fold_after(conv, nn.BatchNorm2d(4, track_running_stats=False))


@pytest.mark.parametrize("affine", [True, False])
def test_linear_layers_fold_too(affine: bool):
    linear, after, x = nn.Linear(3, 5), nn.BatchNorm1d(5, affine=affine).eval(), torch.randn(4, 3)
    after.running_mean.normal_()
    expected = after(linear(x))
    assert fold_after(linear, after)
    assert torch.allclose(linear(x), expected, atol=1e-6)
