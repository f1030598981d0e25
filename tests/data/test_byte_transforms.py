"""Orders, cameras, noise and alphabets of bytes."""

import pytest
import torch

from paperworks.data import byte_transforms as change
from paperworks.errors import InputError


def test_orders():
    x = torch.arange(10)
    assert change.reverse(x).tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert change.cyclic_half(x[:5]).tolist() == [3, 4, 0, 1, 2]
    assert change.deinterleave(x, 4).tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]
    assert change.deinterleave(x, 100).tolist() == x.tolist()
    order = torch.tensor([2, 0, 3, 1])
    assert change.shuffle_windows(x, order).tolist() == [2, 0, 3, 1, 6, 4, 7, 5, 8, 9]
    assert change.shuffle_windows(x[:3], order).tolist() == [0, 1, 2]
    assert change.window_order(64).sort().values.tolist() == list(range(64))
    assert torch.equal(change.shuffle_windows(torch.stack([x, x]), order)[1], change.shuffle_windows(x, order))


def test_a_camera_keeps_the_same_places_of_every_file_in_order():
    x = torch.arange(3072)
    kept = change.keep_some(x, 0.1)
    assert len(kept) == 307 and bool((kept.diff() > 0).all())
    assert torch.equal(change.keep_some(x + 5, 0.1), kept + 5)
    assert torch.equal(change.keep_some(x, 1.0), x)
    with pytest.raises(InputError, match="a share of the values"):
        change.keep_some(x, 0.0)


def test_noise_wraps_around_and_comes_from_the_generator():
    x = torch.tensor([0, 255, 100], dtype=torch.uint8)
    assert change.add(x, torch.tensor([-1, 1, 5])).tolist() == [255, 0, 105]
    many = torch.full((4000,), 7, dtype=torch.int32)
    draw = lambda seed: change.uniform_noise(many, 3, torch.Generator().manual_seed(seed))  # noqa: E731
    assert sorted(set(draw(0).tolist())) == [4, 5, 6, 7, 8, 9, 10]
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    with pytest.raises(InputError, match="noise of up to 300"):
        change.uniform_noise(many, 300, torch.Generator())


def test_the_alphabet_is_a_permutation_that_stays_the_same():
    assert change.alphabet().sort().values.tolist() == list(range(256))
    assert change.alphabet()[:4].tolist() == [239, 90, 81, 175]
    x = torch.tensor([0, 1, 0], dtype=torch.uint8)
    assert change.permuted(x).tolist() == [239, 90, 239]
