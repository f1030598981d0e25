"""IBN: which channels are normalised how, the same in inference, and plain networks turned into ones with it."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from paperworks.backbones.resnet import ResNet
from paperworks.errors import InputError
from paperworks.layers.instance_batch_norm import (
    InstanceBatchNorm,
    InstanceNorm,
    fold_batch_half,
    ibn_from_plain,
    stage_marks,
    to_ibn,
)

SMALL = {"layers": (2, 1, 1, 2), "channels": (8, 10, 12, 16), "stem_width": 8, "num_classes": 5}


def lively(model: nn.Module) -> nn.Module:
    """Norms with weights and statistics that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, tensor in module.state_dict().items():
                if name != "num_batches_tracked":
                    tensor.uniform_(0.5, 1.5)
    return model


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
    assert layer.BN.running_mean.shape == (5,)
    assert layer.IN.running_mean is None


@pytest.mark.parametrize("first", ["IN", "BN"])
def test_the_convolution_before_takes_over_the_batch_half(first):
    torch.manual_seed(0)
    conv, layer = nn.Conv2d(3, 10, 3, padding=1, bias=False), lively(InstanceBatchNorm(10, 0.6, first)).eval()
    nn.init.uniform_(layer.IN.weight)
    nn.init.uniform_(layer.IN.bias)
    x = torch.randn(2, 3, 9, 11)
    with torch.no_grad():
        expected = layer(conv(x))
        rest = fold_batch_half(conv, layer)
        assert torch.allclose(rest(conv(x)), expected, atol=1e-5)
        alone = conv(x)
    assert torch.allclose(alone[:, layer.batch_channels], expected[:, layer.batch_channels], atol=1e-5)


def test_one_form_stands_for_the_shallow_stages():
    assert stage_marks("a", 4) == ["a", "a", "a", None]
    assert stage_marks("b", 4) == ["b", "b", None, None]
    assert stage_marks(None, 3) == [None] * 3
    assert stage_marks(("a", None, "b"), 3) == ["a", None, "b"]


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a", "b"])
def test_a_network_of_ours_becomes_the_one_that_is_built_with_ibn(kind):
    torch.manual_seed(0)
    plain = lively(ResNet(**SMALL))
    built = ibn_from_plain(ResNet(**SMALL, ibn=kind), plain.state_dict()).eval()
    changed = to_ibn(plain, kind).eval()
    assert list(changed.state_dict()) == list(built.state_dict())
    with torch.no_grad():
        x = torch.rand(2, 3, 64, 64)
        assert torch.equal(changed(x), built(x))


def test_a_changed_network_is_not_saved_as_the_plain_one(tmp_path):
    with pytest.raises(InputError, match="norms of to_ibn"):
        to_ibn(ResNet(**SMALL)).save_pretrained(tmp_path)


@pytest.mark.parametrize("build", [torchvision.models.resnet18, lambda: timm.create_model("resnet18")])
def test_trunks_of_others_get_the_same_norms_at_the_same_places(build):
    torch.manual_seed(0)
    theirs = lively(build())
    ours = ResNet("basic", (2, 2, 2, 2), ibn="a")
    ibn_from_plain(ours, theirs.state_dict()).eval()
    to_ibn(theirs, "a").eval()
    mixed = [name for name, module in theirs.named_modules() if isinstance(module, InstanceBatchNorm)]
    assert mixed == [f"layer{stage}.{block}.bn1" for stage in (1, 2, 3) for block in (0, 1)]
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        assert torch.allclose(theirs(x), ours(x), rtol=1e-3, atol=1e-4)


def test_timm_s_residual_sums_are_normalised():
    torch.manual_seed(0)
    theirs = lively(timm.create_model("resnet50"))
    ours = ibn_from_plain(ResNet(ibn="b"), theirs.state_dict()).eval()
    to_ibn(theirs, "b").eval()
    assert isinstance(theirs.bn1, InstanceNorm)
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        expected = ours(x)
        assert torch.allclose(theirs(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_densenets_get_theirs_in_every_third_layer_and_keep_activations():
    model = to_ibn(timm.create_model("densenet121")).eval()
    mixed = {name: module for name, module in model.named_modules() if isinstance(module, InstanceBatchNorm)}
    assert len(mixed) == 2 + 4 + 8 and all(module.first == "BN" for module in mixed.values())
    assert not any("denseblock4" in name for name in mixed)
    norm = model.features.denseblock1.denselayer1.norm1
    assert float(norm(torch.randn(2, 64, 8, 8)).detach().min()) == 0.0  # timm's norm applies the ReLU itself
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InstanceBatchNorm(8, 1.0), "between 0 and 1"),
        (lambda: InstanceBatchNorm(3, 0.2), "without any"),
        (lambda: InstanceBatchNorm(4)(torch.randn(2, 4, 1, 1)), "1 x 1 map"),
        (lambda: InstanceNorm(4)(torch.randn(2, 4, 1, 1)), "1 x 1 map"),
        (lambda: stage_marks("c", 4), "'a', 'b' and None"),
        (lambda: stage_marks(("a", "c"), 2), "'a', 'b' and None"),
        (lambda: stage_marks(("a",), 2), "1 entries for 2 stages"),
        (lambda: to_ibn(nn.Linear(2, 2)), "has no stages"),
        (lambda: to_ibn(ResNet(**SMALL), stages=("layer9",)), "no module 'layer9'"),
        (lambda: to_ibn(timm.create_model("convnext_atto")), "no batch norm"),
        (lambda: to_ibn(torchvision.models.resnet18(), "b"), "our ResNets and timm's"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
