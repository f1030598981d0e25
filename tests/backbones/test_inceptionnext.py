import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import paperworks  # noqa: F401  (registers the networks with timm)
from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.inceptionnext import ENTRIES, isotropic
from paperworks.backbones.registry import create
from paperworks.errors import InputError
from tests.backbones.test_metanext import small

TIMM = {name: name.replace("inceptionnext", "inception_next") for name in ENTRIES if name.startswith("inception")}
TIMM["inceptionnext_base_384"] = "inception_next_base.sail_in1k_384"


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_variant_is_found_by_timm(name: str):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3)
    assert model.num_classes == 3
    assert model.pretrained_cfg["architecture"] == name
    assert isinstance(model.get_submodule(model.pretrained_cfg["classifier"]), nn.Linear)
    assert isinstance(model.get_submodule(model.pretrained_cfg["first_conv"]), nn.Conv2d)


@pytest.mark.parametrize("name", list(TIMM))
def test_timm_s_weights_load_strictly_and_give_timm_s_outputs(name: str):
    if name not in ("inceptionnext_atto", "inceptionnext_tiny"):  # the others: keys and shapes only
        with torch.device("meta"):
            ours, theirs = timm.create_model(name), timm.create_model(TIMM[name])
        assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
        return
    theirs, ours = timm.create_model(TIMM[name]).eval(), timm.create_model(name).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride_dilates_as_timm_does(stride: int):
    theirs = timm.create_model("inception_next_atto", output_stride=stride).eval()
    ours = timm.create_model("inceptionnext_atto", output_stride=stride).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 101, 77)
    with torch.no_grad():
        expected, found = theirs.forward_features(x), ours.forward_features(x)
    assert found.shape[2:] == expected.shape[2:] and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert ours.feature_info[-1]["reduction"] == stride


def test_weights_load_through_timm_from_a_file(tmp_path):
    from safetensors.torch import save_file

    theirs = timm.create_model("inception_next_atto").eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors")}
    ours = timm.create_model("inceptionnext_atto", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    fewer = timm.create_model("inceptionnext_atto", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4, in_chans=1)
    assert torch.equal(fewer.stages[0].blocks[0].mlp.fc1.weight, theirs.stages[0].blocks[0].mlp.fc1.weight)


def test_features_only():
    model = timm.create_model("inceptionnext_atto", features_only=True, out_indices=(1, 3))
    maps = model(torch.randn(1, 3, 96, 64))
    assert [m.shape[1] for m in maps] == model.feature_info.channels() == [80, 320]
    assert model.feature_info.reduction() == [8, 32]
    assert len(timm.create_model("convnext_tiny_k3_par1_8", features_only=True)(torch.randn(1, 3, 32, 32))) == 4


@pytest.mark.slow
def test_import_order_does_not_matter_and_import_is_light():
    code = "import sys, paperworks; assert not {'torch', 'timm'} & set(sys.modules)"
    for more in (f"{code}; import timm", "import timm, paperworks"):
        subprocess.run([sys.executable, "-c", f"{more}; assert timm.is_model('inceptionnext_tiny')"], check=True)


def test_partial_variants_convolve_the_last_channels_only():
    model = ConvNeXt(num_classes=2, depths=(1, 1), dims=(16, 16), kernel_sizes=3, conv_ratio=0.25)
    x = torch.randn(1, 16, 8, 8)
    y = model.stages[0][0].dwconv(x)
    assert torch.equal(y[:, :12], x[:, :12]) and not torch.isclose(y[:, 12:], x[:, 12:]).all()


def test_study_checkpoints_of_full_partial_convolution_load():
    plain = ConvNeXt(num_classes=2, depths=(1,), dims=(8,))
    longer = {name.replace("dwconv.", "dwconv.conv."): value for name, value in plain.state_dict().items()}
    assert torch.equal(
        ConvNeXt.from_official(longer, num_classes=2, depths=(1,), dims=(8,)).stages[0][0].dwconv.weight,
        plain.stages[0][0].dwconv.weight,
    )


def test_isotropic_networks_have_one_map():
    model = isotropic(width=32, depth=2, num_classes=3)
    assert model.forward_features(torch.randn(1, 3, 64, 48)).shape == (1, 32, 4, 3)


def test_names_are_suggested():
    with pytest.raises(InputError, match=r"did you mean .inceptionnext_tiny"):
        create("inceptionext_tiny")


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model, x = small(), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_onnx_agrees(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = small(), torch.randn(2, 3, 70, 64)
    size = {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    torch.onnx.export(
        model, (x,), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch"), **size},), verbose=False
    )
    session = ort.InferenceSession(tmp_path / "net.onnx")
    for images in (x, torch.randn(3, 3, 96, 101)):
        [found] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(found), model(images), rtol=1e-4, atol=1e-4)


def test_bfloat16_and_torchscript():
    model, x = small(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        traced = torch.jit.trace(model, x, check_trace=False)
        assert torch.allclose(traced(x), expected, atol=1e-4)
        found = small().bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16 and (found - expected).abs().max() < 0.05 * expected.abs().max()
