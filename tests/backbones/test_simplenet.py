"""SimpleNet: plans, dropout by layer, what is refused."""

import json

import pytest
import torch
from torch import nn

from paperworks.backbones.simplenet import POOL, SimpleNet
from paperworks.errors import InputError
from paperworks.papers import simplenet

PLAN = (8, 12, POOL, "16k1")


def test_a_saved_configuration_builds_the_same_network():
    kept = json.loads(json.dumps({"plan": PLAN, "drop_rates": {0: 0.1, 3: 0.3}, "num_classes": 3}))
    rates = [module.p for module in SimpleNet(**kept).modules() if isinstance(module, nn.Dropout2d)]
    assert rates == [0.1, 0.0, 0.0, 0.3]


def test_layers_are_named_from_zero():
    with pytest.raises(InputError, match="head_drop"):
        SimpleNet(PLAN, drop_rates={4: 0.2})


def test_cifar_plans_have_nothing_between_norm_and_pooling():
    network = SimpleNet("cifar_310k", num_classes=10, drop_rates=0.2, mode=0)
    modules = list(network.features)
    before = [modules[index - 1] for index, module in enumerate(modules) if isinstance(module, nn.MaxPool2d)]
    assert before and all(isinstance(module, nn.ReLU) for module in before)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_only_cifar_networks_have_a_published_training():
    with pytest.raises(InputError, match="not published"):
        simplenet.paper.recipes["paper"](variant="simplenetv1_5m_m2")
    with pytest.raises(InputError, match="no variant"):
        simplenet.paper.recipes["paper"](variant="simplenet_cifar_5n")
