import sys
from typing import Any

import datasets
import pytest

from paperworks.data import open_images
from paperworks.errors import InputError
from tests.data.making import encoded, picture


def made(count: int) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    pngs = [{"bytes": encoded(picture(number), "PNG"), "path": None} for number in range(count)]
    return datasets.Dataset.from_dict({"img": pngs, "label": [number % 2 for number in range(count)]}, features=features)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one data set; the list collects what is loaded."""
    calls: list[Any] = []
    parts = {"train": made(8), "test": made(3)}

    def load(name: str, configuration: str | None, split: str) -> datasets.Dataset:
        calls.append((name, configuration, split))
        return parts[split]

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, configuration: list(parts))
    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def test_parts_of_a_hub_data_set(hub: list[Any]) -> None:
    train = open_images("hf:someone/insects")
    assert len(train) == 8 and train.classes == ["ant", "bee"] and train.name == "hf:someone/insects"
    assert hub == [("someone/insects", None, "train")]
    assert len(open_images("hf:someone/insects:small", split="test")) == 3
    assert hub[-1] == ("someone/insects", "small", "test")
    assert len(open_images("hf:someone/insects", split="all")) == 11


def test_imagenet_is_a_name_on_the_hub(hub: list[Any]) -> None:
    open_images("imagenet")
    assert hub[0][0] == "ILSVRC/imagenet-1k"


def test_without_a_network_there_is_one_line() -> None:
    with pytest.raises(InputError, match="hf:nobody/nothing cannot be had from the hub") as error:
        open_images("hf:nobody/nothing")
    assert "\n" not in str(error.value)


def test_without_the_library_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'paperworks\[hub\]'"):
        open_images("hf:someone/insects")
