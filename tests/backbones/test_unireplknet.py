import pytest
import torch

from paperworks.backbones.replknet import RepLKNet
from paperworks.backbones.series import SeriesForecaster, decompose
from paperworks.backbones.unireplknet import UniRepLKNet, kernels_of
from paperworks.errors import InputError
from tests.backbones.family import small
from tests.layers.test_large_kernel import lively


@pytest.mark.parametrize("name", ["unireplknet_t", "replknet_31b"])
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


def test_files_in_the_other_form_say_so():
    given = {"depths": (1, 1), "dims": (8, 8), "kernel_sizes": (3, 7), "num_classes": 2}
    trained = {
        "stages.1.0.dwconv.origin_bn.weight": torch.zeros(8),
    }
    with pytest.raises(InputError, match="in the form of training"):
        UniRepLKNet.from_official(trained, **given, deploy=True)
    with pytest.raises(InputError, match="in the form of deployment"):
        UniRepLKNet.from_official({"stages.1.0.dwconv.lk_origin.bias": torch.zeros(8)}, **given, deploy=False)


def test_kernels_follow_the_fourth_guideline():
    assert kernels_of((3, 3, 18, 3), None)[2] == [13, 3] * 9
    assert kernels_of((3, 3, 27, 3), None)[2] == [13, 3, 3] * 9
    assert kernels_of((2, 2, 6, 2), None) == [[3] * 2, [13] * 2, [13] * 6, [13] * 2]
    with pytest.raises(InputError, match="stage 2 has 3 entries for 2 blocks"):
        kernels_of((1, 2), [3, (13, 3, 3)])
    with pytest.raises(InputError, match="one entry per stage"):
        RepLKNet(layers=(1, 1), channels=(8, 8))


def test_forecasts_follow_the_scale_of_their_window():
    torch.manual_seed(0)
    model = SeriesForecaster(16, 8, dim=16, dims=(4, 8, 16)).eval()
    window = torch.randn(3, 16, 1)
    with torch.no_grad():
        assert torch.allclose(model(5 * window + 100), 5 * model(window) + 100, rtol=1e-3, atol=1e-2)
    with pytest.raises(InputError, match=r"\[N, 16, channels\]"):
        model(torch.randn(3, 15, 1))
    with pytest.raises(InputError, match="not finite"):
        model(window * torch.nan)
    with pytest.raises(InputError, match="is no square"):
        SeriesForecaster(16, 8, dim=15)


def test_a_trend_and_what_is_left_add_up():
    series = torch.randn(2, 30, 3).cumsum(1)
    seasonal, trend = decompose(series, 7)
    assert torch.allclose(seasonal + trend, series, atol=1e-5)
    assert torch.allclose(trend[:, 10], series[:, 7:14].mean(1), atol=1e-5)
