"""KimiaNet: a small run from slides to page, its verbs, slides and weights of one's own, and the claims that are counted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.backbones.kimianet import KimiaNet
from paperworks.data.made_tissue import KINDS, Patient, make_slide
from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers import _kimianet_claims as measuring
from paperworks.papers._kimianet_recipe import MadeConfig, SlidesConfig, SlideTiles, WeakLabels, build, chosen
from paperworks.papers._kimianet_search import Atlas
from paperworks.papers._recognition_claims import millions
from paperworks.papers.kimianet import paper
from paperworks.training import TrainConfig

TINY = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8, "stem_stride": 2}


def tiny(**changes) -> SlidesConfig:
    config = paper.recipes["laptop"]().config
    mosaic = replace(config.mosaic, share=0.8)
    training = TrainConfig(3, 8, ema=0.5)
    return replace(config, made=MadeConfig(4, 1, 256), network=TINY, mosaic=mosaic, training=training, **changes)


def carry_out(folder: Path, config: SlidesConfig, recipe: str = "laptop", **arguments) -> Run:
    run = Run.open(folder, slug="kimianet", recipe=recipe, arguments={}, config=config, command="paperworks run kimianet")
    run.execute(Recipe(config, paper.recipes[recipe](**arguments).stages), say=lambda _: None)
    return run


def write_slides(folder: Path, kinds: tuple[str, ...] = KINDS[:2], patients: int = 3) -> Path:
    for kind in kinds:
        for number in range(patients):
            path = folder / kind / f"p{number}" / "slide.png"
            path.parent.mkdir(parents=True)
            rng = np.random.default_rng((number, len(kind)))
            Image.fromarray(make_slide(kind, Patient.draw(rng), rng, 256)).save(path)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    return carry_out(tmp_path_factory.mktemp("kimianet") / "run", tiny())


def test_a_run_leaves_a_page_with_tiles_mosaics_and_neighbours(finished):
    page = (finished.folder / "report.html").read_text()
    for heading in ("From slide to tiles", "Kept tiles", "Nearest slides", "Nearest tiles of other patients", "A real section"):
        assert heading in page
    numbers = finished.result("evaluate")
    assert numbers["slides"] == 6 and 0 <= numbers["top-3 F1"] <= 1 and "histogram of colours, top-3 F1" in numbers
    assert numbers["bytes of barcodes a slide"] < numbers["bytes of pixels a slide"] / 1000


def test_tiles_are_those_of_the_mosaics_whether_kept_or_read_again(finished):
    found = chosen(finished, "train")
    reader = SlideTiles(found.slides, found.rows, 64)
    kept = found.tiles(64)
    assert len(reader) == len(kept) == len(found.owners)
    for position in (0, len(reader) - 1):
        assert torch.equal(reader.read(position), kept.read(position)) and reader.key(position) == kept.key(position)
    assert not set(found.slides.patients) & set(chosen(finished, "test").slides.patients)


def test_new_slides_find_known_ones(finished, tmp_path):
    folder = write_slides(tmp_path / "slides")
    Image.fromarray(np.full((256, 256, 3), 245, np.uint8)).save(folder / "glass.png")
    rows = paper.verbs["predict"](finished, str(folder), top=2)
    assert len(rows) == 7 and sum("not usable" in row for row in rows) == 1
    assert all(row["nearest slides vote"] in KINDS and "bits" in row["2."] for row in rows if "1." in row)
    assert (finished.folder / "neighbours.html").is_file()
    with pytest.raises(InputError, match="no slide there"):
        paper.verbs["predict"](finished, str(tmp_path / "empty"))


def test_evaluation_is_that_of_the_run_and_takes_other_slides(finished, tmp_path):
    row = paper.verbs["evaluate"](finished)
    assert row["F1 %"] == pytest.approx(100 * finished.result("evaluate")["top-3 F1"], abs=0.01)
    other = paper.verbs["evaluate"](finished, data=str(write_slides(tmp_path / "slides")), top=1)
    assert other["slides"] == 6 and 0 <= other["accuracy %"] <= 100


def test_exports_give_features(finished):
    made = paper.verbs["export"](finished, to="torchscript", of="features")
    atlas = Atlas.of(finished)
    assert torch.jit.load(made["file"])(torch.rand(1, 3, 64, 64)).shape == (1, atlas.codes[0].shape[1] + 1)
    with pytest.raises(InputError, match="no export"):
        paper.verbs["export"](finished, to="paper")


def test_released_weights_search_without_training(tmp_path):
    torch.manual_seed(0)
    model = KimiaNet(**TINY, num_classes=30)
    names = {"features.": "module.model.0.", "classifier.": "module.fc_4."}
    theirs = {}
    for name, value in model.state_dict().items():
        start = next(start for start in names if name.startswith(start))
        theirs[names[start] + name.removeprefix(start)] = value
    torch.save(theirs, tmp_path / "released.pth")
    config = tiny(weights=str(tmp_path / "released.pth"), data=str(write_slides(tmp_path / "slides", patients=4)))
    run = carry_out(tmp_path / "run", config, "released", data="", weights="")
    loaded = KimiaNet.from_pretrained(run.folder / "train" / "model")
    assert torch.equal(loaded.features.conv0.weight, model.features.conv0.weight) and loaded.num_classes == 2
    assert "tile accuracy" not in run.result("evaluate")  # its last layer is a random one
    [row] = paper.verbs["predict"](run, str(tmp_path / "slides" / KINDS[0] / "p0"), page=False)
    assert "classifier" not in row and row["nearest slides vote"] in KINDS


def test_frozen_blocks_keep_weights_and_statistics():
    network = build(tiny(), 4)
    objective = WeakLabels(network, 1).train()
    still = network.features.denseblock3
    assert not still.training and network.features.denseblock4.training
    assert not any(parameter.requires_grad for parameter in still.parameters())
    assert all(parameter.requires_grad for parameter in network.features.denseblock4.parameters())
    before = {name: value.clone() for name, value in network.features.state_dict().items()}
    objective.logits(torch.rand(4, 3, 64, 64)).sum().backward()
    after = network.features.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"denseblock4", "norm5"}


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        carry_out(tmp_path / "a", tiny(data=str(tmp_path / "none")))
    with pytest.raises(InputError, match="1 class"):
        carry_out(tmp_path / "b", tiny(data=str(write_slides(tmp_path / "one", KINDS[:1]))))
    with pytest.raises(InputError, match="network"):
        build(replace(tiny(), network={"depth": 3}), 2)


def test_the_published_size():
    variant = paper.variants["kimianet"]
    assert millions(variant.build) == pytest.approx(variant.parameters, abs=1e-6)
    for recipe in ("paper", "finetune", "released"):
        config = paper.recipes[recipe](data="slides", weights="w.pth").config
        assert config.tiling.magnification == 20 and config.tiling.stain == "he"


@pytest.mark.parametrize("id", ["c2", "c3"])
def test_counted_claims_hold(id, tmp_path):
    claim = paper.claims[id]
    assert verdict(claim, claim.measure(Bench(tmp_path, say=lambda _: None))) == "holds"


def test_lists_are_counted_where_they_are(tmp_path):
    import pickle

    with pytest.raises(InputError, match="holds none of KimiaNet's lists"):
        paper.claims["c4"].measure(Bench(tmp_path, say=lambda _: None))
    folder = tmp_path / "lists"
    folder.mkdir()
    content = {f"{number}.svs": [(1500, 3000)] * 3 for number in range(5)}
    (folder / "TrainSlideFileName_to_PatchCoordList_Dict.pickle").write_bytes(pickle.dumps(content))
    bench = Bench(tmp_path, say=lambda _: None)
    assert paper.claims["c1"].measure(bench).value == 15 and paper.claims["c4"].measure(bench).value == 5
    assert "5 slides on 1500" in paper.claims["c3"].measure(bench).detail


def test_studies_give_every_side_as_many_tiles_and_go_on(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "PATIENTS": 3, "SLIDES": 1, "TILES": 2}.items():
        monkeypatch.setattr(measuring, name, value)
    measuring.searched_tiles.cache_clear()
    learn, _ = measuring.slides_of("default", 0)
    counts = {how: chosen_count(learn, how) for how in ("random tiles", "mosaic", "mosaic, most nuclei")}
    assert len(set(counts.values())) == 1
    bench = Bench(tmp_path, seeds=(0,), say=lambda _: None)
    names = ("mosaic, most nuclei", "random tiles", "photos", "CBR")
    found = measuring.studied(bench, *names)
    monkeypatch.setattr(measuring, "fit", None)  # a second measurement reads what the first one left
    assert measuring.studied(bench, *names) == found
    measured = measuring.lead(bench, found, "mosaic, most nuclei", "CBR")
    assert "lead in classification" in measured.numbers and len(measured.per_seed) == 1
    measuring.searched_tiles.cache_clear()


def chosen_count(slides, how: str) -> int:
    return len(measuring.chosen_tiles(slides, how, 0)[0])
