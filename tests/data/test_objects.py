from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData, ImageFolder

from paperworks.data import open_images
from paperworks.data.decode import decode
from paperworks.errors import InputError
from tests.data.making import encoded, picture, write_jpegs


class Items:
    def __init__(self, items: list[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def test_torchvision_objects(tmp_path: Path) -> None:
    made = FakeData(size=6, image_size=(3, 8, 9), num_classes=4)
    source = open_images(made)
    assert len(source) == 6 and source.images.shape == (6, 3, 8, 9)
    assert [sample["label"] for sample in source] == [int(made[i][1]) for i in range(6)]

    folder = ImageFolder(str(write_jpegs(tmp_path, broken=0)))
    ours = open_images(folder)
    assert ours.classes == folder.classes and ours.labels is not None and ours.labels.tolist() == folder.targets
    assert np.array_equal(ours[3]["image"].movedim(0, -1).numpy(), np.asarray(folder[3][0]))


def test_dicts_tensors_and_arrays() -> None:
    pixels = torch.randint(0, 255, (3, 5, 6), dtype=torch.uint8)
    items = [
        {"img": pixels, "label": 1},
        {"img": pixels.float() / 255, "label": 0},
        {"img": pixels.movedim(0, -1).numpy(), "label": 1},
    ]
    source = open_images(Items(items))
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert all(torch.equal(sample["image"], pixels) for sample in source)


def test_images_alone_have_no_labels() -> None:
    source = open_images(Items([picture(0), picture(1)]))
    assert source.labels is None and len(source) == 2
    with pytest.raises(InputError, match=r"must be \(image, label\) tuples"):
        open_images(Items([picture(0)]), labels="required")


def test_items_that_fail_are_skipped() -> None:
    source = open_images(Items([(picture(0), 1), OSError("disk"), (None, 0), (picture(1), 0)]))
    assert len(source) == 2 and source.labels is not None and source.labels.tolist() == [1, 0]
    assert source.skipped == [("Items[1]", "OSError: disk"), ("Items[2]", "NoneType is not an image")]


def test_normalised_tensors_are_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="leave Normalize out"):
        open_images(Items([(torch.randn(3, 4, 4), 0)]))


def test_what_is_no_data_set() -> None:
    for thing in (42, iter([]), None):
        with pytest.raises(InputError, match="no source of images"):
            open_images(thing)
    with pytest.raises(InputError, match="Items is empty"):
        open_images(Items([]))
    with pytest.raises(InputError, match="open already"):
        open_images(open_images("digits"))


def test_hugging_face_objects() -> None:
    pngs = [encoded(picture(number, (9, 7)), "PNG") for number in range(4)]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"picture": [{"bytes": png, "path": None} for png in pngs], "kind": [0, 1, 1, 0]}
    source = open_images(datasets.Dataset.from_dict(rows, features=features))
    assert source.classes == ["ant", "bee"] and [sample["label"] for sample in source] == [0, 1, 1, 0]
    assert torch.equal(source[2]["image"], decode(pngs[2]))
    shuffled = open_images(datasets.Dataset.from_dict(rows, features=features).select([2, 0]))
    assert [sample["label"] for sample in shuffled] == [1, 0] and torch.equal(shuffled[0]["image"], decode(pngs[2]))


def test_palette_pictures_in_objects() -> None:
    assert open_images(Items([(picture(0).convert("P"), 0), (Image.new("1", (48, 40)), 1)])).images.shape == (2, 3, 40, 48)
