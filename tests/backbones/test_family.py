"""What every network of the library promises, tried on a small one of each kind."""

import pytest
import timm
import torch
from torch import nn

import paperworks  # noqa: F401  (registers the networks with timm)
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import entries
from paperworks.errors import InputError
from tests.backbones.family import SMALL, small

KINDS = list(SMALL)


def lively(model: nn.Module) -> nn.Module:
    """Statistics and gains that are not the initial ones, so that folding and zero gains cannot hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -0.2),
                (module.running_mean, -0.2),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + low)
    return model


@pytest.mark.parametrize("name", list(entries()))
def test_timm_builds_every_name_and_finds_its_first_and_last_layer(name):
    entry = entries()[name]
    with torch.device("meta"):
        model = entry.build(num_classes=3)
    assert model.num_classes == 3 and timm.is_model(name)
    cfg = model.pretrained_cfg
    assert isinstance(model.get_submodule(cfg["classifier"]), nn.Linear)
    if "first_conv" in cfg:  # a network may begin with something else
        assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)


@pytest.mark.parametrize("name", KINDS)
def test_maps_are_what_the_table_says_at_sizes_that_nothing_divides(name):
    model = small(name)
    x = torch.rand(2, 3, 101, 75)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert len(maps) == len(model.feature_info)
        for found, info in zip(maps, model.feature_info):
            assert found.shape[1] == info["num_chs"]
            for side, given in zip(found.shape[2:], x.shape[2:]):
                assert abs(side - given / info["reduction"]) <= 1.01
        # networks with a class token, first or last, give tokens, as timm's do
        if not (getattr(model, "num_prefix_tokens", 0) or getattr(model, "num_suffix_tokens", 0)):
            assert torch.equal(last, maps[-1])
        assert torch.allclose(model.forward_features(x), last)
        assert torch.allclose(model.forward_head(last), model(x), atol=1e-5)
        assert model.forward_head(last, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", KINDS)
def test_the_last_layer_can_be_replaced_and_images_can_be_grey(name):
    model = small(name, in_chans=1)
    model.reset_classifier(7)
    x = torch.rand(2, 1, 64, 64)
    assert model(x).shape == (2, 7) and model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    with pytest.raises(InputError, match=r"takes \[N, 1, H, W\]"):
        model(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("name", KINDS)
def test_training_reaches_every_parameter_and_checkpointing_changes_nothing(name):
    torch.manual_seed(0)
    model = lively(small(name)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # checkpointing runs a block twice
    x = torch.rand(4, 3, 64, 64)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).square().sum().backward()
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in learned)
        gradients.append([parameter.grad.clone() for parameter in learned])
    for plain, again in zip(*gradients):
        assert torch.allclose(plain, again, rtol=1e-3, atol=1e-4 * float(plain.abs().max()) + 1e-6)


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_prepared_networks_agree(name, precision):
    model, x = lively(small(name)), torch.rand(2, 3, 64, 64)
    fast = prepare_for_inference(model, precision=precision, example=x, tolerance=1e-3 if precision == "32" else 0.1)
    with torch.no_grad():
        assert fast(x).shape == model(x).shape
    assert fast.report is not None and fast.report.difference is not None


@pytest.mark.parametrize("name", KINDS)
def test_weights_travel_through_a_folder(name, tmp_path):
    model, x = small(name), torch.rand(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_compiles_in_one_graph(name):
    model, x = small(name), torch.rand(2, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_onnx_agrees(name, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = lively(small(name)), torch.rand(2, 3, 64, 64)
    torch.onnx.export(model, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = ort.InferenceSession(tmp_path / "net.onnx")
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max().clamp(min=1)))
