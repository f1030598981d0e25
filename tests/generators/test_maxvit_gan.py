"""The MaxViT generator: shapes, the reversed order, samples that depend on their own seed, settled statistics."""

import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.generators.maxvit_gan import MaxViTGenerator
from paperworks.layers.mbconv import MBConv
from paperworks.layers.multi_axis import MultiAxisAttention

TINY = {"dims": (16, 8), "depth": 1, "latent": 6, "tokens": 3, "token_dim": 8, "window": 4, "head_dim": 8}


def tiny(**more) -> MaxViTGenerator:
    torch.manual_seed(0)
    return MaxViTGenerator(**{"size": 16, "channels": 1, **TINY, **more}).eval()


def test_images_from_latents():
    model = tiny(channels=3, size=32)
    images = model(torch.randn(2, 6))
    assert images.shape == (2, 3, 32, 32) and images.abs().max() <= 1
    with pytest.raises(InputError, match=r"latents \[N, 6\]"):
        model(torch.randn(2, 5))


def test_a_block_goes_from_far_to_near_at_every_resolution():
    called: list[str] = []
    model = tiny()
    for module in model.modules():
        if isinstance(module, MultiAxisAttention):
            module.register_forward_hook(lambda layer, _, out: called.append(f"{layer.axis} {out.shape[1]}"))
        elif isinstance(module, MBConv):
            module.register_forward_hook(lambda _, __, out: called.append(f"conv {out.shape[2]}"))
    model(torch.randn(1, 6))
    assert called == ["grid 8", "block 8", "conv 8", "grid 16", "block 16", "conv 16"]
    assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())


def test_a_sample_depends_on_its_own_number_alone():
    model = tiny()
    images = model.sample(5, seed=3)
    assert images.shape == (5, 1, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert torch.allclose(model.sample(2, seed=3, first=2, batch_size=1), images[2:4], atol=1e-6)
    assert not torch.allclose(images[0], images[1])


def test_settled_statistics_are_those_of_made_batches():
    model = tiny()
    model.settle(torch.Generator().manual_seed(0), batches=4, batch_size=32)
    assert not model.training and model.norm.momentum == 0.1
    latents = torch.randn(256, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        settled = model(latents)
        own = model.train()(latents)
    assert (settled - own).abs().mean() < 0.05


def test_bad_sizes():
    with pytest.raises(InputError, match="size=20 is not 3 doublings"):
        tiny(size=20, dims=(16, 16, 16, 8))
    with pytest.raises(InputError, match="a width of 12"):
        tiny(dims=(12, 8))
