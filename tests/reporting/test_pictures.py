import pytest
import torch
from PIL import Image

from paperworks.errors import InputError
from paperworks.reporting import save_grid
from paperworks.reporting.pictures import GAP, LARGEST_PNG, data_uri, enlargement, grid, single, to_pixels


def test_tiny_images_are_enlarged_by_whole_pixels_in_reading_order():
    images = torch.arange(4).view(4, 1, 1, 1).expand(-1, 1, 2, 2) / 3
    picture = grid(images, columns=2, scale=3)
    assert picture.size == (2 * (6 + GAP) + GAP, 2 * (6 + GAP) + GAP)
    centres = [picture.getpixel((GAP + 3 + x * (6 + GAP), GAP + 3 + y * (6 + GAP)))[0] for y in (0, 1) for x in (0, 1)]
    assert centres == [0, 85, 170, 255]


def test_a_row_comes_close_to_the_width_of_a_page():
    assert [enlargement(10, 28), enlargement(4, 128), enlargement(1, 8), enlargement(10, 256)] == [3, 2, 8, 1]


def test_places_without_an_image_are_transparent():
    picture = grid(torch.ones(3, 1, 4, 4), columns=2, scale=1)
    side = 4 + GAP
    assert picture.getpixel((2 * side, 2 * side))[3] == 0  # the fourth place
    assert picture.getpixel((GAP, GAP)) == (255, 255, 255, 255)
    assert 0 < picture.getpixel((0, 0))[3] < 255  # the frame


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_a_grid_is_saved_also_with_pixels_that_are_not_numbers(tmp_path, name):
    images = torch.full((3, 3, 4, 4), float("nan"))
    images[1] = torch.inf
    path = save_grid(images, tmp_path / "deep" / name, columns=2)
    picture = Image.open(path).convert("RGB")
    assert max(picture.getpixel((GAP + 16, GAP + 16))) < 20 and min(picture.getpixel((2 * GAP + 48, GAP + 16))) > 235


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"use \.png or \.jpg"):
        save_grid(torch.rand(1, 1, 4, 4), tmp_path / "x.nothing")


def test_values_are_clamped_and_rounded():
    assert to_pixels(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1, 1))[:, 0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_pictures_in_a_page_stay_small():
    noise = torch.rand(1, 3, 700, 700, generator=torch.Generator().manual_seed(0))
    large = data_uri(single(noise[0], 1))
    assert large.startswith("data:image/webp;base64,") and len(large) < 3 * LARGEST_PNG
    assert data_uri(single(noise[0, :, :20, :20], 1)).startswith("data:image/png;base64,")
