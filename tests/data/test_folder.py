import os
from pathlib import Path

import pytest
import torch

from paperworks.data import open_images
from paperworks.data.folder import walk
from paperworks.errors import InputError
from tests.data.making import encoded, picture, write_jpegs


def put(path: Path, number: int = 0, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(number), kind))


def test_class_folders_give_labels(jpeg_folder: Path) -> None:
    source = open_images(jpeg_folder)
    assert len(source) == 25 and source.classes == ["class0", "class1", "class2"]
    assert source.labels is not None
    assert [f"class{label}" for label in source.labels.tolist()] == [source.key(i).split("/")[0] for i in range(25)]
    sample = source[3]
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape[0] == 3
    assert sample["label"] == source.labels[3] and sample["key"] == source.key(3)


def test_broken_images_are_skipped_counted_and_listed(jpeg_folder: Path) -> None:
    source = open_images(jpeg_folder)
    assert sorted(what for what, _ in source.skipped) == sorted(
        f"class{number % 3}/{number:03d}{('.jpg', '.JPG', '.jpeg')[number % 3]}" for number in range(5)
    )
    reasons = dict(source.skipped)
    assert reasons["class0/000.jpg"] == "empty file" and reasons["class2/002.jpeg"] == "not an image"
    assert "5 skipped" in repr(source)


def test_strict_names_the_first_broken_image(jpeg_folder: Path) -> None:
    with pytest.raises(InputError, match=r"^class0/000\.jpg: empty file; without strict") as error:
        open_images(jpeg_folder, strict=True)
    assert "\n" not in str(error.value)
    for number in range(5):
        next(jpeg_folder.rglob(f"{number:03d}.*")).unlink()
    assert len(open_images(jpeg_folder, strict=True)) == 25


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = open_images(write_jpegs(tmp_path, classes=0))
    assert len(source) == 25 and source.labels is None and source.classes is None and "label" not in source[0]
    with pytest.raises(InputError, match="sub-folder of its own"):
        open_images(tmp_path, labels="required")


def test_files_deep_below_a_class_folder_belong_to_it(tmp_path: Path) -> None:
    put(tmp_path / "cats/house/grey/a.PNG", kind="PNG")
    put(tmp_path / "cats/b.jpg")
    put(tmp_path / "dogs/2024/c.JpEg")
    source = open_images(tmp_path)
    assert source.classes == ["cats", "dogs"] and source.labels is not None and source.labels.tolist() == [0, 0, 1]


def test_a_single_folder_inside_is_looked_through(tmp_path: Path) -> None:
    put(tmp_path / "archive/photos/a.jpg")
    put(tmp_path / "archive/photos/b.jpg")
    assert open_images(tmp_path).labels is None
    assert open_images(tmp_path, labels="required").classes == ["photos"]
    put(tmp_path / "archive/drawings/c.jpg")
    assert open_images(tmp_path).classes == ["drawings", "photos"]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    for name in ("._a.jpg", ".hidden/b.jpg", "__MACOSX/a.jpg", "notes.txt"):
        put(tmp_path / name)
    assert walk(tmp_path) == ["a.jpg", "notes.txt"]
    source = open_images(tmp_path)
    assert len(source) == 1 and not source.skipped


def test_images_beside_class_folders_are_listed(tmp_path: Path) -> None:
    for name in ("cats/a.jpg", "dogs/b.jpg", "cover.jpg"):
        put(tmp_path / name)
    source = open_images(tmp_path)
    assert len(source) == 2 and source.skipped == [("cover.jpg", "lies beside the class folders, so it has no label")]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    put(tmp_path / "cats/a.jpg")
    put(tmp_path / "dogs/a.jpg")
    os.symlink(tmp_path, tmp_path / "dogs/again")
    os.symlink(tmp_path / "nowhere.jpg", tmp_path / "dogs/gone.jpg")
    source = open_images(tmp_path)
    assert len(source) == 2 and source.skipped == [("dogs/gone.jpg", "cannot be opened (No such file or directory)")]


def test_train_and_validation_folders_are_the_parts(tmp_path: Path) -> None:
    for number, name in enumerate(["train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg", "val/c/4.jpg"]):
        put(tmp_path / name, number)
    train, test, both = (open_images(tmp_path, split=split) for split in ("train", "test", "all"))
    assert train.classes == test.classes == both.classes == ["a", "b", "c"]
    assert train.labels is not None and train.labels.tolist() == [0, 1]
    assert test.labels is not None and test.labels.tolist() == [1, 2]
    assert len(both) == 4 and len(open_images(tmp_path)) == 2


def test_an_unlabelled_test_folder_gives_way_to_validation(tmp_path: Path) -> None:
    for name in ["train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg", "test/4.jpg"]:
        put(tmp_path / name)
    assert [sample["key"] for sample in open_images(tmp_path, split="test")] == ["valid/a/3.jpg"]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "bus/b.jpg"):
        put(tmp_path / name)
    assert open_images(tmp_path).classes == ["bus", "train"]


def test_a_tenth_is_set_aside_when_there_is_no_test_part(jpeg_folder: Path) -> None:
    train, test = open_images(jpeg_folder, split="train"), open_images(jpeg_folder, split="test")
    keys = [{source.key(i) for i in range(len(source))} for source in (train, test)]
    assert not keys[0] & keys[1] and len(train) + len(test) == 25 and 1 <= len(test) <= 3
    assert keys[1] == {sample["key"] for sample in open_images(jpeg_folder, split="test")}
    assert train.classes == test.classes and len(train.skipped) == len(test.skipped) == 5
    whole = {sample["key"]: sample for sample in open_images(jpeg_folder)}
    for sample in [*train, *test]:
        assert torch.equal(sample["image"], whole[sample["key"]]["image"]) and sample["label"] == whole[sample["key"]]["label"]


def test_the_part_set_aside_never_consists_of_broken_images(tmp_path: Path) -> None:
    write_jpegs(tmp_path, count=12, broken=9, classes=0)
    parts = [open_images(tmp_path, split=split, memory=memory) for split in ("train", "test") for memory in (10**6, 100)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert [s["key"] for s in parts[0]] == [s["key"] for s in parts[1]]


def test_a_single_image_file_is_a_source(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    assert len(open_images(tmp_path / "a.jpg")) == 1
    with pytest.raises(InputError, match="no test part can be set aside from 1 image"):
        open_images(tmp_path / "a.jpg", split="test")
