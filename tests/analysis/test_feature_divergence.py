"""Divergence of features between two sets of images."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from paperworks.analysis.feature_divergence import channel_means, feature_divergence, gaussian_divergence
from paperworks.errors import InputError


def test_it_is_the_symmetric_divergence_of_normal_distributions():
    a, b = torch.randn(500, 3).double() * torch.tensor([1.0, 2.0, 0.5]), torch.randn(400, 3).double() + 0.7
    first, second = (Normal(values.mean(0), values.std(0)) for values in (a, b))
    expected = (kl_divergence(first, second) + kl_divergence(second, first)).mean()
    assert gaussian_divergence(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert gaussian_divergence(a, a) == 0.0


def test_a_channel_that_never_fires_adds_nothing_and_one_that_hardly_does_is_bounded():
    a, b = torch.randn(100, 2), torch.randn(100, 2)
    a[:, 1] = b[:, 1] = 0.0
    assert gaussian_divergence(a, b) == pytest.approx(gaussian_divergence(a[:, :1], b[:, :1]) / 2)
    b[:, 1] = 1e-9 * torch.randn(100)
    assert gaussian_divergence(a, b) < 1


def test_layers_are_seen_image_by_image_and_instance_norm_hides_a_gain():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 4, 3))
    images = torch.rand(12, 3, 16, 16)
    means = channel_means(network, [images[:5], images[5:]], ["0", "2"])
    with torch.no_grad():
        assert torch.allclose(means["0"], network[0](images).mean((2, 3)), atol=1e-6)
    assert means["2"].shape == (12, 6)
    found = feature_divergence(network, [images], [0.5 * images + 0.2], ["0", "2"])
    assert found["0"] > 1 and found["2"] < 0.01
    assert network.training and not network[0]._forward_hooks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_divergence(torch.zeros(3, 2), torch.zeros(3, 4)), "channel means are"),
        (lambda: gaussian_divergence(torch.zeros(1, 2), torch.zeros(3, 2)), "at least two images"),
        (lambda: channel_means(nn.Sequential(nn.ReLU()), [], ["0"]), "'0' did not run"),
        (lambda: channel_means(nn.Sequential(nn.ReLU()), [], ["1"]), "no module '1'"),
        (lambda: channel_means(nn.Sequential(nn.ReLU()), [], []), "no layer is named"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
