import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torchvision

from paperworks.data import cifar, open_images
from paperworks.errors import InputError


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """A tiny CIFAR-10 in the layout of the binary version."""
    draws = np.random.default_rng(0)
    for number, name in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    ):
        records = draws.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(4) + number
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    return tmp_path


def test_binary_batches(binary: Path) -> None:
    train, test = open_images(binary), open_images(binary, split="test")
    assert len(train) == 20 and len(test) == 4 and len(open_images(binary, split="all")) == 24
    assert train.classes is not None and train.classes[3] == "cat" and train[4]["label"] == 1
    record = np.frombuffer((binary / "test_batch.bin").read_bytes(), dtype=np.uint8).reshape(4, 3073)[2]
    assert np.array_equal(test[2]["image"].numpy().reshape(-1), record[1:]) and test[2]["label"] == record[0]
    assert open_images(binary, channels=1)[0]["image"].shape == (1, 32, 32)
    assert len(open_images(binary.parent / binary.name)) == 20


def test_missing_and_cut_batches_are_named(binary: Path) -> None:
    (binary / "data_batch_3.bin").write_bytes(b"short")
    with pytest.raises(InputError, match=r"data_batch_3\.bin is missing or cut short"):
        open_images(binary)
    assert len(open_images(binary, split="test")) == 4


def test_python_batches_are_read_only_when_they_are_the_published_ones(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'echo unsafe'\ntR.")
    with pytest.raises(InputError, match="not the published ones"):
        open_images(tmp_path)


def test_binary_batches_put_into_the_cache_need_no_download(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = binary / "home"
    monkeypatch.setattr(cifar, "cache_folder", lambda: home)
    (home / "cifar10").mkdir(parents=True)
    (home / "cifar10" / "cifar-10-batches-bin").symlink_to(binary)
    assert len(open_images("cifar10")) == 20


def test_without_a_network_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)
    with pytest.raises(InputError, match=r"cifar10 cannot be downloaded .*give the folder"):
        open_images("cifar10")
