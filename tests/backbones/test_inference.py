import copy

import pytest
import timm
import torch
from torch import nn

from paperworks.backbones import fused
from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.inference import Plan, prepare_for_inference
from paperworks.errors import InputError
from tests.backbones.test_metanext import SMALL, small


def convnext(**arguments) -> nn.Module:
    torch.manual_seed(0)
    model = ConvNeXt(**SMALL, layer_scale_init_value=1.0, **arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1 if parameter.ndim == 1 else 0, 0.2)
    return model.eval()


NETWORKS = {
    "inception": small,
    "layer norm": lambda: small(norm_layer="layer"),
    "no norm, no layer scale": lambda: small(norm_layer="none", ls_init_value=None),
    "relu": lambda: small(act_layer="relu"),
    "tanh gelu": lambda: small(act_layer="gelu_tanh"),
    "dilated": lambda: small(output_stride=16),
    "convnext": convnext,
    "convnext partial": lambda: convnext(kernel_sizes=3, conv_ratio=0.25),
    "resnet18 of timm": lambda: timm.create_model("resnet18", num_classes=5).eval(),
    "cifar vgg": lambda: timm.create_model("vgg16_cifar", num_classes=5).eval(),
}


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("precision, allowed", [("32", 1e-4), ("bf16", 5e-2)])
def test_outputs_stay_within_the_tolerance(name: str, precision: str, allowed: float):
    model, x = NETWORKS[name](), torch.randn(2, 3, 65, 96)
    prepared = prepare_for_inference(model, precision=precision, example=x)
    assert prepared.report.difference <= allowed
    with torch.no_grad():
        expected = model(x)
    found = prepared(x)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= allowed * expected.abs().max()


def test_hidden_layers_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model, x = small(), torch.randn(3, 3, 96, 96)
    whole = prepare_for_inference(model, precision="32")(x)
    monkeypatch.setattr(fused, "ROWS_AT_ONCE", 4096)
    assert torch.allclose(prepare_for_inference(model, precision="32")(x), whole, atol=1e-5)


def test_changing_sizes_and_batches():
    model = small()
    prepared = prepare_for_inference(model, precision="32")
    for size in (32, 48, 64, 96, 33, 128):
        x = torch.randn(1 + size % 3, 3, size, 40)
        with torch.no_grad():
            assert torch.allclose(prepared(x), model(x), atol=1e-4)
    packed = [m._packed for m in prepared.modules() if isinstance(m, fused.PackedLinear)]
    assert packed and all(len(cache) <= 4 for cache in packed)


def test_the_model_itself_stays_as_it_was():
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    prepare_for_inference(model, example=torch.randn(1, 3, 32, 32))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_features_and_head_come_out_as_before():
    model, x = small(), torch.randn(2, 3, 64, 64)
    prepared = prepare_for_inference(model, precision="32")
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
    found, found_maps = prepared.forward_intermediates(x)
    assert torch.allclose(found, final, atol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found_maps, maps, strict=True))
    assert torch.allclose(prepared.forward_head(prepared.forward_features(x)), prepared(x), atol=1e-4)


def test_the_report_says_what_was_done():
    report = str(prepare_for_inference(small(), precision="bf16", example=torch.randn(1, 3, 32, 32)).report)
    for words in ("folded into the product after it (5x)", "bfloat16", "channels-last", "outputs moved by at most"):
        assert words in report
    assert "not compared" in str(prepare_for_inference(small()).report)


def test_what_it_refuses():
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(InputError, match="cannot be trained"):
        prepare_for_inference(small()).train()
    with pytest.raises(InputError, match="there are 'auto'"):
        prepare_for_inference(small(), precision="fp8")
    with pytest.raises(InputError, match="more than 1e-09"):
        prepare_for_inference(small(), precision="bf16", example=x, tolerance=1e-9)
    with pytest.raises(InputError, match="no feature maps"):
        prepare_for_inference(nn.Conv2d(3, 4, 1)).forward_features(x)


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x

    def for_inference(self, plan: Plan) -> nn.Module:
        plan.note("doubled by a product")
        return _Twice()


class _Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_other_networks_bring_their_own_improvements():
    prepared = prepare_for_inference(nn.Sequential(Doubling(), nn.Sequential(Doubling())), precision="32")
    assert "doubled by a product (2x)" in str(prepared.report)
    assert torch.equal(prepared(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 4.0))
