from __future__ import annotations

import pytest
import timm
import torch

from paperworks.backbones.cifar import CifarNet, CifarResNet, CifarVGG
from paperworks.backbones.registry import create
from paperworks.compression.sparsity import prunable_layers
from paperworks.errors import InputError

SHEET = {
    # millions of parameters, prunable layers
    "resnet20_cifar": (0.272, 22),
    "resnet32_cifar": (0.467, 34),
    "vgg16_cifar": (14.73, 14),
    "densenet121_cifar": (1.00, 121),
    "efficientnet_b0_cifar": (3.60, 82),
}


@pytest.mark.parametrize("name", SHEET)
def test_sizes_are_those_of_the_released_code(name):
    millions, layers = SHEET[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    decimals = len(str(millions).partition(".")[2]) if millions != 1.0 else 2
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, decimals) == millions
    found = prunable_layers(model)
    assert len(found) == layers
    if name == "resnet32_cifar":
        assert sum(layer.numel for layer in found) == 464_432


@pytest.mark.parametrize("name", SHEET)
def test_speaks_timms_protocol(name):
    torch.manual_seed(0)
    small = {"vgg16_cifar": dict(width=8), "densenet121_cifar": dict(blocks=(2, 2, 1, 1), growth=4)}.get(name, {})
    model: CifarNet = timm.create_model(name, num_classes=7, in_chans=1, **small).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits, features = model(x), model.forward_features(x)
        final, maps = model.forward_intermediates(x)
    assert logits.shape == (2, 7) and model.num_features == features.shape[1]
    assert torch.allclose(model.forward_head(features), logits, atol=1e-5)
    assert torch.allclose(final, features, atol=1e-5)
    for feature, info in zip(maps, model.feature_info, strict=True):
        assert feature.shape[1] == info["num_chs"] and 32 // feature.shape[-1] == info["reduction"]
    pyramid = timm.create_model(name, in_chans=1, features_only=True, **small).eval()
    assert [f.shape[1] for f in pyramid(x)] == pyramid.feature_info.channels()
    only_first = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert len(only_first) == 1 and torch.allclose(only_first[0], maps[0], atol=1e-5)
    assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_other_image_sizes_and_widths():
    assert CifarResNet(20, width=4, in_chans=1)(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert CifarVGG(width=4)(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_saves_and_loads(tmp_path):
    model = CifarResNet(depth=8, num_classes=3, width=4).eval()
    model.save_pretrained(tmp_path)
    twin = CifarResNet.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(twin(x), model(x))
    official = CifarResNet.from_official(model.state_dict(), depth=8, num_classes=3, width=4).eval()
    assert torch.equal(official(x), model(x))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="6n"):
        CifarResNet(depth=21)
    with pytest.raises(InputError, match="released weights"):
        timm.create_model("resnet20_cifar", pretrained=True)
    with pytest.raises(InputError, match="NCHW"):
        CifarResNet(8).forward_intermediates(torch.ones(1, 3, 8, 8), output_fmt="NLC")
    with pytest.raises(InputError, match=r"takes \[N, 3, H, W\]"):
        CifarResNet(8)(torch.ones(1, 1, 8, 8))
    with pytest.raises(InputError, match="at least 32x32"):
        CifarVGG(width=4)(torch.ones(1, 3, 28, 28))
    with pytest.raises(InputError, match="cannot drop feature maps"):
        CifarResNet(8).prune_intermediate_layers([0])


def test_known_to_the_library_by_name():
    model = create("resnet20_cifar", width=4, num_classes=2)
    assert isinstance(model, CifarResNet) and model.pretrained_cfg["input_size"] == (3, 32, 32)
