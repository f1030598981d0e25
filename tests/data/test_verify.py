from pathlib import Path

import pytest
import torch

from paperworks.data import open_images
from paperworks.data.decode import Unreadable
from paperworks.data.folder import FileReader
from paperworks.data.source import InMemory
from paperworks.data.verify import cache_folder, verified
from paperworks.errors import InputError
from tests.data.making import encoded, picture, write_jpegs


class Made:
    """A reader of made-up images; negative sizes are broken."""

    def __init__(self, sizes: list[int]):
        self.sizes = sizes
        self.reads = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def key(self, position: int) -> str:
        return f"image {position}"

    def read(self, position: int) -> torch.Tensor:
        self.reads += 1
        if self.sizes[position] < 0:
            raise Unreadable("broken")
        return torch.full((1, self.sizes[position], 4), position, dtype=torch.uint8)


def run(reader: Made, **options: object):
    return verified(reader, name="made", **options)  # type: ignore[arg-type]


def test_images_of_one_size_become_one_tensor() -> None:
    reader, good, skipped = run(Made([4, -1, 4, 4, -1]))
    assert isinstance(reader, InMemory) and isinstance(reader.images, torch.Tensor)
    assert reader.images[:, 0, 0, 0].tolist() == good.tolist() == [0, 2, 3]
    assert skipped == [("image 1", "broken"), ("image 4", "broken")]
    assert [reader.key(i) for i in range(3)] == ["image 0", "image 2", "image 3"]


def test_images_of_several_sizes_become_a_list() -> None:
    reader, good, _ = run(Made([4, 4, 5, -1, 4]))
    assert isinstance(reader, InMemory) and isinstance(reader.images, list)
    assert [int(image[0, 0, 0]) for image in reader.images] == good.tolist() == [0, 1, 2, 4]


def test_more_blocks_than_one_and_threads_keep_the_order() -> None:
    sizes = [20_000 if number % 3 else -1 for number in range(200)]  # large enough for threads
    reader, good, skipped = run(Made(sizes))
    assert good.tolist() == [number for number in range(200) if number % 3] and len(skipped) == 67
    assert isinstance(reader, InMemory) and [int(image[0, 0, 0]) for image in reader.images] == good.tolist()


@pytest.mark.parametrize("sizes", [[4] * 10, [4, 5] * 5])
def test_sources_beyond_the_budget_stay_where_they_are(sizes: list[int]) -> None:
    made = Made([*sizes, -1])
    reader, good, skipped = run(made, memory=100)
    assert reader is made and good.tolist() == list(range(10)) and len(skipped) == 1


def test_nothing_readable_is_an_error() -> None:
    with pytest.raises(InputError, match=r"none of its 2 images can be read; the first is image 0 \(broken\)"):
        run(Made([-1, -1]))


def test_the_outcome_for_a_large_source_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERWORKS_CACHE", str(tmp_path / "cache"))
    folder = write_jpegs(tmp_path / "jpegs")
    reads = []
    read = FileReader.encoded
    monkeypatch.setattr(FileReader, "encoded", lambda self, position: reads.append(position) or read(self, position))
    first = open_images(folder, memory=1000)
    assert len(reads) == 30 and len(first) == 25
    again = open_images(folder, memory=1000)
    assert len(reads) == 30 and again.skipped == first.skipped and len(again) == 25
    assert torch.equal(again[7]["image"], first[7]["image"]) and again[7]["label"] == first[7]["label"]
    with pytest.raises(InputError, match=r"000\.jpg"):
        open_images(folder, memory=1000, strict=True)

    (folder / "class0/000.jpg").write_bytes(encoded(picture(0)))  # repaired: everything is looked at again
    assert len(open_images(folder, memory=1000)) == 26


def test_an_image_that_vanishes_later_is_named(tmp_path: Path) -> None:
    source = open_images(write_jpegs(tmp_path, broken=0), memory=1000)
    (tmp_path / source.key(3)).unlink()
    with pytest.raises(InputError, match=rf"{source.key(3)} was readable when it was opened"):
        source[3]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERWORKS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/paperworks")
