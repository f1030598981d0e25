"""What a classifier concludes as a perceptual loss: resizing, normalising, freezing, and weights that cannot be fetched."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.logit_perceptual import LogitPerceptual, WeightedLosses
from paperworks.objectives.perceptual import PyramidLoss


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))


def test_it_is_the_squared_difference_of_logits_of_images_as_the_network_knows_them():
    network = classifier()
    loss, made, real = LogitPerceptual(network, side=20), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    logits = [
        network((F.interpolate(images, (20, 20), mode="bilinear", antialias=True) - mean) / deviation)
        for images in (made, real)
    ]
    assert torch.allclose(loss(made, real), (logits[0] - logits[1]).square().mean())
    assert loss(real, real) == 0
    grey = torch.rand(2, 1, 32, 32)
    assert torch.allclose(loss(grey, real), loss(grey.expand(-1, 3, -1, -1), real))


def test_gradients_reach_the_image_and_never_the_network():
    loss, made = LogitPerceptual(classifier(), side=20), torch.rand(1, 3, 32, 32, requires_grad=True)
    loss.train()(made, torch.rand(1, 3, 32, 32)).backward()
    assert made.grad.abs().sum() > 0 and not loss.network.training
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_a_weighted_sum():
    first, second = PyramidLoss(1), LogitPerceptual(classifier(), side=20)
    made, real = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert torch.allclose(
        WeightedLosses([(1.0, first), (0.1, second)])(made, real), first(made, real) + 0.1 * second(made, real)
    )


def test_weights_that_cannot_be_fetched_are_explained(monkeypatch):
    def unreachable(weights):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torchvision.models, "convnext_small", unreachable)
    with pytest.raises(
        InputError, match=r"ConvNeXt-S weights could not be fetched \(no route to host\): use perceptual='lite0'"
    ):
        LogitPerceptual()
