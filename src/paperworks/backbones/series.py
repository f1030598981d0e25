"""Forecasting with an image network as the encoder (2311.15599, section 4, in the frame of Corrformer, an Autoformer for
many stations): a window is normalised, embedded, folded into an image, and the network's map is the memory of a decoder whose
attention compares whole sub-series through auto-correlation (2106.13008, equations 1 to 8)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.modalities import fold_series, unfold_series
from paperworks.backbones.unireplknet import UniRepLKNet
from paperworks.errors import InputError


def decompose(series: Tensor, kernel: int = 25) -> tuple[Tensor, Tensor]:
    """[N, L, C] -> (seasonal, trend): the trend is a moving average with the ends repeated."""
    before, after = (kernel - 1) // 2, kernel // 2
    padded = F.pad(series.transpose(1, 2), (before, after), mode="replicate")
    trend = F.avg_pool1d(padded, kernel, 1).transpose(1, 2)
    return series - trend, trend


class AutoCorrelation(nn.Module):
    """Aggregates the values at the k = factor * ln(L) delays at which queries and keys agree most (2106.13008, equations 5
    to 7); the delays are shared by the heads and channels of a sample."""

    def __init__(self, dim: int, factor: float = 1.0):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.factor = factor

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        length = x.shape[1]
        memory = memory[:, :length] if memory.shape[1] >= length else F.pad(memory, (0, 0, 0, length - memory.shape[1]))
        query, key, value = self.query(x), self.key(memory), self.value(memory)
        spectrum = torch.fft.rfft(query, dim=1) * torch.fft.rfft(key, dim=1).conj()
        agreement = torch.fft.irfft(spectrum, n=length, dim=1).mean(2)
        count = max(1, int(self.factor * math.log(length)))
        weights, delays = agreement.topk(count, dim=1)
        index = (torch.arange(length, device=x.device)[None, None] + delays[:, :, None]) % length
        rolled = torch.gather(value[:, None].expand(-1, count, -1, -1), 2, index[..., None].expand(-1, -1, -1, value.shape[2]))
        return self.out((rolled * weights.softmax(1)[:, :, None, None]).sum(1))


class SeriesDecoderLayer(nn.Module):
    """Auto-correlation with itself, with the memory, a perceptron; what each leaves as trend is taken out and added up."""

    def __init__(self, dim: int, channels: int, kernel: int):
        super().__init__()
        self.own, self.cross = AutoCorrelation(dim), AutoCorrelation(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.trend = nn.Conv1d(dim, channels, 3, padding=1, padding_mode="circular", bias=False)
        self.kernel = kernel

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x, first = decompose(x + self.own(x, x), self.kernel)
        x, second = decompose(x + self.cross(x, memory), self.kernel)
        x, third = decompose(x + self.mlp(x), self.kernel)
        return x, self.trend((first + second + third).transpose(1, 2)).transpose(1, 2)


class SeriesEmbedding(nn.Module):
    """Values [N, L, C] -> [N, L, dim]: a circular convolution over three steps, and, where there are such features, a linear
    map of each step's time (hour, weekday, ...) and one of the station (longitude, latitude, height)."""

    def __init__(self, channels: int, dim: int, time_features: int = 0, station_features: int = 0):
        super().__init__()
        self.value = nn.Conv1d(channels, dim, 3, padding=1, padding_mode="circular", bias=False)
        self.time = nn.Linear(time_features, dim, bias=False) if time_features else None
        self.station = nn.Linear(station_features, dim) if station_features else None

    def forward(self, series: Tensor, times: Tensor | None = None, stations: Tensor | None = None) -> Tensor:
        out = self.value(series.transpose(1, 2)).transpose(1, 2)
        if self.time is not None:
            out = out + self.time(times)
        if self.station is not None:
            assert stations is not None
            out = out + self.station(stations)[:, None]
        return out


class SeriesForecaster(nn.Module):
    """Windows [N, length, channels] of any scale -> [N, horizon, channels]; each station or series is a sample of its own.

    length * dim must be a square: its root is the side of the image that the network sees. dim: width of the embedding, which
    divides the network's map into tokens. encoder: any network with `forward_features`, one input channel and no classes; by
    default a UniRepLKNet of a block per stage with widths `dims` and kernels of `kernel_size` after the first stage.
    time_features, station_features: numbers per step and per sample that the embedding takes beside the values.

    The paper's: length 48, horizon 24, dim 768 and UniRepLKNet-S, whose map of 192 pixels is 768 x 6 x 6. Corrformer's
    correlation between stations is left out.
    """

    def __init__(
        self,
        length: int = 48,
        horizon: int = 24,
        channels: int = 1,
        dim: int = 48,
        kernel_size: int = 13,
        dims: tuple[int, ...] = (24, 48, 48),
        smooth: int = 25,
        encoder: nn.Module | None = None,
        time_features: int = 0,
        station_features: int = 0,
    ):
        super().__init__()
        if math.isqrt(length * dim) ** 2 != length * dim:
            raise InputError(f"length {length} times dim {dim} is no square; length 48 takes dim 48, length 64 dim 64 or 16")
        self.length, self.horizon, self.dim, self.smooth = length, horizon, dim, smooth
        self.time_features, self.station_features = time_features, station_features
        self.embed = SeriesEmbedding(channels, dim, time_features, station_features)
        self.embed_decoder = SeriesEmbedding(channels, dim, time_features, station_features)
        if encoder is None:
            depths = tuple(1 for _ in dims)
            kernels = (3, *[kernel_size] * (len(dims) - 1))
            encoder = UniRepLKNet(1, 0, depths, dims, kernels, stem_stride=2, layer_scale=1.0)
        if not hasattr(encoder, "forward_features"):
            raise InputError(f"{type(encoder).__name__} has no forward_features, which gives the encoder's map")
        self.encoder: Any = encoder
        self.decoder = SeriesDecoderLayer(dim, channels, smooth)
        self.out = nn.Linear(dim, channels)

    def forward(self, window: Tensor, times: Tensor | None = None, stations: Tensor | None = None) -> Tensor:
        """times: [N, length + horizon, time_features]. stations: [N, station_features]."""
        self._check(window, times, stations)
        mean = window.mean(1, keepdim=True)
        spread = window.std(1, keepdim=True, unbiased=False).clamp(min=1e-5)
        window = (window - mean) / spread
        half = self.length // 2
        past, recent = (None, None) if times is None else (times[:, : self.length], times[:, -half - self.horizon :])
        image = fold_series(self.embed(window, past, stations))
        memory = unfold_series(self.encoder.forward_features(image), self.dim)
        seasonal, trend = decompose(window, self.smooth)
        later = window.new_zeros(len(window), self.horizon, window.shape[2])
        seasonal = torch.cat((seasonal[:, -half:], later), 1)
        trend = torch.cat((trend[:, -half:], later + window.mean(1, keepdim=True)), 1)
        x, more = self.decoder(self.embed_decoder(seasonal, recent, stations), memory)
        made = (self.out(x) + trend + more)[:, -self.horizon :]
        return made * spread + mean

    def _check(self, window: Tensor, times: Tensor | None, stations: Tensor | None) -> None:
        if window.ndim != 3 or window.shape[1] != self.length:
            raise InputError(f"windows are [N, {self.length}, channels], not {list(window.shape)}")
        wanted = {
            "times": (times, [len(window), self.length + self.horizon, self.time_features]),
            "stations": (stations, [len(window), self.station_features]),
        }
        for name, (given, shape) in wanted.items():
            if (list(given.shape) if given is not None else None) != (shape if shape[-1] else None):
                found = "none" if given is None else list(given.shape)
                raise InputError(f"{name} are {shape if shape[-1] else 'none'} for this forecaster, not {found}")
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(window).all()):
            raise InputError("a window of the series holds numbers that are not finite; fill the gaps first")
