"""KimiaNet: a small run from slides to page, its verbs, slides and weights of one's own, released lists, and the claims."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.backbones.kimianet import KimiaNet
from paperworks.data.made_tissue import KINDS, Patient, make_slide
from paperworks.data.patch_lists import ENDING
from paperworks.data.slide_set import list_slides
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Bench, Measured, Recipe, Run, verdict
from paperworks.papers import _kimianet_claims as measuring
from paperworks.papers import _kimianet_report as reporting
from paperworks.papers._kimianet_probe import patient_folds, probes
from paperworks.papers._kimianet_recipe import WeakLabels, build, load_network, on_tiles
from paperworks.papers._kimianet_search import Atlas
from paperworks.papers._kimianet_slides import MadeConfig, SlidesConfig, SlideTiles, chosen, parts_of
from paperworks.papers._recognition_claims import millions
from paperworks.papers.kimianet import paper
from paperworks.training import Context, OptimizerConfig, TrainConfig, read_metrics

TINY = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8, "stem_stride": 2}


def tiny(**changes) -> SlidesConfig:
    config = paper.recipes["laptop"]().config
    mosaic = replace(config.mosaic, share=0.8)
    training = TrainConfig(3, 8, ema=0.5)
    return replace(
        config, **{"made": MadeConfig(4, 1, 256), "network": TINY, "mosaic": mosaic, "training": training, **changes}
    )


def carry_out(folder: Path, config: SlidesConfig, recipe: str = "laptop", **arguments) -> Run:
    run = Run.open(folder, slug="kimianet", recipe=recipe, arguments={}, config=config, command="paperworks run kimianet")
    run.execute(Recipe(config, paper.recipes[recipe](**arguments).stages), say=lambda _: None)
    return run


def write_slides(folder: Path, kinds: tuple[str, ...] = KINDS[:2], patients: int = 3) -> Path:
    for kind in kinds:
        for number in range(patients):
            path = folder / kind / f"p{number}" / f"{kind}-{number}.png"
            path.parent.mkdir(parents=True)
            rng = np.random.default_rng((number, len(kind)))
            Image.fromarray(make_slide(kind, Patient.draw(rng), rng, 256)).save(path)
    return folder


def write_lists(folder: Path, **parts: dict[str, list[tuple[int, int]]]) -> Path:
    folder.mkdir()
    for part, patches in parts.items():
        (folder / f"{part}{ENDING}").write_bytes(pickle.dumps(patches))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("kimianet")
    sites = folder / "sites.csv"
    sites.write_text("".join(f"{kind},{'soft tissue' if kind == 'spindle cells' else 'gut'}\n" for kind in KINDS))
    return carry_out(folder / "run", tiny(sites=str(sites)))


def test_a_run_leaves_a_page_with_tiles_mosaics_and_neighbours(finished):
    page = (finished.folder / "report.html").read_text()
    for heading in ("From slide to tiles", "Kept tiles", "Nearest slides", "Nearest tiles of other patients", "A real section"):
        assert heading in page
    assert "8 slides to learn from, 8 to search" in page and "Tiles told right from their features" in page
    numbers = finished.result("evaluate")
    assert numbers["slides"] == 8 and 0 <= numbers["top-3 F1"] <= 1 and "histogram of colours, top-3 F1" in numbers
    assert numbers["bytes of barcodes a slide"] < numbers["bytes of pixels a slide"] / 1000


def test_tiles_are_those_of_the_mosaics_whether_kept_or_read_again(finished):
    found = chosen(finished, "train")
    reader = SlideTiles(found.slides, found.rows, 64)
    kept = found.tiles(64)
    assert len(reader) == len(kept) == len(found.owners)
    for position in (0, len(reader) - 1):
        assert torch.equal(reader.read(position), kept.read(position)) and reader.key(position) == kept.key(position)
    assert not set(found.slides.patients) & set(chosen(finished, "test").slides.patients)


def test_sites_are_searched_for_and_classes_within_them(finished):
    numbers = finished.result("evaluate")
    gut, soft = numbers["sites"]
    assert (gut["site"], gut["slides"], gut["classes"]) == ("gut", 6, 3) and soft["classes"] == 1
    assert 0 <= gut["site F1"] <= 1 and 0 <= gut["class F1"] <= 1
    assert soft["class F1"] is None  # a single class is always right
    assert numbers["class within its site, top-3 F1"] == gut["class F1"]
    assert "Search by tumour site" in (finished.folder / "report.html").read_text()
    row = paper.verbs["evaluate"](finished)
    assert row["F1 % within gut"] == pytest.approx(100 * gut["class F1"], abs=0.01) and row["F1 % within soft tissue"] is None


def test_features_are_judged_by_classifiers(finished):
    rows = finished.result("evaluate")["classifiers"]
    assert [row["features"] for row in rows] == ["this network", "network before training", "histogram of colours"]
    assert all(0 <= row[kind] <= 1 for row in rows for kind in ("linear classifier", "SVM"))
    labels = torch.tensor([0, 1]).repeat(20)
    patients = [f"{label}.{number // 8}" for number, label in enumerate(labels.tolist())]
    features = torch.randn(40, 6) + 9 * labels[:, None]
    assert probes(features, labels, patients) == {"linear classifier": 1.0, "SVM": 1.0}
    folds = patient_folds(labels.numpy(), patients)
    assert folds.max() == 4 and all(len({f for f, p in zip(folds, patients) if p == name}) == 1 for name in patients)
    assert probes(features, labels, ["a" if label else f"{n}" for n, label in enumerate(labels.tolist())]) is None


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
    assert other["slides"] == 6 and 0 <= other["accuracy %"] <= 100 and other["not used"] == 0
    assert 0 <= other["tiles % SVM"] <= 100


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
    data = write_slides(tmp_path / "slides", patients=4)
    Image.fromarray(np.full((256, 256, 3), 245, np.uint8)).save(data / "beside.png")
    given = paper.recipes["released"](data=str(data), weights=str(tmp_path / "released.pth"), tile=64).config
    run = carry_out(tmp_path / "run", replace(given, network=TINY), "released", data="", weights="")
    about = run.result("mosaics")
    assert about["parts"] == ["test"] and len(Atlas.of(run).found.slides) == 8  # nothing is kept back for training
    assert about["skipped"] == [["beside.png", "lies beside the class folders, so it has no label"]]
    loaded = KimiaNet.from_pretrained(run.folder / "train" / "model")
    assert torch.equal(loaded.features.conv0.weight, model.features.conv0.weight) and loaded.num_classes == 2
    assert "tile accuracy" not in run.result("evaluate")  # its last layer is a random one
    [row] = paper.verbs["predict"](run, str(tmp_path / "slides" / KINDS[0] / "p0"), page=False)
    assert "classifier" not in row and row["nearest slides vote"] in KINDS


def test_the_lists_decide_what_is_learned_from_and_what_is_tested_with(tmp_path, monkeypatch):
    drawn, steps = [], reporting._steps

    def noted(slide, everything, mosaic, *how):
        drawn.append(mosaic.tiles.corners.tolist())
        return steps(slide, everything, mosaic, *how)

    monkeypatch.setattr(reporting, "_steps", noted)
    corners = {"Train": [(0, 64), (64, 64)], "Validation": [(64, 0)], "Test": [(64, 128), (128, 64), (96, 96)]}
    numbers = {"Train": (0, 1), "Validation": (2,), "Test": (3,)}
    lists = {part: {f"{kind}-{n}.png": corners[part] for kind in KINDS[:2] for n in numbers[part]} for part in corners}
    lists["Train"] |= {f"{kind}-4.png": [] for kind in KINDS[:2]}
    folder = write_lists(tmp_path / "lists", **lists)
    data = write_slides(tmp_path / "slides", patients=6)
    run = carry_out(tmp_path / "run", tiny(data=str(data), lists=str(folder)))
    for part, given in corners.items():
        found = chosen(run, part.lower())
        assert sorted(Path(entry.path).name for entry in found.slides.entries) == sorted(
            name for name, listed in lists[part].items() if listed
        )
        assert all(row["corners"] == [list(corner) for corner in given] and row["cells"][0] is None for row in found.rows)
    reasons = [reason for _, reason in run.result("mosaics")["skipped"]]
    assert len(reasons) == 4 and sum("none of the lists" in reason for reason in reasons) == 2
    assert sum("no patch of it" in reason for reason in reasons) == 2  # an empty list is no reason to make a mosaic
    assert drawn[:2] == [[list(corner) for corner in corners["Test"]]] * 2  # the page shows what was used
    assert "kept step" in run.result("train")


def test_lists_that_do_not_fit_are_named(tmp_path):
    slides = list_slides(write_slides(tmp_path / "slides"))
    config = tiny(lists=str(write_lists(tmp_path / "twice", Train={"a.svs": []}, Test={"a.svs": []})))
    with pytest.raises(InputError, match="two lists, Train and Test"):
        parts_of(slides, config)
    config = tiny(lists=str(write_lists(tmp_path / "lists", Train={f"{KINDS[0]}-0.png": [(0, 0)]}, Test={"b.svs": []})))
    with pytest.raises(InputError, match="no slide of the released list Test"):
        parts_of(slides, config)


def test_the_weights_that_are_best_on_validation_slides_are_kept(tmp_path):
    training = TrainConfig(4, 8, optimizers={"main": OptimizerConfig("sgd", lr=3.0)}, precision="32", eval_every=1)
    run = carry_out(tmp_path / "run", tiny(validation=0.3, training=training))
    parts = {part: set(chosen(run, part).slides.patients) for part in ("train", "validation", "test")}
    assert [len(patients) for patients in parts.values()] == [4, 4, 8] and len(set.union(*parts.values())) == 16
    losses = {
        row["step"]: row["eval/loss"] for row in read_metrics(run.folder / "train" / "metrics.jsonl") if "eval/loss" in row
    }
    stage = run.result("train")
    assert len(losses) == 4 and stage["kept step"] == min(losses, key=losses.__getitem__) != 4
    again = on_tiles(chosen(run, "validation").tiles(64), 64)(Classify(load_network(run)).eval(), Context(0, 1, 0))
    assert again["loss"] == pytest.approx(stage["validation loss"], rel=1e-4)
    assert f"step {stage['kept step']} of 4" in (run.folder / "report.html").read_text()
    with pytest.raises(InputError, match="three patients"):
        parts_of(list_slides(write_slides(tmp_path / "slides", patients=2)), tiny(validation=0.1))


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
        assert (config.held_out, config.validation) == ((1, 0) if recipe == "released" else (0.2, 0.1))
        assert (config.training.eval_every is None) == (recipe == "released")


def patches_on(step: int, slides: int) -> dict[str, list[tuple[int, int]]]:
    return {f"{step}-{number}.svs": [(step, 2 * step), (2 * step, 3 * step)] for number in range(slides)}


@pytest.mark.parametrize("id", ["c2", "c3"])
def test_size_and_magnification_are_read_from_the_lists(id, tmp_path):
    claim = paper.claims[id]
    with pytest.raises(InputError, match="holds none of KimiaNet's lists"):
        claim.measure(Bench(tmp_path, say=lambda _: None))
    published = patches_on(1500, 14) | patches_on(750, 5) | {"empty.svs": []}
    cases = {
        "published": (published | {"odd.svs": [(1, 3)]}, "holds"),
        "finer": (patches_on(1000, 14) | patches_on(500, 5), "does not hold"),
        "not-two-to-one": (patches_on(1500, 14) | patches_on(500, 5), "does not hold"),
        "scattered": (published | {f"{number}.svs": [(number, number)] for number in range(2, 9)}, "does not hold"),
    }
    for name, (content, expected) in list(cases.items())[: 1 if id == "c2" else None]:  # c2 runs the whole network
        write_lists(tmp_path / name, Train=content)
        found = claim.measure(Bench(tmp_path, data=str(tmp_path / name), say=lambda _: None))
        assert verdict(claim, found) == expected, name
        assert "no slides are here" in found.detail
    further = {"features": 0, "largest difference": 3}
    found = claim.measure(Bench(tmp_path, data=str(tmp_path / "published"), say=lambda _: None)) if id == "c3" else found
    assert claim.rule(found) and not claim.rule(replace(found, numbers={**found.numbers, **further}))


def test_lists_are_counted_where_they_are(tmp_path):
    with pytest.raises(InputError, match="holds none of KimiaNet's lists"):
        paper.claims["c4"].measure(Bench(tmp_path, say=lambda _: None))
    write_lists(tmp_path / "lists", Train={f"{number}.svs": [(1500, 3000)] * 3 for number in range(5)})
    bench = Bench(tmp_path, say=lambda _: None)
    assert paper.claims["c1"].measure(bench).value == 15 and paper.claims["c4"].measure(bench).value == 5


def test_a_draw_is_no_lead_and_no_loss():
    def measured(per_seed: list[float], **numbers) -> Measured:
        return Measured(0.0, "", per_seed=per_seed, numbers=numbers)

    higher = paper.claims["c8"].rule
    assert higher(measured([1, 2], **{"lead in classification": 1}))
    assert not higher(measured([0, 2], **{"lead in classification": 1}))
    assert not higher(measured([1, 2], **{"lead in classification": 0}))
    more = paper.claims["c10"].rule
    for means, holds in (([3, 3, 4, 4], True), ([3, 5, 4, 6], False)):
        runs = {name: [{"search": value}] for name, value in zip(measuring.BLOCKS, means)}
        assert more(measured([means[3] - means[0]], runs=runs)) == holds
    assert not more(measured([-1, 4], runs={name: [{"search": 1}] for name in measuring.BLOCKS}))


def test_studies_give_every_side_as_many_tiles_and_go_on(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "PATIENTS": 3, "SLIDES": 1, "TILES": 2}.items():
        monkeypatch.setattr(measuring, name, value)
    measuring.searched_tiles.cache_clear()
    learn, _ = measuring.slides_of("default", 0)
    counts = {how: chosen_count(learn, how) for how in ("random tiles", "mosaic", "mosaic, most nuclei")}
    assert len(set(counts.values())) == 1
    bench = Bench(tmp_path, seeds=(0,), say=lambda _: None)
    names = ("mosaic, most nuclei", "random tiles", "last block", "photos", "CBR")
    found = measuring.studied(bench, *names)
    monkeypatch.setattr(measuring, "fit", None)  # a second measurement reads what the first one left
    assert measuring.studied(bench, *names) == found
    measured = measuring.lead(bench, found, "mosaic, most nuclei", "CBR")
    assert "lead in classification" in measured.numbers and len(measured.per_seed) == 1
    measuring.searched_tiles.cache_clear()


def test_configurations_begin_with_the_network_of_photos(tmp_path, monkeypatch):
    for name, value in {"STEPS": 1, "PATIENTS": 2, "SLIDES": 1, "TILES": 2}.items():
        monkeypatch.setattr(measuring, name, value)
    learn, _ = measuring.slides_of("default", 0)
    photos, last, every = (
        measuring._trained(name, learn, measuring.folder_of(tmp_path, name, 0), 0).network.features
        for name in ("photos", "last block", "all blocks")
    )
    assert torch.equal(photos.conv0.weight, last.conv0.weight) and not torch.equal(photos.conv0.weight, every.conv0.weight)
    assert torch.equal(photos.norm0.running_mean, last.norm0.running_mean)
    first = "denselayer1"
    assert not torch.equal(
        photos.denseblock4.get_submodule(first).conv1.weight, last.denseblock4.get_submodule(first).conv1.weight
    )


def chosen_count(slides, how: str) -> int:
    return len(measuring.chosen_tiles(slides, how, 0)[0])
