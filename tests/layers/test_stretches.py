"""A sequence that goes through a layer in stretches comes out as it would whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paperworks.backbones.adventurer import Adventurer
from paperworks.backbones.inference import prepare_for_inference
from paperworks.layers import stretches
from paperworks.layers.mamba2 import Mamba2
from paperworks.layers.stretches import by_stretches, stretch


@pytest.fixture
def short(monkeypatch):
    """Stretches of 24 tokens at most, which is no multiple of the scan's chunk."""
    monkeypatch.setattr(stretches, "AT_ONCE", 1)
    monkeypatch.setattr(stretches, "LEAST", 24)


def test_a_stretch_is_as_long_as_its_widest_tensor_allows():
    x = torch.zeros(2, 50_000, 3)
    with torch.no_grad():
        assert stretch(x, 512) == 2048 and stretch(x, 8192) == stretches.LEAST and stretch(x[:, :100], 8192) == 100
    assert stretch(x, 512) == 50_000, "gradients want all tokens at once"


def test_the_layer_never_sees_more_tokens(short):
    seen: list[int] = []

    def layer(part):
        seen.append(part.shape[1])
        return part[..., :2] + 1

    x = torch.randn(3, 100, 5)
    with torch.no_grad():
        assert torch.equal(by_stretches(layer, x, 7), x[..., :2] + 1)
    assert seen == [24, 24, 24, 24, 4]


@pytest.mark.parametrize("length", [23, 24, 25, 48, 101])
def test_a_mixer_remembers_what_earlier_stretches_held(short, length):
    torch.manual_seed(length)
    mixer, x = Mamba2(16, state=8, head_dim=8).eval(), torch.randn(2, length, 16)
    nn.init.normal_(mixer.conv1d.weight)
    whole = mixer(x)
    with torch.no_grad():
        parts = mixer(x)
    assert whole.requires_grad and torch.allclose(whole, parts, atol=1e-5)
    assert length <= 24 or not torch.allclose(mixer(x[:, 24:]), whole[:, 24:], atol=1e-3), "the memory matters"


@pytest.mark.parametrize("flip", ["never", "alternate"])
def test_a_network_in_stretches(short, flip):
    torch.manual_seed(0)
    network = Adventurer(16, 2, 32, 2, mamba_d_state=8, headdim=16, flip=flip, num_classes=3).eval()
    images = torch.randn(2, 3, 16, 16)
    whole = network(images).detach()
    with torch.inference_mode():
        assert torch.allclose(network(images), whole, atol=1e-5)
        assert torch.allclose(prepare_for_inference(network, precision="32")(images), whole, atol=1e-4)
