import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from paperworks.data import Loader, Transformed, open_images
from paperworks.data.decode import decode
from paperworks.data.shards import expand
from paperworks.data.transforms import train_crop
from paperworks.errors import InputError
from tests.data.making import encoded, picture

PNGS = [encoded(picture(number, (12, 10)), "PNG") for number in range(12)]


def write(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards_written_by_webdataset(tmp_path: Path) -> None:
    for shard in range(3):
        with webdataset.TarWriter(str(tmp_path / f"x-{shard:03d}.tar")) as sink:
            for row in range(4):
                sink.write({"__key__": f"sample{row:02d}", "png": PNGS[4 * shard + row], "cls": row % 2, "txt": "words"})
    source = open_images(str(tmp_path / "x-{000..002}.tar"))
    assert len(source) == 12 and source.classes == ["0", "1"] and source.labels is not None
    assert source.labels.tolist() == [0, 1] * 6
    for number in range(12):
        assert torch.equal(source[number]["image"], decode(PNGS[number]))
    assert source[5]["key"] == "x-001.tar/sample01"
    assert len(open_images(tmp_path)) == 12 and len(open_images(tmp_path / "x-001.tar")) == 4


def test_labels_in_json_and_as_texts(tmp_path: Path) -> None:
    members = {"a/1.jpg": encoded(picture(0)), "a/1.json": json.dumps({"label": "dog", "width": 3}).encode()}
    members |= {"a/2.left.png": PNGS[0], "a/2.json": json.dumps({"label": "cat"}).encode()}
    source = open_images(write(tmp_path / "a.tar", members))
    assert source.classes == ["cat", "dog"] and [s["label"] for s in source] == [1, 0]


def test_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"1.png": PNGS[0], "2.png": PNGS[1]})
    assert open_images(path).labels is None
    with pytest.raises(InputError, match=r"store a \.cls file"):
        open_images(path, labels="required")
    with pytest.raises(InputError, match="1 of 2 images have no label"):
        open_images(write(tmp_path / "b.tar", {"1.png": PNGS[0], "1.cls": b"0", "2.png": PNGS[1]}))


def test_broken_images_and_damaged_tars(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", {f"{n}.png": PNGS[n] if n != 1 else b"junk" for n in range(6)})
    assert open_images(whole).skipped == [("a.tar/1", "not an image")]
    cut = tmp_path / "b.tar"
    cut.write_bytes(whole.read_bytes()[: 4 * 1024 + 200])
    source = open_images(cut)
    assert 1 <= len(source) < 5 and any(what == "b.tar" and "damaged tar file" in why for what, why in source.skipped)
    with pytest.raises(InputError, match="damaged tar file"):
        open_images(cut, strict=True)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x-0.tar", {"1.png": PNGS[0]})
    with pytest.raises(InputError, match=r"x-1\.tar: no such shard \(2 named by x-\{0\.\.1\}\.tar\)"):
        open_images(str(tmp_path / "x-{0..1}.tar"))
    with pytest.raises(InputError, match="no images in 1 tar files"):
        open_images(write(tmp_path / "text.tar", {"1.txt": b"hello"}))
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="compressed shards"):
        open_images(tmp_path / "a.tar.gz")


def test_parts_by_file_name(tmp_path: Path) -> None:
    for name, numbers in {"train-0": range(8), "val-0": range(8, 12)}.items():
        write(tmp_path / f"{name}.tar", {f"{n}.png": PNGS[n] for n in numbers})
    assert len(open_images(tmp_path, split="train")) == 8 and len(open_images(tmp_path, split="test")) == 4


def test_workers_read_the_same_file(tmp_path: Path) -> None:
    source = open_images(write(tmp_path / "a.tar", {f"{n}.png": PNGS[n] for n in range(12)}), memory=100)
    assert not source.is_stacked
    data = Transformed(source, train_crop(8), seed=0)
    alone, helped = ([b["image"] for b in Loader(data, 4, seed=0, workers=workers)] for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a.tar", ["a.tar"]),
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("x-{8..11}.tar", ["x-8.tar", "x-9.tar", "x-10.tar", "x-11.tar"]),
        ("{b,a}/{0..1}.tar", ["b/0.tar", "b/1.tar", "a/0.tar", "a/1.tar"]),
    ],
)
def test_expanding(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 6))
def test_ranges_keep_their_padding(begin: int, more: int, width: int) -> None:
    names = expand(f"s{{{begin:0{width}d}..{begin + more:0{width}d}}}e")
    assert [int(name[1:-1]) for name in names] == list(range(begin, begin + more + 1))
    assert all(len(name) - 2 >= width for name in names)
