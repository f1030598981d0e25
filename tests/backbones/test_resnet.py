"""ResNets: what the options change, weights of plain networks in IBN ones, stochastic depth, released names."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from paperworks.backbones.registry import create
from paperworks.backbones.resnet import Block, ResNet, stage_drop_path_rates
from paperworks.backbones.simplenet import SimpleNet
from paperworks.backbones.vovnet import VoVNet
from paperworks.errors import InputError
from paperworks.layers.instance_batch_norm import InstanceBatchNorm, InstanceNorm, ibn_from_plain

SMALL = {"layers": (2, 1, 1, 2), "channels": (8, 10, 12, 16), "stem_width": 8, "num_classes": 5}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_plain_networks_are_torchvision_s(name):
    theirs = torchvision.models.get_model(name, num_classes=4).eval()
    layers, block = {"resnet18": ((2, 2, 2, 2), "basic"), "resnet50": ((3, 4, 6, 3), "bottleneck")}[name]
    ours = ResNet(block, layers, num_classes=4).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 65, 70)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_timm_s_names_of_resnet_rs_and_vovnet_fit():
    for name in ("resnetrs50", "ese_vovnet19b_dw", "eca_vovnet39b"):
        with torch.device("meta"):
            ours, theirs = create(name), timm.create_model(name)
        assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_ibn_marks_say_where_instance_norm_goes():
    a, b = ResNet(**SMALL, ibn=("a", "a", "a", None)), ResNet(**SMALL, ibn=("b", "b", None, None))
    assert [isinstance(block.bn1, InstanceBatchNorm) for block in a.modules() if isinstance(block, Block)] == [True] * 4 + [
        False
    ] * 2
    assert [isinstance(block.IN, InstanceNorm) for block in b.modules() if isinstance(block, Block)] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    assert isinstance(b.bn1, InstanceNorm) and isinstance(a.bn1, nn.BatchNorm2d)


def test_plain_weights_start_an_ibn_network():
    plain, mixed = ResNet(**SMALL), ResNet(**SMALL, ibn=("a", "a", "a", None))
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.uniform_(module.running_mean)
    ibn_from_plain(mixed, plain.state_dict())
    whole, split = plain.layer1[0].bn1, mixed.layer1[0].bn1
    assert torch.equal(torch.cat((split.IN.weight, split.BN.weight)), whole.weight)
    assert torch.equal(split.BN.running_mean, whole.running_mean[split.split :])
    assert torch.equal(mixed.layer4[0].conv1.weight, plain.layer4[0].conv1.weight)


def test_one_form_leaves_the_last_stage_plain():
    one, listed = (ResNet(**SMALL, ibn=ibn).state_dict() for ibn in ("a", ("a", "a", "a", None)))
    assert list(one) == list(listed) and not any("layer4" in name and ".IN." in name for name in one)


def test_files_without_counters_of_batches_start_an_ibn_network():
    plain = {name: value for name, value in ResNet(**SMALL).state_dict().items() if "num_batches" not in name}
    mixed = ibn_from_plain(ResNet(**SMALL, ibn="a"), plain)
    assert torch.equal(mixed.layer1[0].bn1.IN.weight, plain["layer1.0.bn1.weight"][:4])


def test_the_momentum_of_statistics_is_free():
    net = ResNet(**SMALL, ibn="a", bn_momentum=1.0).train()
    x = torch.rand(4, 3, 64, 64)
    net(x)
    first = net.conv1(x)
    assert torch.allclose(net.bn1.running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {1.0}


def small_file(**options):
    return ResNet(**SMALL, **options).state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet.from_official(small_file(), **SMALL, stem="deep"), r"plain stem .*this one has a deep stem"),
        (lambda: ResNet.from_official(small_file(stem="deep"), **SMALL), r"deep stem .three.*this one has a plain stem"),
        (lambda: ResNet.from_official(small_file(ibn="a"), **SMALL, ibn="b"), "with IBN-a, this one has IBN-b"),
        (lambda: ResNet.from_official(small_file(), **SMALL, ibn="a"), r"with no IBN.*ibn_from_plain starts"),
        (lambda: ibn_from_plain(ResNet(**SMALL, ibn="a"), VoVNet().state_dict()), "missing: conv1.weight"),
        (lambda: ibn_from_plain(ResNet(**{**SMALL, "layers": (1, 1, 1, 1)}, ibn="a"), small_file()), "unexpected: layer1.1"),
        (lambda: ibn_from_plain(ResNet(**{**SMALL, "num_classes": 3}, ibn="a"), small_file()), "of another shape: fc.weight"),
    ],
)
def test_files_that_do_not_fit_are_explained(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_stochastic_depth_grows_from_stage_to_stage_or_block_to_block():
    assert stage_drop_path_rates(0.1, 4) == pytest.approx([0.04, 0.06, 0.08, 0.1])
    by_stage = ResNet(**SMALL, drop_path_rate=0.1)
    by_block = ResNet(**SMALL, drop_path_rate=0.1, drop_path_rule="block")
    rates = [
        [b.drop_path.rate for b in net.modules() if isinstance(b, Block) and hasattr(b.drop_path, "rate")]
        for net in (by_stage, by_block)
    ]
    assert rates[0] == pytest.approx([0.04, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert rates[1] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])  # the first block never drops


def test_blocks_start_as_their_shortcut():
    net = ResNet(**SMALL).eval()
    x = torch.rand(1, 32, 8, 8)
    assert torch.equal(net.layer1[1](x), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(**SMALL, ibn="c"), "'a', 'b' and None"),
        (lambda: ResNet(**SMALL, ibn=("a", "c", None, None)), "'a', 'b' and None"),
        (lambda: ResNet(**SMALL, ibn=("a",)), "1 entries for 4 stages"),
        (lambda: VoVNet(stem_chs=(8, 8)), "2 entries; the stem has three"),
        (lambda: ResNet("wide"), "there are basic, bottleneck"),
        (lambda: ResNet(layers=(1, 1)), "layers has 2 stages, channels 4"),
        (lambda: ResNet(**SMALL, drop_rate=1.0), "probability below 1"),
        (lambda: ResNet(**SMALL, attention="se", se_ratio=0), "must be positive"),
        (lambda: ResNet(**SMALL, attention="cbam"), "there are"),
        (lambda: ResNet(**SMALL, stem="wide"), "'plain' and 'deep'"),
        (lambda: ResNet(**SMALL, stem_pool="min"), "there are 'max'"),
        (lambda: ResNet(**SMALL, drop_path_rate=0.1, drop_path_rule="net"), "'stage' and 'block'"),
        (lambda: SimpleNet("huge"), "no plan 'huge'"),
        (lambda: SimpleNet(mode=5), "mode 5"),
        (lambda: SimpleNet(drop_rates={99: 0.1}), "names layer 99"),
        (lambda: SimpleNet((8, "x3", "p")), "layer 'x3'"),
        (lambda: SimpleNet()(torch.rand(1, 3, 16, 16)), "at least 32x32"),
        (lambda: SimpleNet.from_official({}, network_idx=9), "0 to 5"),
        (lambda: VoVNet(layer_per_block=0), "aggregates nothing"),
        (lambda: VoVNet(stage_out_chs=(8, 8)), "2 entries for 4 stages"),
        (lambda: VoVNet(attn="se"), "'ese' and 'eca'"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_released_cifar_file_in_the_wrong_plan_is_explained():
    with torch.no_grad():
        weights = SimpleNet("cifar_5m_extra_pool", mode=0, scale=0.1, num_classes=10).state_dict()
    with pytest.raises(InputError, match="belong to plan='cifar_5m_extra_pool'"):
        SimpleNet.from_official(weights, network_idx=4, mode=0, scale=0.1, num_classes=10)
