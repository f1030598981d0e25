"""Perceptrons on maps and at the end of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.pooling import GlobalPool

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}

Activation = str | Callable[[], nn.Module]


def make_activation(kind: Activation) -> nn.Module:
    if callable(kind):
        return kind()
    if kind not in ACTIVATIONS:
        raise InputError(f"no activation {kind!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]()


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with an activation between them, on [N, C, H, W]."""

    def __init__(self, channels: int, hidden: int, act_layer: Activation = "gelu", drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = make_activation(act_layer)
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class PoolHead(nn.Module):
    """[N, C, H, W] -> logits: pooling, dropout, Linear. What stays when the rest of a head is taken off."""

    def __init__(self, channels: int, num_classes: int, pool: str = "avg", drop: float = 0.0):
        super().__init__()
        self.pool = GlobalPool(pool)
        self.num_features = self._between(channels * self.pool.width)
        self.drop = nn.Dropout(drop)
        self.fc2 = make_classifier(self.num_features, num_classes)

    def _between(self, features: int) -> int:
        """Makes the layers between pooling and classifier; returns the width of their output."""
        return features

    def neck(self, x: Tensor) -> Tensor:
        """[N, C * pool.width] -> [N, num_features]."""
        return x

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.neck(self.pool(x)))
        return x if pre_logits else self.fc2(x)


class NormHead(PoolHead):
    """LayerNorm before the classifier."""

    def _between(self, features: int) -> int:
        self.norm = nn.LayerNorm(features, eps=1e-6)
        return features

    def neck(self, x: Tensor) -> Tensor:
        return self.norm(x)


class MlpHead(PoolHead):
    """Linear to three times the width, GELU, and LayerNorm AFTER the activation, before the classifier."""

    def _between(self, features: int) -> int:
        hidden = 3 * features // self.pool.width
        self.fc1 = nn.Linear(features, hidden)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        return hidden

    def neck(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.fc1(x)))


def make_classifier(features: int, num_classes: int) -> nn.Module:
    """A Linear, or nothing for 0 classes."""
    if num_classes < 0:
        raise InputError(f"num_classes {num_classes}: take 0 (features only) or more")
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()
