import pytest
import torch

from paperworks.data.listing import choose_parts, number_labels, part_name
from paperworks.errors import InputError


@pytest.mark.parametrize(
    "name, part",
    [
        ("train-00000-of-00002.parquet", "train"),
        ("Train", "train"),
        ("test_images", "test"),
        ("validation", "validation"),
        ("val2017", "val"),
        ("training", None),
        ("testament.tar", None),
        ("my-train", None),
    ],
)
def test_part_names(name: str, part: str | None) -> None:
    assert part_name(name) == part


def test_choosing_parts() -> None:
    three = dict.fromkeys(["train", "validation", "test"], "")
    assert choose_parts(three, None) == choose_parts(three, "train") == ["train"]
    assert choose_parts(three, "test") == ["test"]
    assert choose_parts(three, "test", {"train": True, "validation": True, "test": False}) == ["validation"]
    assert choose_parts(three, "all") == list(three)
    assert choose_parts({"train": ""}, "test") is None and choose_parts({"test": "", "": ""}, "test") is None


def test_labels_from_numbers_and_texts() -> None:
    labels, classes = number_labels([2, 0, 1], "x")
    assert labels.tolist() == [2, 0, 1] and labels.dtype == torch.int64 and classes is None
    labels, classes = number_labels(["dog", "cat", "dog"], "x")
    assert labels.tolist() == [1, 0, 1] and classes == ["cat", "dog"]
    assert number_labels(["10", "-1"], "x")[0].tolist() == [10, -1]
    with pytest.raises(InputError, match="1 of 3 images have no label"):
        number_labels([1, None, 2], "x")
    with pytest.raises(InputError, match="all be integers or all be texts"):
        number_labels([1, "a"], "x")
