from pathlib import Path

import pytest

from paperworks.data import open_images
from paperworks.errors import InputError
from tests.data.making import encoded, picture, write_jpegs


@pytest.mark.parametrize(
    "source, words",
    [
        ("mnsit5k", "did you mean 'mnist5k'"),
        ("Photos", "did you mean 'photos'"),
        ("zzzz", "names are default, mnist5k"),
        ("no/such/folder", "'no/such/folder' does not exist"),
    ],
)
def test_names_and_paths_that_do_not_exist(source: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        open_images(source)
    assert "\n" not in str(error.value)


def test_a_misspelt_folder_beside_the_right_one(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "holiday", count=2, broken=0)
    with pytest.raises(InputError, match=r"did you mean '.*/holiday'"):
        open_images(tmp_path / "holidays")


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty: put images"):
        open_images(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no images: 1 files such as notes\.txt"):
        open_images(tmp_path)
    with pytest.raises(InputError, match=r"give a folder, .* not a \.txt"):
        open_images(tmp_path / "notes.txt")


def test_nothing_readable(tmp_path: Path) -> None:
    write_jpegs(tmp_path, count=4, broken=4)
    with pytest.raises(InputError, match="none of its 4 images can be read"):
        open_images(tmp_path)


def test_options_are_checked() -> None:
    for options, words in [
        ({"channels": 2}, "channels=2"),
        ({"split": "val"}, "split='val'"),
        ({"labels": "yes"}, "labels='yes'"),
    ]:
        with pytest.raises(InputError, match=words):
            open_images("digits", **options)  # type: ignore[arg-type]


def test_labels_can_be_left_out(jpeg_folder: Path) -> None:
    source = open_images(jpeg_folder, labels="none")
    assert source.labels is None and source.classes is None and "label" not in source[0]
    with pytest.raises(InputError, match="photos has no labels"):
        open_images("photos", labels="required")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(jpeg_folder: Path, channels: int) -> None:
    assert open_images(jpeg_folder, channels=channels)[0]["image"].shape[0] == channels
    assert open_images("digits", channels=channels)[0]["image"].shape == (channels, 8, 8)


def test_home_and_text_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(encoded(picture(0), "PNG"))
    assert len(open_images("~/pictures")) == 1 and len(open_images(str(tmp_path / "pictures"))) == 1


def test_a_folder_that_is_called_like_a_name_needs_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jpegs(tmp_path / "digits", count=3, broken=0)
    monkeypatch.chdir(tmp_path)
    assert open_images("digits").name == "digits" and len(open_images("./digits")) == 3
