"""Images and waveforms as files, files of any kind in folders, and their batches."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from paperworks.data import ImageSource, Loader, Transformed
from paperworks.data.file_bytes import Changes, EncodedImages, as_numbers, encode_image, encode_wave, open_files, pad
from paperworks.data.transforms import train_shift
from paperworks.errors import InputError


def image(channels: int = 3) -> torch.Tensor:
    """A slope, which JPEG keeps nearly as it is."""
    slope = torch.arange(12)[:, None] * 9 + torch.arange(10) * 12
    return slope.expand(channels, -1, -1).to(torch.uint8).contiguous()


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["tiff", "png", "jpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_image(format, channels):
    written = encode_image(image(channels), format)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(written)))).view(12, 10, -1).permute(2, 0, 1)
    difference = (pixels.int() - image(channels).int()).abs()
    assert difference.max() == 0 if format != "jpeg" else difference.max() < 8
    assert written[:2] == {"tiff": b"II", "png": b"\x89P", "jpeg": b"\xff\xd8"}[format]


def test_published_lengths():
    photo = torch.zeros(3, 224, 224, dtype=torch.uint8)
    lengths = {format: len(encode_image(photo, format)) for format in ("tiff", "png", "fchw", "fhwc")}
    assert lengths == {"tiff": 150_668, "png": 150_864, "fchw": 150_528, "fhwc": 150_528}


def test_bare_pixels_and_floats():
    small = torch.tensor([[[0.0, 0.999]], [[0.5, 1.0]]])[[0, 1, 1]]
    assert list(encode_image(small, "fchw")) == [0, 254, 127, 255, 127, 255]
    assert list(encode_image(small, "fhwc")) == [0, 127, 127, 254, 255, 255]


def test_quality_shortens_jpeg():
    assert len(encode_image(image(), "jpeg", 10)) < len(encode_image(image(), "jpeg", 100))


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ("float32", [0.0, 0.5, -1.0]),
        ("int32", [0, 2**30, -(2**31 - 1)]),
        ("int16", [0, 16384, -32767]),
        ("uint8", [128, 192, 1]),
    ],
)
def test_waveforms(samples, expected):
    written = encode_wave(torch.tensor([0.0, 0.5, -1.0]), 8000, samples)
    rate, stored = wavfile.read(io.BytesIO(written))
    assert written[:4] == b"RIFF" and rate == 8000 and stored.dtype.name == samples
    assert stored.tolist() == pytest.approx(expected, rel=1e-6, abs=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode_image(image(), "tif"), "did you mean 'tiff'"),
        (lambda: encode_image(torch.rand(2, 4, 4)), r"\[1 or 3, H, W\]"),
        (lambda: encode_image(torch.rand(3, 4, 4) + 1), r"lie in \[0, 1\]"),
        (lambda: encode_wave(torch.ones(4) * 2), "waveform"),
        (lambda: encode_wave(torch.ones(4), samples="int8"), "no samples 'int8'"),
        (lambda: Changes(order="backwards")(torch.zeros(4)), "no order 'backwards'"),
        (lambda: EncodedImages(images(), "tiff", changes=Changes(keep=0.5)), "of tiff the header's too: take format fhwc"),
        (lambda: EncodedImages(images(), "jpeg", changes=Changes(keep=0.5)), "take format fhwc or fchw"),
    ],
)
def test_what_cannot_be_written(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- batches ----------------------------------------------------------------------------------------------------------


def test_shorter_files_are_filled_up():
    assert pad([as_numbers(b"\x01\x02\xff"), as_numbers(b"\x07")]).tolist() == [[1, 2, 255], [7, -1, -1]]
    assert pad([as_numbers(b"\x01")], least=3).tolist() == [[1, -1, -1]]


def test_changes_come_in_their_order():
    file = as_numbers(bytes(range(200)))
    assert torch.equal(Changes()(file), file)
    changed = Changes("reverse", keep=0.25, permute=True)(file)
    plain = Changes("reverse", keep=0.25)(file)
    assert len(plain) == 50 and bool((plain.diff() < 0).all())
    assert torch.equal(changed, Changes(permute=True)(plain))
    noisy = Changes(noise=2)
    assert torch.equal(noisy(file, 1), noisy(file, 1)) and not torch.equal(noisy(file, 1), noisy(file, 2))

    shuffled = Changes("random")
    assert torch.equal(shuffled(file, 1), shuffled(file, 1)) and not torch.equal(shuffled(file, 1), shuffled(file, 2))
    assert torch.equal(shuffled(file, 1).sort().values, file.sort().values)


def images() -> ImageSource:
    pixels = torch.randint(0, 256, (6, 1, 12, 12), dtype=torch.uint8)
    return ImageSource.from_tensor(pixels, torch.arange(6) % 2, name="made up")


def test_images_become_files_after_augmentation():
    shifted = Transformed(images(), train_shift(16, pad=2), seed=3)
    files = EncodedImages(shifted, "fhwc", changes=Changes(noise=1), seed=3)
    loader = Loader(files, 3, seed=0)
    first = next(iter(loader))
    assert first["bytes"].shape == (3, 256) and first["bytes"].dtype == torch.int32 and first["label"].shape == (3,)
    one, batch = files[4], files.batch([4, 2])
    assert torch.equal(one["bytes"], batch["bytes"][0]) and one["label"] == 0
    files.set_epoch(1)
    assert not torch.equal(files[4]["bytes"], one["bytes"])


def test_an_image_that_augmentation_makes_too_long_is_written_as_it_is():
    source = ImageSource.from_tensor(torch.full((3, 1, 16, 16), 90, dtype=torch.uint8), torch.arange(3), name="grey")
    plain = Transformed(source, None, seed=0)
    short = EncodedImages(plain, "jpeg")
    most = len(short[0]["bytes"])

    def noisy(image):  # every second image becomes noise, which JPEG cannot shorten
        grain = torch.randint(0, 256, image.shape, dtype=torch.uint8)
        return grain if torch.rand(1) < 0.5 else image

    loose = EncodedImages(Transformed(source, noisy, seed=5), "jpeg")
    files = EncodedImages(Transformed(source, noisy, seed=5), "jpeg", plain=plain, most_bytes=most)
    lengths = set()
    for epoch in range(4):
        loose.set_epoch(epoch)
        files.set_epoch(epoch)
        lengths |= {len(loose[index]["bytes"]) for index in range(3)}
        batch = files.batch([0, 1, 2])
        assert batch["bytes"].shape == (3, most) and batch["label"].tolist() == [0, 1, 2]
        assert torch.equal(batch["bytes"][1], short[1]["bytes"])
    assert max(lengths) > most


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("sound", "text"):
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / f"{number}.bin").write_bytes(bytes([len(name)]) * (20 + number))
    (tmp_path / "sound" / "0.bin").write_bytes(b"")
    return tmp_path


def test_files_of_any_kind(folder):
    files = open_files(folder, labels="required", least_bytes=8, most_bytes=28)
    assert files.classes == ["sound", "text"] and len(files) == 17
    assert dict(files.skipped)["sound/0.bin"].startswith("0 bytes are too few")
    assert dict(files.skipped)["text/9.bin"] == "29 bytes are more than 28"
    batch = files.batch([0, 16])
    assert batch["label"].tolist() == [0, 1] and batch["bytes"].shape == (2, 28)
    assert batch["bytes"][0].tolist() == [5] * 21 + [-1] * 7
    one = open_files(folder / "text" / "3.bin")
    assert one.keys == ["3.bin"] and "label" not in one[0] and len(one[0]["bytes"]) == 23
    some = files.subset(torch.arange(17) == 16)
    assert some.keys == ["text/8.bin"] and some.skipped == files.skipped and len(files) == 17
    assert len(some[0]["bytes"]) == 28 and some[0]["label"] == 1


def test_a_tenth_is_set_aside_or_folders_say_what_is_for_testing(folder, tmp_path_factory):
    train, test = (open_files(folder, split=split, labels="required") for split in ("train", "test"))
    assert len(test) == 2 and not set(train.keys) & set(test.keys) and len(train) + len(test) == 19
    assert sorted(test.batch([0, 1])["label"].tolist()) == [0, 1]
    other = tmp_path_factory.mktemp("parts")
    for part, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            (other / part / name).mkdir(parents=True)
            for number in range(count):
                (other / part / name / f"{number}").write_bytes(b"12345678")
    assert [len(open_files(other, split=split, labels="required")) for split in ("train", "test")] == [6, 4]


def test_folders_that_cannot_be_used(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for source, options, message in (
        ("nowhere", {}, "does not exist"),
        (empty, {}, "is empty"),
        (folder / "text", {"labels": "required"}, "has no class folders"),
        (folder, {"least_bytes": 1000}, "no file that can be used"),
    ):
        with pytest.raises(InputError, match=message):
            open_files(source, **options)
