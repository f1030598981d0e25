"""Discriminators: one logit per patch, and blurring that halves any side."""

import pytest
import torch

from paperworks.layers.discriminators import Blur, BlurDiscriminator, PatchDiscriminator


@pytest.mark.parametrize("side", [16, 32, 65])
def test_blur_discriminator_answers_on_a_grid_of_16(side):
    assert BlurDiscriminator(1, 8, 2, groups=4)(torch.rand(2, 1, side, side)).shape == (2, 1, 16, 16)


def test_patch_discriminator_has_a_logit_per_patch():
    assert PatchDiscriminator(3, 8, 2)(torch.rand(2, 3, 32, 32)).shape == (2, 1, 6, 6)


@pytest.mark.parametrize("side", [7, 8])
def test_blur_halves_rounding_up_and_keeps_a_constant_inside(side):
    blurred = Blur()(torch.ones(1, 2, side, side))
    assert blurred.shape[-1] == -(-side // 2)
    assert torch.allclose(blurred[..., 1:-1, 1:-1], torch.ones(()))
