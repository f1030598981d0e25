"""Slides: reading regions, tissue, grids of tiles, mosaics, patients and the released lists."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.data.embedded import package_file
from paperworks.data.made_tissue import KINDS, Patient, make_slide
from paperworks.data.mosaic import MosaicConfig, choose, make_mosaic, most_cells
from paperworks.data.patch_lists import find_patch_lists, grid_step, grid_steps, listed_tiles, read_patch_list
from paperworks.data.slide_set import SlideEntry, SlideSet, list_slides, made_slides, patient_of, read_sites
from paperworks.data.slides import PlainSlide, TilingConfig, WholeSlide, open_slide, thumbnail, tile_slide
from paperworks.data.stains import STAINS, Restained, cellularity, hue_saturation_density, tissue_mask, unmix
from paperworks.data.transforms import train_shift
from paperworks.errors import InputError

MOSAIC = MosaicConfig(share=0.4, keep=0.3, colour_size=16, cell_size=64)


def pixels(kind: str = "glands", size: int = 320, seed: int = 0) -> np.ndarray:
    return make_slide(kind, Patient.draw(np.random.default_rng(seed)), np.random.default_rng(seed + 1), size)


# --- reading ------------------------------------------------------------------------------------------------------------


def test_regions_are_cut_scaled_and_white_beyond_the_edge():
    ramp = np.zeros((100, 120, 3), np.uint8)
    ramp[..., 0] = np.arange(120)
    slide = PlainSlide(ramp, "ramp")
    assert slide.read(10, 20, 4, 2, (2, 4))[0].tolist() == [[10, 11, 12, 13]] * 2
    assert slide.read(-2, 98, 4, 4, (4, 4))[0].tolist() == [[255, 255, 0, 1]] * 2 + [[255] * 4] * 2
    half = slide.read(0, 0, 120, 100, (50, 60))
    assert half.shape == (3, 50, 60) and abs(float(half[0, 25, 30]) - 60.5) <= 1
    assert thumbnail(slide, 60).shape == (3, 50, 60) and thumbnail(slide).shape == (3, 100, 120)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_plain_images_are_slides(tmp_path, suffix):
    image = pixels()
    Image.fromarray(image).save(tmp_path / f"a{suffix}")
    slide = open_slide(tmp_path / f"a{suffix}", 40)
    assert isinstance(slide, PlainSlide) and slide.magnification == 40
    assert np.array_equal(slide.read(0, 0, 320, 320, (320, 320)).permute(1, 2, 0).numpy(), image)


def test_an_uncompressed_tiff_is_mapped_not_read(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", pixels(), photometric="rgb")
    slide = open_slide(tmp_path / "a.tif")
    assert isinstance(slide, PlainSlide) and isinstance(slide.pixels, np.memmap)


def test_a_pyramid_gives_the_same_tiles_as_its_pixels(tmp_path):
    pytest.importorskip("tiffslide")
    import tifffile

    image, path = pixels(size=640), tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        about = "Aperio Image Library v12.0.15\r\n640x640 [0,0 640x640] (128x128) RAW|AppMag = 40|MPP = 0.25"
        tiled = {"tile": (128, 128), "photometric": "rgb"}
        file.write(image, description=about, **tiled)
        file.write(image[::8, ::8].copy(), photometric="rgb")  # Aperio's second page is its thumbnail
        file.write(image[::4, ::4].copy(), subfiletype=1, **tiled)
    slide = open_slide(path)
    assert isinstance(slide, WholeSlide) and (slide.width, slide.magnification) == (640, 40)
    tiling = TilingConfig(64)
    ours, plain = tile_slide(slide, tiling), tile_slide(PlainSlide(image, "plain", 40), tiling)
    shared = min(len(ours), len(plain)) // 2
    same = plain.corners.tolist().index(ours.corners[shared].tolist())
    assert ours.side == 128 and torch.equal(ours.read(shared), plain.read(same))
    assert slide.read(600, 600, 80, 80, (80, 80))[:, -1, -1].tolist() == [255] * 3
    assert torch.equal(slide.read(600, 600, 80, 80, (80, 80))[:, :40, :40], slide.read(600, 600, 40, 40, (40, 40)))


def test_what_is_no_slide_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    for name, words in (
        ("broken.png", "no image that can be read"),
        ("broken.tif", "broken.tif"),
        ("none.svs", "no such slide"),
    ):
        with pytest.raises(InputError, match=words):
            open_slide(tmp_path / name)
    with pytest.raises(InputError, match="RGB uint8"):
        PlainSlide(np.zeros((64, 64), np.uint8), "grey")


# --- stains -------------------------------------------------------------------------------------------------------------


def test_amounts_of_stains_are_found_again():
    directions = torch.nn.functional.normalize(torch.tensor(list(STAINS.values())), dim=1)
    amounts = torch.tensor([0.6, 0.4, 0.2])
    colour = (255 * (-(amounts @ directions)).exp()).round().to(torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    assert torch.allclose(unmix(colour)[:, 0, 0], amounts, atol=0.03)
    paler = (255 * (-(0.5 * amounts @ directions)).exp()).round().to(torch.uint8).view(3, 1, 1)
    assert torch.allclose(hue_saturation_density(colour)[1:, 0, 0], hue_saturation_density(paler)[1:, 0, 0], atol=0.03)


def test_tissue_is_what_is_coloured_and_brown_is_none_for_the_released_mask():
    image = torch.full((3, 100, 100), 240, dtype=torch.uint8)
    image[:, :, 50:] = torch.tensor([200, 120, 190], dtype=torch.uint8).view(3, 1, 1)
    for stain in ("any", "he"):
        mask = tissue_mask(image, stain)
        assert mask[:, 60:].all() and not mask[:, :40].any()
    image[:, :, 50:] = torch.tensor([150, 110, 60], dtype=torch.uint8).view(3, 1, 1)
    assert tissue_mask(image)[:, 60:].all() and not tissue_mask(image, "he").any()


def test_tiles_with_more_nuclei_have_more_cellularity():
    slide = PlainSlide(pixels("round cells"), "a")
    mosaic = make_mosaic(tile_slide(slide, TilingConfig(64)), MOSAIC)
    kept = mosaic.cells[mosaic.kept]
    assert kept.tolist() == sorted(kept.tolist(), reverse=True) and kept.min() >= mosaic.cells.median()
    white = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    assert cellularity(white).tolist() == [0, 0]
    with pytest.raises(InputError, match="RGB images uint8"):
        unmix(torch.rand(3, 4, 4))


def test_other_amounts_of_stain_change_densities_by_colour():
    image = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    restained = Restained(train_shift(8, pad=0, flip=True), 0.5)
    same = restained.apply(image, torch.full((2, restained.draws), 0.5))
    assert torch.equal(same, image)
    more = restained.apply(image, torch.tensor([[0.5] * 3 + [1.0, 0.5, 0.0]] * 2))
    density = -(more[0, :, 0, 0].double() / 255).log() / -torch.tensor(200 / 255).double().log()
    assert torch.allclose(density, torch.tensor([1.5, 1.0, 1 / 1.5]).double(), atol=0.03)
    with pytest.raises(InputError, match="0 or more"):
        Restained(train_shift(8), -0.1)


# --- tiles and mosaics --------------------------------------------------------------------------------------------------


def test_a_tile_at_20x_is_twice_as_large_on_a_scan_at_40x():
    pink = np.full((512, 700, 3), (200, 120, 190), np.uint8)
    tiles = tile_slide(PlainSlide(pink, "pink", 40), TilingConfig(64))
    assert tiles.side == 128 and len(tiles) == 4 * 5 and tiles.images().shape == (20, 3, 64, 64)
    closer = tile_slide(PlainSlide(pink, "pink", 40), TilingConfig(64, stride=0.75))
    assert set((closer.corners % 96).flatten().tolist()) == {0} and len(closer) == 5 * 6


def test_tiles_without_tissue_are_left_out_and_bad_tilings_named():
    half = np.full((256, 256, 3), 245, np.uint8)
    half[:, 128:] = (200, 120, 190)
    tiles = tile_slide(PlainSlide(half, "half"), TilingConfig(64))
    assert set(tiles.corners[:, 0].tolist()) == {128, 192}
    with pytest.raises(InputError, match="shows tissue"):
        tile_slide(PlainSlide(half[:, :100], "glass"), TilingConfig(64))
    with pytest.raises(InputError, match="hold no tile"):
        tile_slide(PlainSlide(half, "half"), TilingConfig(1000))
    with pytest.raises(InputError, match="at least 32"):
        tile_slide(PlainSlide(half, "half"), TilingConfig(16))


def test_a_mosaic_takes_its_share_of_every_group_and_no_tile_twice():
    generator = torch.Generator().manual_seed(0)
    colours, places = torch.rand(120, 3, generator=generator), torch.randint(0, 5000, (120, 2), generator=generator)
    chosen, groups = choose(colours, places, MosaicConfig(share=0.15))
    assert len(chosen.unique()) == len(chosen) and set(groups.tolist()) == set(range(9))
    assert 120 * 0.15 - 9 <= len(chosen) <= 120 * 0.15 + 9
    everything, _ = choose(colours, places, MosaicConfig(share=1.0))
    assert sorted(everything.tolist()) == list(range(120))
    few, _ = choose(colours[:3], places[:3], MosaicConfig())
    assert sorted(few.tolist()) == [0, 1, 2]
    same, _ = choose(torch.zeros(10, 3), torch.zeros(10, 2, dtype=torch.int64), MosaicConfig(share=0.5))
    assert len(same.unique()) == len(same)
    assert most_cells(torch.tensor([0.1, 0.5, 0.3, 0.2]), 0.5).tolist() == [1, 2]


def test_the_real_section_has_tissue_and_nuclei():
    slide = open_slide(package_file("skimage", "scikit-image", "data/ihc.png"))
    tiles = tile_slide(slide, TilingConfig(64, tissue=0.5))
    mosaic = make_mosaic(tiles, MOSAIC)
    assert 30 < len(tiles) < 64 and float(mosaic.cells.max()) > 0.4
    with pytest.raises(InputError, match="shows tissue"):  # brown is no tissue for the released mask
        tile_slide(slide, TilingConfig(64, stain="he"))


# --- sets of slides -----------------------------------------------------------------------------------------------------


def test_made_slides_repeat_and_differ_by_seed():
    slides = made_slides(2, 2, seed=3, size=128)
    assert len(slides) == 16 and slides.classes == list(KINDS) and len(set(slides.patients)) == 8
    one, again, other = (
        entry.open().read(0, 0, 128, 128, (128, 128)) for entry in (slides.entries[0],) * 2 + (slides.entries[1],)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    with pytest.raises(InputError, match="no kind of tissue"):
        make_slide("bone", Patient.draw(np.random.default_rng(0)), np.random.default_rng(0))


def test_parts_share_no_patient():
    slides = made_slides(5, 3, size=128)
    learn, search = slides.split(0.4)
    assert not set(learn.patients) & set(search.patients) and len(learn) + len(search) == len(slides)
    assert search.labels.bincount().tolist() == [6, 6, 6, 6]
    with pytest.raises(InputError, match="1 patient"):
        made_slides(1, 3, size=128).split(0.4)


def test_every_class_is_in_both_parts_however_rare():
    entries = [
        SlideEntry(f"{label}.{number}", label, f"{label}.{number}") for label, n in ((0, 40), (1, 2)) for number in range(n)
    ]
    learn, search = SlideSet(entries, ["common", "rare"], "slides").split(0.1)
    assert learn.labels.bincount().tolist() == [36, 1] and search.labels.bincount().tolist() == [4, 1]
    learn, search = SlideSet(entries, ["common", "rare"], "slides").split(0.99)
    assert learn.labels.bincount().tolist() == [1, 1]


def test_a_folder_names_classes_and_patients(tmp_path):
    for name in ("lung/TCGA-AA-1234-01Z-00-DX1.x.png", "lung/TCGA-AA-1234-01Z-00-DX2.y.png", "skin/p7/a.png", "skin/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(size=64)).save(tmp_path / name)
    slides = list_slides(tmp_path, 40)
    assert slides.classes == ["lung", "skin"] and slides.labels.tolist() == [0, 0, 1, 1]
    assert slides.patients == ["TCGA-AA-1234", "TCGA-AA-1234", "skin/b", "skin/p7"]
    assert slides.entries[0].open().magnification == 40 and patient_of(Path("a/b.svs")) == "a/b"
    assert not slides.skipped
    Image.fromarray(pixels(size=64)).save(tmp_path / "beside.png")
    slides = list_slides(tmp_path)
    assert len(slides) == 4 and slides.skipped == [("beside.png", "lies beside the class folders, so it has no label")]
    with pytest.raises(InputError, match="no slides in sub-folders"):
        list_slides(tmp_path / "skin" / "p7")


def test_sites_of_classes_come_from_a_csv_file(tmp_path):
    path = tmp_path / "sites.csv"
    path.write_text("class,site\nluad, lung\nlusc,lung\n\ngbm,brain\n")
    assert read_sites(path, ["gbm", "lusc"]) == ["brain", "lung"]
    with pytest.raises(InputError, match="no tumour site of acc"):
        read_sites(path, ["gbm", "acc"])
    with pytest.raises(InputError, match="no csv file"):
        read_sites(tmp_path / "none.csv", ["gbm"])
    path.write_text("luad;lung\n")
    with pytest.raises(InputError, match="no row class,site"):
        read_sites(path, ["luad"])


# --- released lists -----------------------------------------------------------------------------------------------------


def test_released_lists_are_read_without_running_code(tmp_path):
    path = tmp_path / "TrainSlideFileName_to_PatchCoordList_Dict.pickle"
    content = {"a.svs": [(1500, 3000), (0, 4500)], "b.svs": [(750, 0)], "c.svs": []}
    path.write_bytes(pickle.dumps(content))
    patches = read_patch_list(find_patch_lists(tmp_path)["Train"])
    assert patches == content and grid_step(patches["a.svs"]) == 1500 and dict(grid_steps(patches)) == {1500: 1, 750: 1, 0: 1}
    tiles = listed_tiles(PlainSlide(pixels(), "a", 40), [(0, 0), (64, 32)], TilingConfig(64))
    assert tiles.side == 128 and len(tiles.images()) == 2
    path.write_bytes(pickle.dumps({"a.svs": Path("/")}))
    with pytest.raises(InputError, match="wants to import"):
        read_patch_list(path)
    with pytest.raises(InputError, match="holds none"):
        find_patch_lists(tmp_path / "empty")
