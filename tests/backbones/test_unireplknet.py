import re

import pytest
import torch
from safetensors.torch import save_file

from paperworks.backbones.registry import create, entries
from paperworks.backbones.replknet import ConvFFN, LargeKernelBlock, RepLKNet
from paperworks.backbones.unireplknet import UniRepLKNet, kernels_of
from paperworks.errors import InputError
from paperworks.papers._classification import NetworkConfig, build_network
from paperworks.papers._recognition_claims import giga_macs, millions
from tests.backbones.family import SMALL, small
from tests.layers.test_large_kernel import lively

NAMES = ["unireplknet_t", "replknet_31b"]

THEIRS = {
    "unireplknet_t": {
        r"^stem\.": "downsample_layers.0.",
        r"^stages\.(\d+)\.downsample\.": r"downsample_layers.\1.",
        r"^stages\.(\d+)\.blocks\.": r"stages.\1.",
        r"\.branches\.(k\d+_\d+)\.(conv|bn)\.": r".dil_\2_\1.",
        r"\.origin\.bn\.": ".origin_bn.",
        r"\.origin\.conv\.": ".lk_origin.",
        r"\.pwconv1\.": ".pwconv1.1.",
        r"\.grn\.": ".act.1.",
        r"\.pwconv2\.": ".pwconv2.0.",
        r"\.norm2\.": ".pwconv2.2.",
        r"\.se\.fc1\.": ".se.down.",
        r"\.se\.fc2\.": ".se.up.",
        r"^head\.norm\.": "norm.",
        r"^head\.fc2\.": "head.",
    },
    "replknet_31b": {
        r"large_kernel\.origin\.": "large_kernel.lkb_origin.",
        r"large_kernel\.branches\.k\d+_1\.": "large_kernel.small_conv.",
        r"large_kernel\.(weight|bias)$": r"large_kernel.lkb_reparam.\1",
        r"^head\.fc2\.": "head.",
    },
}
"""our keys as the authors write them"""


def as_theirs(name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in weights.items():
        for pattern, replacement in THEIRS[name].items():
            key = re.sub(pattern, replacement, key)
        found[key] = value
    assert found.keys() != weights.keys()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_folded_form_is_equal_and_travels_through_a_folder(name, tmp_path):
    model, x = lively(small(name)), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        count = sum(parameter.numel() for parameter in model.parameters())
        after = model.reparameterize()(x)
        assert torch.allclose(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
        assert sum(parameter.numel() for parameter in model.parameters()) < count
        model.save_pretrained(tmp_path)
        assert torch.allclose(type(model).from_pretrained(tmp_path)(x), after, atol=1e-6)


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_files_load_in_both_forms(name, deploy, theirs):
    model, x = lively(small(name)), torch.rand(1, 3, 64, 64)
    if deploy:
        model.reparameterize()
    weights = model.state_dict()
    if theirs and not (deploy and name == "unireplknet_t"):
        weights = as_theirs(name, weights)
    arguments = {**SMALL[name], "num_classes": 5}
    with torch.no_grad():
        again = type(model).from_official(weights, **arguments).eval()
        assert torch.allclose(again(x), model(x), atol=1e-6)
        assert torch.allclose(type(model).from_official(weights, **arguments, deploy=deploy).eval()(x), model(x), atol=1e-6)
    with pytest.raises(InputError, match=f"load them with deploy={deploy}"):
        type(model).from_official(weights, **arguments, deploy=not deploy)


def test_the_authors_folded_files_load():
    arguments = {**SMALL["unireplknet_t"], "num_classes": 5}
    model = lively(small("unireplknet_t")).reparameterize()
    large = re.compile(r"(stages\.[1-3]\.\d\.dwconv)\.(weight|bias)")
    weights = {
        # kernels of 3 have their own convolution in place of a large one
        key if key.startswith("stages.2.1.") else large.sub(r"\1.lk_origin.\2", key): value
        for key, value in as_theirs("unireplknet_t", model.state_dict()).items()
    }
    assert "stages.1.0.dwconv.lk_origin.bias" in weights
    again, x = UniRepLKNet.from_official(weights, **arguments).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(again(x), model(x), atol=1e-6)


@pytest.mark.parametrize(("name", "more"), [("unireplknet_t", {"layer_scale": None}), ("replknet_31b", {"ffn_ratio": 2})])
def test_every_argument_reaches_the_network(name, more):
    model, x = lively(small(name, stem_stride=2, drop_rate=0.5, **more)), torch.rand(1, 3, 64, 64)
    given = {**SMALL[name], "num_classes": 5, "stem_stride": 2, "drop_rate": 0.5, **more}
    again = type(model).from_official(model.state_dict(), **given, use_sync_bn=False).eval()
    assert again.drop_rate == 0.5
    with torch.no_grad():
        assert again.forward_features(x).shape[-1] == 4 and torch.allclose(again(x), model(x), atol=1e-6)
    with pytest.raises(TypeError, match="nothing_known"):
        type(model).from_official(model.state_dict(), **given, nothing_known=1)


def test_the_authors_names_of_arguments_are_known():
    merged = small("replknet_31b").reparameterize()
    switches = {"in_channels": 3, "small_kernel_merged": True, "use_checkpoint": False}
    again = RepLKNet.from_official(merged.state_dict(), **SMALL["replknet_31b"], num_classes=5, **switches)
    assert again.in_chans == 3
    given = {**SMALL["unireplknet_t"], "num_classes": 5}
    del given["layer_scale"]
    model = UniRepLKNet.from_official(
        small("unireplknet_t").state_dict(), **given, layer_scale_init_value=1.0, attempt_use_lk_impl=False, with_cp=False
    )
    assert model.stages[0].blocks[0].gamma is not None


@pytest.mark.filterwarnings("ignore:the last layer of these weights")
@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_released_weights_start_networks_of_other_classes(name, theirs, tmp_path):
    arguments = SMALL[name]
    weights = entries()[name].build(**arguments).state_dict()  # 1000 classes
    file = as_theirs(name, weights) if theirs else weights
    save_file(file, tmp_path / "weights.safetensors")
    network = build_network(NetworkConfig(name, arguments, str(tmp_path / "weights.safetensors")), 3, seed=0)
    assert network.get_classifier().out_features == 3
    ours = network.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in weights.items() if "fc2" not in key or ".se." in key)
    with pytest.warns(UserWarning, match="has 1000 classes, the network 3"):
        type(network).from_official(file, **arguments, num_classes=3)
    features = type(network).from_official(file, **arguments, num_classes=0)
    assert features.num_classes == 0


def test_kernels_follow_the_fourth_guideline():
    assert kernels_of((3, 3, 18, 3), None)[2] == [13, 3] * 9
    assert kernels_of((3, 3, 27, 3), None)[2] == [13, 3, 3] * 9
    assert kernels_of((2, 2, 6, 2), None) == [[3] * 2, [13] * 2, [13] * 6, [13] * 2]
    with pytest.raises(InputError, match="stage 2 has 3 entries for 2 blocks"):
        kernels_of((1, 2), [3, (13, 3, 3)])
    with pytest.raises(InputError, match="one entry per stage"):
        RepLKNet(layers=(1, 1), channels=(8, 8))
    for size in (4, 6, 8):
        with pytest.raises(InputError, match=f"kernel size {size}"):
            UniRepLKNet(depths=(1, 1), dims=(8, 8), kernel_sizes=(3, size))


def test_both_halves_of_a_pair_are_dropped_at_one_rate():
    model = RepLKNet(layers=(1, 2), channels=(8, 8), large_kernel_sizes=(5, 5), small_kernel=3, drop_path_rate=0.4)
    large = [m.drop_path for m in model.modules() if isinstance(m, LargeKernelBlock)]
    after = [m.drop_path for m in model.modules() if isinstance(m, ConvFFN)]
    for halves in (large, after):
        assert [getattr(half, "rate", 0.0) for half in halves] == pytest.approx([0.0, 0.2, 0.4])


FOLDED = {
    "unireplknet_a": (4.437, 0.640),
    "unireplknet_f": (6.235, 0.905),
    "unireplknet_p": (10.742, 1.573),
    "unireplknet_n": (18.319, 2.767),
    "unireplknet_t": (31.038, 4.899),
    "unireplknet_s": (55.646, 9.094),
}
"""millions of parameters and 1e9 multiply-accumulates at 224 pixels"""


@pytest.mark.parametrize("name", FOLDED)
def test_folded_networks_have_the_published_sizes(name):
    def build():
        return create(name, deploy=True)

    parameters, macs = FOLDED[name]
    assert millions(build) == pytest.approx(parameters, abs=6e-4)
    assert giga_macs(build) == pytest.approx(macs, abs=6e-4)


def test_the_merged_replknet_has_the_published_size():
    assert millions(lambda: create("replknet_31b", deploy=True)) == pytest.approx(79.5, abs=0.05)
    assert giga_macs(lambda: create("replknet_31b", deploy=True)) == pytest.approx(15.3, abs=0.3)
