import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paperworks.data.decode import Unreadable, decode, from_any, from_pil, with_channels
from tests.data.making import encoded, picture


@pytest.mark.parametrize(
    "kind, mode", [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "1")]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_uint8_with_the_channels_asked_for(kind: str, mode: str, channels: int) -> None:
    pixels = decode(encoded(picture(3, (20, 10)).convert("L" if mode == "LA" else "RGB").convert(mode), kind), channels)
    assert pixels.dtype == torch.uint8 and pixels.shape == (channels, 10, 20) and pixels.is_contiguous()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_give_the_exact_pixels(kind: str) -> None:
    image = picture(1)
    pixels = decode(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(pixels.movedim(0, -1).numpy(), np.asarray(image))


def test_cmyk_keeps_its_colours() -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 60))
    assert (decode(encoded(image.convert("CMYK"), quality=98))[:, 8, 8].int() - torch.tensor([200, 30, 60])).abs().max() < 12


@pytest.mark.parametrize("side", [8, 300])  # below and above the size of the fast path
def test_exif_turns_the_image_upright(side: int) -> None:
    image = picture(2, (2 * side, side))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by 270 degrees to show
    pixels = decode(encoded(image, exif=exif, quality=95))
    assert pixels.shape == (3, 2 * side, side)
    upright = decode(encoded(image.rotate(270, expand=True), quality=95))
    assert (pixels.float() - upright.float()).abs().mean() < 4


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(values), "PNG"))
    assert pixels.shape == (3, 8, 8) and np.array_equal(pixels[0].numpy(), values >> 8)


def test_floating_point_grey() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(decode(encoded(Image.fromarray(values), "TIFF"), 1)[0].numpy(), (values * 255).round())
    with pytest.raises(Unreadable, match="outside"):
        decode(encoded(Image.fromarray(values * 1000), "TIFF"))


def test_transparency_is_laid_on_white_unless_it_is_kept() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    data = encoded(clear, "PNG")
    assert (decode(data) == 255).all()
    assert decode(data, 4)[:, 0, 0].tolist() == [10, 20, 30, 0]


def test_small_and_large_jpegs_take_the_same_pixels() -> None:
    data = encoded(picture(5, (32, 32)), quality=90)
    with Image.open(io.BytesIO(data)) as image:
        assert torch.equal(decode(data), from_pil(image))


def test_damage_is_named() -> None:
    data = encoded(picture(1, (200, 200)))
    for content, words in [(b"", "empty"), (b"hello there", "not an image"), (data[: len(data) // 2], "truncated")]:
        with pytest.raises(Unreadable, match=words):
            decode(content)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]), st.integers(0, 10**6), st.binary(max_size=40))
def test_damaged_files_give_pixels_or_a_reason_and_nothing_else(kind: str, where: int, junk: bytes) -> None:
    data = encoded(picture(where % 5, (24, 16)), kind)
    where %= len(data)
    for damaged in (data[:where], data[:where] + junk + data[where + len(junk) :], junk):
        try:
            assert decode(damaged).dtype == torch.uint8
        except Unreadable as reason:
            assert str(reason) and "\n" not in str(reason)


def test_what_data_set_objects_hold() -> None:
    image = picture(4, (6, 5))
    want = torch.from_numpy(np.array(image)).movedim(-1, 0)
    for value in (image, np.asarray(image), want, want.float() / 255, encoded(image, "PNG")):
        assert torch.equal(from_any(value), want)
    assert from_any(np.zeros((5, 6), dtype=np.uint8)).shape == (3, 5, 6)
    for bad in (want.float(), "text", None, torch.zeros(2, 5, 6, dtype=torch.uint8)):
        with pytest.raises(Unreadable):
            from_any(bad)


def test_channels_of_tensors() -> None:
    colour = torch.from_numpy(np.array(picture(1))).movedim(-1, 0)
    grey = with_channels(colour, 1)
    assert (grey[0].int() - torch.from_numpy(np.array(picture(1, mode="L"))).int()).abs().max() <= 1
    assert torch.equal(with_channels(grey, 3), grey.expand(3, -1, -1))
    opaque = with_channels(colour, 4)
    assert (opaque[3] == 255).all() and torch.equal(with_channels(opaque, 3), colour)
    clear = torch.cat([colour, torch.zeros_like(grey)])
    assert (with_channels(clear, 3) == 255).all()
