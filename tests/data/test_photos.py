import pytest
import torch

from paperworks.data import ImageSource, open_images, random_crops
from paperworks.errors import InputError


def test_crops_are_windows_of_the_photos() -> None:
    photos = open_images("photos", split="test")
    crops = random_crops(photos, 64, 40, seed=0)
    assert crops.images.shape == (40, 3, 64, 64) and crops.licence == photos.licence
    whole = {sample["key"]: sample["image"] for sample in photos}
    for sample in crops:
        name, _, place = sample["key"].partition("@")
        top, left = map(int, place.split(","))
        assert torch.equal(sample["image"], whole[name][:, top : top + 64, left : left + 64])
    assert torch.equal(crops.images, random_crops(photos, 64, 40, seed=0).images)
    assert not torch.equal(crops.images, random_crops(photos, 64, 40, seed=1).images)


def test_positions_are_equally_likely() -> None:
    small, large = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.ones(1, 5, 8, dtype=torch.uint8)
    source = ImageSource.from_tensor([small, large], torch.tensor([0, 1]), name="two")
    crops = random_crops(source, 4, 5500, seed=0, by_area=True)
    counts: dict[str, int] = {}
    for index in range(len(crops)):
        counts[crops.key(index)] = counts.get(crops.key(index), 0) + 1
    assert len(counts) == 11 and all(abs(count - 500) < 100 for count in counts.values())
    assert crops.labels is not None and torch.equal(crops.labels, crops.images[:, 0, 0, 0].long())


def test_every_photo_gives_as_many_crops() -> None:
    crops = random_crops(open_images("photos"), 32, 1800, seed=0)
    names = [crops.key(index).partition("@")[0] for index in range(1800)]
    assert len(set(names)) == 9 and all(140 < names.count(name) < 260 for name in set(names))


def test_small_photos_are_listed() -> None:
    sizes = [(1, 3, 9), (1, 6, 6)]
    source = ImageSource.from_tensor([torch.zeros(size, dtype=torch.uint8) for size in sizes], name="two")
    assert random_crops(source, 5, 3, seed=0).skipped == [("two/00000", "smaller than 5 x 5")]
    with pytest.raises(InputError, match="no image holds a crop of 7 x 7; the largest allows 6"):
        random_crops(source, 7, 3, seed=0)
