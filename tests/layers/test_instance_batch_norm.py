"""IBN: which channels are normalised how."""

import pytest
import torch
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.instance_batch_norm import InstanceBatchNorm, InstanceNorm


@pytest.mark.parametrize(("first", "part"), [("IN", slice(0, 6)), ("BN", slice(6, 10))])
def test_instance_channels_have_mean_0_and_deviation_1_in_every_image_also_in_evaluation(first, part):
    layer = InstanceBatchNorm(10, 0.6, first).eval()
    out = layer(3 * torch.randn(4, 10, 16, 16) + 2)[:, part]
    assert torch.allclose(out.mean((2, 3)), torch.zeros(4, out.shape[1]), atol=1e-5)
    assert torch.allclose(out.std((2, 3)), torch.ones(4, out.shape[1]), atol=1e-2)


def test_the_other_channels_are_batch_normalised():
    layer, x = InstanceBatchNorm(10).train(), torch.randn(4, 10, 8, 8)
    out = layer(x)
    assert torch.allclose(out[:, 5:], F.batch_norm(x[:, 5:], None, None, training=True), atol=1e-5)
    assert (layer.BN.running_mean.shape == (5,) and not hasattr(layer.IN, "running_mean")) or layer.IN.running_mean is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InstanceBatchNorm(8, 1.0), "between 0 and 1"),
        (lambda: InstanceBatchNorm(3, 0.2), "without any"),
        (lambda: InstanceBatchNorm(4)(torch.randn(2, 4, 1, 1)), "1 x 1 map"),
        (lambda: InstanceNorm(4)(torch.randn(2, 4, 1, 1)), "1 x 1 map"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
