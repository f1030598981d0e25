"""Gates per channel."""

import pytest
import torch
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.channel_attention import (
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    LinearSqueezeExcite,
    SqueezeExcite,
)


def test_squeeze_and_excitation_is_two_products_on_the_mean():
    layer, x = SqueezeExcite(8, 3), torch.randn(2, 8, 5, 4)
    gate = layer.fc2(F.relu(layer.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()
    assert torch.allclose(layer(x), x * gate, atol=1e-6)
    with pytest.raises(InputError, match="at least 1"):
        SqueezeExcite(8, 0)


@pytest.mark.parametrize(
    "layer", [SqueezeExcite(8, 3), LinearSqueezeExcite(8, 3), EffectiveSqueezeExcite(8), EfficientChannelAttention(8)]
)
def test_a_channel_is_scaled_by_one_number_between_0_and_1(layer):
    x = torch.randn(2, 8, 5, 4)
    ratio = layer(x) / x
    assert torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio), atol=1e-4)
    assert (ratio >= -1e-6).all() and (ratio <= 1 + 1e-5).all()


@pytest.mark.parametrize(("channels", "length"), [(8, 3), (64, 3), (256, 5), (2048, 7)])
def test_the_kernel_grows_with_the_channels(channels, length):
    assert EfficientChannelAttention(channels).conv.kernel_size == (length,)
