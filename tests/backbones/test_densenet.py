"""DenseNets: old names of released files, and where IBN-Net puts its instance norms."""

import pytest
import torch
from torch import nn

from paperworks.backbones.densenet import DenseNet
from paperworks.errors import InputError
from paperworks.layers.instance_batch_norm import InstanceBatchNorm

SMALL = {"growth_rate": 6, "num_init_features": 12, "num_classes": 3}


def mixed(model: DenseNet) -> dict[str, InstanceBatchNorm]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, InstanceBatchNorm)}
    return {name.removeprefix("features.dense").replace(".denselayer", " "): module for name, module in found.items()}


def test_old_names_of_densenet_load():
    net = DenseNet(**SMALL, block_config=(2, 2, 2, 2))
    old = {k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for k, v in net.state_dict().items()}
    again = DenseNet.from_official(old, **SMALL, block_config=(2, 2, 2, 2))
    assert torch.equal(again.features.denseblock1.denselayer1.norm1.weight, net.features.denseblock1.denselayer1.norm1.weight)


def test_ibn_is_in_the_first_norm_of_every_third_layer_of_the_first_three_blocks():
    model = DenseNet(**SMALL, block_config=(4, 7, 3, 4), ibn=True)
    places = {1: (1, 4), 2: (1, 4, 7), 3: (1,)}
    assert list(mixed(model)) == [f"block{block} {layer}.norm1" for block, layers in places.items() for layer in layers]
    assert all(isinstance(layer.norm2, nn.BatchNorm2d) for layer in model.features.denseblock1.children())


def test_batch_norm_comes_first_and_has_sixty_percent():
    model = DenseNet(**SMALL, block_config=(4, 1, 1, 1), ibn=True).eval()
    first, fourth = model.features.denseblock1.denselayer1.norm1, model.features.denseblock1.denselayer4.norm1
    assert (first.BN.num_features, first.IN.num_features) == (7, 5)  # of 12
    assert (fourth.BN.num_features, fourth.IN.num_features) == (18, 12)  # of 12 + 3 x 6
    x = torch.randn(2, 12, 8, 8) * 3 + 1
    with torch.no_grad():
        out = first(x)
    assert torch.allclose(out[:, :7], x[:, :7] / (1 + 1e-5) ** 0.5, atol=1e-5)  # statistics 0 and 1
    assert torch.allclose(out[:, 7:].mean((2, 3)), torch.zeros(2, 5), atol=1e-5)


def test_stages_interval_and_ratio_are_free():
    model = DenseNet(**SMALL, block_config=(3, 3, 3, 3), ibn=True, ibn_stages=4, ibn_interval=2, ibn_ratio=0.25)
    assert len(mixed(model)) == 8 and mixed(model)["block4 3.norm1"].split == mixed(model)["block4 3.norm1"].BN.num_features
    assert mixed(model)["block1 1.norm1"].BN.num_features == 3
    assert not mixed(DenseNet(**SMALL, block_config=(3, 3), ibn=True, ibn_stages=0))


@pytest.mark.parametrize("options", [{"ibn_stages": 5}, {"ibn_interval": 0}])
def test_bad_input_is_named(options):
    with pytest.raises(InputError, match=r"ibn_stages=.*ibn_interval="):
        DenseNet(**SMALL, ibn=True, **options)
