"""Forecasting with an image network as the encoder: its attention, its embeddings, the paper's sizes."""

import pytest
import torch
from torch import nn

from paperworks.backbones.modalities import unfold_series
from paperworks.backbones.registry import create
from paperworks.backbones.series import AutoCorrelation, SeriesForecaster, decompose
from paperworks.backbones.unireplknet import UniRepLKNet
from paperworks.errors import InputError


def plain_attention(length: int, dim: int) -> AutoCorrelation:
    attention = AutoCorrelation(dim)
    for linear in (attention.query, attention.key, attention.value, attention.out):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return attention.eval()


def test_auto_correlation_adds_up_the_delays_that_agree_most():
    torch.manual_seed(0)
    x, memory = torch.randn(2, 12, 3), torch.randn(2, 12, 3)
    with torch.no_grad():
        found = plain_attention(12, 3)(x, memory)
    for sample in range(2):
        agreement = torch.stack(
            [(x[sample].roll(-delay, 0) * memory[sample]).sum(0).mean() for delay in range(12)]
        )  # of x at t + delay with the memory at t
        weights, delays = agreement.topk(2)  # ln(12) is 2.5
        rolled = torch.stack([memory[sample].roll(-int(delay), 0) for delay in delays])
        assert torch.allclose(found[sample], (weights.softmax(0)[:, None, None] * rolled).sum(0), atol=1e-5)


def test_memories_of_other_lengths_are_cut_or_filled_with_zeros():
    torch.manual_seed(0)
    attention, x, memory = plain_attention(8, 2), torch.randn(1, 8, 2), torch.randn(1, 12, 2)
    with torch.no_grad():
        assert torch.equal(attention(x, memory), attention(x, memory[:, :8]))
        short = torch.cat((memory[:, :5], torch.zeros(1, 3, 2)), 1)
        assert torch.equal(attention(x, memory[:, :5]), attention(x, short))


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


def test_forecasts_depend_on_every_part():
    torch.manual_seed(0)
    model, window = SeriesForecaster(16, 8, dim=16, dims=(4, 8, 16)), torch.randn(3, 16, 1)
    model(window).square().sum().backward()
    for name, parameter in model.named_parameters():
        # a shift before the batch norm at a block's end has no effect in training, the encoder's head is not used
        assert name.endswith(".grn.beta") or name.startswith("encoder.head.") or bool(parameter.grad.abs().sum() > 0), name
    model.eval()
    with torch.no_grad():
        before = model(window)
        model.decoder.cross.value.weight.zero_()
        assert not torch.allclose(model(window), before)


def test_times_and_stations_are_embedded_beside_the_values():
    torch.manual_seed(0)
    model = SeriesForecaster(16, 8, dim=16, dims=(4, 8, 16), time_features=4, station_features=3).eval()
    window, times, stations = torch.randn(2, 16, 1), torch.randn(2, 24, 4), torch.randn(2, 3)
    with torch.no_grad():
        made = model(window, times, stations)
        assert made.shape == (2, 8, 1)
        assert not torch.allclose(model(window, times + 1, stations), made)
        assert not torch.allclose(model(window, times, stations + 1), made)
    with pytest.raises(InputError, match=r"times are \[2, 24, 4\] for this forecaster, not none"):
        model(window, stations=stations)
    with pytest.raises(InputError, match=r"stations are none for this forecaster, not \[2, 3\]"):
        SeriesForecaster(16, 8, dim=16, dims=(4, 8, 16))(window, stations=stations)


def test_other_encoders_take_the_place_of_the_small_one():
    encoder = UniRepLKNet(1, 0, (1, 1), (8, 16), (3, 7))
    model = SeriesForecaster(16, 8, dim=16, encoder=encoder).eval()
    assert model.encoder is encoder
    with torch.no_grad():
        assert model(torch.randn(2, 16, 1)).shape == (2, 8, 1)
    with pytest.raises(InputError, match="Linear has no forward_features"):
        SeriesForecaster(encoder=nn.Linear(1, 1))


def test_the_papers_encoder_gives_36_tokens():
    with torch.device("meta"):
        encoder = create("unireplknet_s", in_chans=1, num_classes=0)
        model = SeriesForecaster(48, 24, dim=768, encoder=encoder, time_features=4, station_features=3)
        image = model.embed(torch.zeros(2, 48, 1), torch.zeros(2, 48, 4), torch.zeros(2, 3)).reshape(2, 1, 192, 192)
        features = model.encoder.forward_features(image)
    assert features.shape == (2, 768, 6, 6) and unfold_series(features, 768).shape == (2, 36, 768)


def test_a_trend_and_what_is_left_add_up():
    series = torch.randn(2, 30, 3).cumsum(1)
    seasonal, trend = decompose(series, 7)
    assert torch.allclose(seasonal + trend, series, atol=1e-5)
    assert torch.allclose(trend[:, 10], series[:, 7:14].mean(1), atol=1e-5)
