import pytest
import torch

from paperworks.data import ImageSource
from paperworks.data.joining import joined, labelled
from paperworks.errors import InputError


def source(count: int, size: int, name: str) -> ImageSource:
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    return ImageSource.from_tensor(images, torch.arange(count) % 2, name=name, classes=["a", "b"])


@pytest.mark.parametrize("size", [8, 12])
def test_images_follow_each_other_with_their_labels(size):
    first, second = source(3, 8, "first"), source(4, size, "second").subset([3, 1])
    both = joined(first, second)
    assert len(both) == 5 and both.classes == ["a", "b"] and both.name == "first and second"
    assert both.labels is not None and both.labels.tolist() == [0, 1, 0, 1, 1]
    assert torch.equal(both.read(4), second.read(1)) and both.key(3) == second.key(0)
    assert both.is_stacked == (size == 8)
    assert both[3]["label"] == 1


def test_labels_from_elsewhere_replace_a_sources_own():
    images = source(4, 8, "x")
    again = labelled(images.subset([0, 2]), torch.tensor([2, 1]), ["a", "b", "c"])
    assert again[0]["label"] == 2 and again.classes == ["a", "b", "c"] and images[0]["label"] == 0
    with pytest.raises(InputError, match="4 images, but labels of shape"):
        labelled(images, torch.tensor([1]), ["a", "b"])
    with pytest.raises(InputError, match="labels go from 0 to 5"):
        labelled(images, torch.tensor([0, 5, 0, 0]), ["a", "b"])
    with pytest.raises(InputError, match="their classes differ"):
        joined(images, again)
