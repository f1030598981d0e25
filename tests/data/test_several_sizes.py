"""Images at several sizes: names, draws of their own, and batches equal to stacked samples."""

import pytest
import torch

from paperworks.data import ImageSource
from paperworks.data.several_sizes import SeveralSizes
from paperworks.data.transforms import train_crop
from paperworks.errors import InputError


def source() -> ImageSource:
    images = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSource.from_tensor(images, torch.arange(6) % 2, name="noise")


def test_batches_hold_every_size_and_equal_the_samples():
    data = SeveralSizes(source(), (16, 12), train_crop, seed=1)
    data.set_epoch(2)
    stacked, samples = data.batch([4, 1]), data.__getitems__([4, 1])
    assert stacked is not None and len(data) == 6
    assert stacked["image"].shape == (2, 3, 16, 16) and stacked["image12"].shape == (2, 3, 12, 12)
    assert stacked["label"].tolist() == [0, 1]
    for row, sample in enumerate(samples):
        assert all(torch.equal(stacked[name][row], sample[name].as_subclass(torch.Tensor)) for name in ("image", "image12"))
    data.set_epoch(3)
    again = data.batch([4, 1])
    assert again is not None and not torch.equal(again["image"], stacked["image"])


def test_sizes_are_given_once_each():
    with pytest.raises(InputError, match="each once"):
        SeveralSizes(source(), (16, 16), train_crop, seed=0)
    with pytest.raises(InputError, match="at least one"):
        SeveralSizes(source(), (), train_crop, seed=0)
