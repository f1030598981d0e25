"""Affine maps and curves of batches."""

import pytest
import torch

from paperworks.data.transforms import eval_shift
from paperworks.data.wobble import Chain, Tone, Wobble
from paperworks.errors import InputError

IMAGES = torch.randint(0, 256, (3, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STILL = {"degrees": 0, "stretch": 0, "slant": 0, "move": 0}
MIDDLE = torch.full((3, 7), 0.5)


def drawn(place: int, value: float) -> torch.Tensor:
    uniforms = MIDDLE.clone()
    uniforms[:, place] = value
    return uniforms


def test_nothing_but_the_centre_square_when_nothing_moves():
    assert torch.equal(Wobble(8, **STILL).apply(IMAGES, torch.rand(3, 6)), eval_shift(8).apply(IMAGES, MIDDLE[:, :0]))


def test_turned_moved_and_mirrored():
    turned = Wobble(6, **{**STILL, "degrees": 90}).apply(IMAGES, drawn(0, 1.0))
    assert torch.equal(turned, IMAGES.rot90(-1, (2, 3)))
    moved = Wobble(6, **{**STILL, "move": 2}).apply(IMAGES, drawn(4, 1.0))
    assert torch.equal(moved[..., 2:], IMAGES[..., :-2]) and not moved[..., :2].any()
    down = Wobble(6, **{**STILL, "move": 2}).apply(IMAGES, drawn(5, 0.0))
    assert torch.equal(down[:, :, :-2], IMAGES[:, :, 2:])
    assert torch.equal(Wobble(6, **STILL, flip=True).apply(IMAGES, drawn(6, 0.1)), IMAGES.flip(3))


def test_stretched_images_keep_their_centre_and_their_values():
    block = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    block[..., 4:8, 4:8] = 77
    wider = Wobble(12, **{**STILL, "stretch": 0.5}).apply(block, torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.5, 0.5]]))
    assert wider.unique().tolist() == [0, 77]
    assert wider[0, 0, 6].nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7, 8] and int((wider[0, 0, :, 6] > 0).sum()) == 4


def test_every_image_depends_on_its_own_draws():
    chain, uniforms = Chain(Wobble(8, flip=True), Tone()), torch.rand(3, 8)
    assert chain.draws == 8
    together = chain.apply(IMAGES, uniforms)
    assert together.shape == (3, 2, 8, 8)
    assert torch.equal(together[1:2], chain.apply(IMAGES[1:2], uniforms[1:2]))


def test_tones_keep_black_and_white_and_the_order():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(3, -1, -1, -1)
    dark, same, bright = Tone(2.0).apply(ramp, torch.tensor([[1.0], [0.5], [0.0]])).flatten(1).int()
    assert torch.equal(same, ramp[0].flatten().int())
    for curve in (dark, bright):
        assert curve[0] == 0 and curve[255] == 255 and bool((curve.diff() >= 0).all())
    assert dark[128] == 64 and bright[128] == 181


def test_what_makes_no_transform():
    with pytest.raises(InputError, match="no wobble"):
        Wobble(8, stretch=1)
    with pytest.raises(InputError, match="largest exponent"):
        Tone(0.5)
