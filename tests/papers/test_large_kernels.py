"""UniRepLKNet's and RepLKNet's own recipes at toy size, and how their claims are measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paperworks.backbones.registry import create
from paperworks.backbones.unireplknet import UniRepLKNet
from paperworks.errors import InputError
from paperworks.paper import Bench, Measured, Recipe, Run, verdict
from paperworks.papers import _large_kernel_claims as claims
from paperworks.papers import _universal, large_kernels, unireplknet
from paperworks.papers._receptive_report import ReceptiveConfig, build
from paperworks.papers._recognition_claims import Budget


def carried_out(slug: str, name: str, recipe: Recipe, folder: Path) -> Run:
    run = Run.open(folder, slug=slug, recipe=name, arguments={}, config=recipe.config, command=f"paperworks run {slug}")
    run.execute(recipe, say=lambda _: None)
    return run


def quiet(folder: Path, seeds: tuple[int, ...] = (0,)) -> Bench:
    return Bench(folder, seeds=seeds, say=lambda _: None)


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_kinds_of_data_go_through_one_network_to_a_page(tmp_path):
    recipe = unireplknet.paper.recipes["universal"](steps=2)
    recipe = Recipe(replace(recipe.config, made=0.03), recipe.stages)
    run = carried_out("unireplknet", "universal", recipe, tmp_path / "run")
    page = (run.folder / "report.html").read_text()
    assert all(words in page for words in ("Forecasts", "Sounds", "Videos", "Clouds", "Beside a baseline"))
    for name in _universal.MODALITIES:
        assert run.result(name)["network"] >= 0 and run.result(name)["baseline"] > 0
    assert "7 real series" in run.result("series")["data"]


def test_held_out_sounds_are_standardised_as_the_training_data():
    train, statistics = _universal.sounds(24, 0)
    again, kept = _universal.sounds(24, 0, (statistics[0] + 1.0, statistics[1]))
    assert float(train["input"].mean()) == pytest.approx(0, abs=1e-4) and kept[0] == statistics[0] + 1.0
    shift = 1 / (2 * statistics[1])
    assert torch.allclose(again["input"], train["input"] - shift, atol=1e-4)


@pytest.mark.slow
def test_receptive_fields_are_drawn_side_by_side(tmp_path):
    save_file(create("unireplknet_a").state_dict(), tmp_path / "weights.safetensors")
    networks = ("unireplknet_a", f"unireplknet_a={tmp_path}/weights.safetensors", "resnet18")
    recipe = large_kernels.paper.recipes["receptive"](networks=networks, size=160, count=1)
    run = carried_out("large-kernels", "receptive", recipe, tmp_path / "run")
    fields = run.result("measure")["fields"]
    opened, closed = (fields[name]["0.5"][1] for name in networks[:2])
    # as stored the network's blocks hardly count; random weights are such that more than the stem is seen
    assert opened > 2 * closed
    page = (run.folder / "report.html").read_text()
    assert "How far the centre sees" in page and "resnet18" in page
    with pytest.raises(InputError, match="no network 'resnet1x' here or in timm"):
        build("resnet1x", ReceptiveConfig())


def test_transformers_of_one_size_get_the_size_of_the_images():
    assert build("swin_tiny_patch4_window7_224", ReceptiveConfig(size=64)).patch_embed.img_size == (64, 64)
    assert build("unireplknet_a", ReceptiveConfig()).stages[0].blocks[0].gamma.eq(1).all()


def test_networks_with_more_data_behind_them_are_not_trained_from_scratch():
    published = unireplknet.paper.recipes["paper"]
    for size in ("b", "l", "xl"):
        with pytest.raises(InputError, match=f"ImageNet-22K .* --variant unireplknet_{size} --size 384"):
            published(variant=f"unireplknet_{size}")
    assert published(variant="unireplknet_s").config.network.arguments == {"drop_path_rate": 0.4}


# --- claims -----------------------------------------------------------------------------------------------------------


def test_twins_differ_in_one_thing_and_start_alike():
    def made(*args, **kwargs) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return claims.twin(10, *args, **kwargs).state_dict()

    dilated, plain, undilated = made(13), made(13, "none"), made(13, "undilated")
    assert [name for name in plain if name in dilated and ".branches." in name] == []
    first = "stages.1.blocks.0.dwconv.branches."
    assert len([name for name in undilated if name.startswith(first) and name.endswith("conv.weight")]) == 5
    for weights in (dilated, plain, undilated):
        kernel = weights["stages.1.blocks.0.dwconv.origin.conv.weight"]
        assert float(kernel.std()) == pytest.approx(0.02, rel=0.1)  # torch's own would be 0.044
    assert "stages.1.blocks.0.se.fc1.weight" not in made(13, gates=False)
    assert "stages.0.blocks.0.dwconv.origin.conv.weight" in made(13, first=13)
    deeper = made(13, added=3)
    assert deeper["stages.1.blocks.2.dwconv.origin.conv.weight"].shape[-1] == 13
    assert deeper["stages.1.blocks.3.dwconv.weight"].shape[-1] == 3
    maps = claims.twin(10, 13).eval().forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    assert [each.shape[-1] for each in maps] == [32, 16, 8]


@pytest.mark.slow
def test_every_guideline_is_reported(tmp_path):
    budget = Budget(images=32, test_images=20, epochs=1, batch=16)
    found = claims.guidelines_claim(quiet(tmp_path / "a"), budget)
    points = found.numbers["points by guideline"]
    assert {name[0] for name in points} == {"1", "2", "3", "4"} and all(len(values) == 1 for values in points.values())
    assert points["2: dilated branches over the plain large kernel"] == pytest.approx(found.per_seed, abs=1e-3)
    found = large_kernels.shortcut_is_vital(quiet(tmp_path / "b"), budget)
    assert [name[0] for name in found.numbers["points by guideline"]] == ["2", "3", "5"]
    assert found.numbers["points by guideline"]["2: identity shortcut over none"] == pytest.approx(found.per_seed, abs=1e-3)


def test_a_field_that_does_not_grow_at_every_step_fails(tmp_path, monkeypatch):
    claim = unireplknet.paper.claims["c3"]
    for areas, ratios, holds in (
        ({3: [0.02, 0.03], 7: [0.1, 0.1], 13: [0.2, 0.3]}, [10.0, 10.0], True),
        ({3: [0.02, 0.03], 7: [0.3, 0.1], 13: [0.2, 0.3]}, [0.0, 10.0], False),
        ({3: [0.05, 0.03], 7: [0.1, 0.1], 13: [0.2, 0.3]}, [4.0, 10.0], False),
    ):
        monkeypatch.setattr(claims, "field_areas", lambda bench, kernels, areas=areas: areas)
        found = claim.measure(quiet(tmp_path, (0, 1)))
        assert found.per_seed == pytest.approx(ratios) and claim.rule(found) is holds


def test_areas_grow_with_the_kernel(tmp_path):
    areas = claims.field_areas(quiet(tmp_path), (3, 7), pixels=192)
    assert 0 < areas[3][0] < areas[7][0] <= 1


def test_cues_agree_in_training_and_conflict_in_the_test(tmp_path):
    same = claims.cue_pictures(quiet(tmp_path), "train", 12, False, 0)
    other = claims.cue_pictures(quiet(tmp_path), "test", 12, True, 0)
    assert torch.equal(same["label"], same["texture"]) and not bool((other["label"] == other["texture"]).any())
    assert same["image"].shape == (12, 3, 32, 32) and same["image"].dtype == torch.uint8


@pytest.mark.slow
def test_shape_bias_compares_twins_and_refuses_what_is_undecided(tmp_path, monkeypatch):
    budget = Budget(epochs=1, batch=32)
    found = claims.shape_claim(quiet(tmp_path / "a"), 96, budget)
    bias = found.numbers["shape bias"]
    assert found.per_seed == pytest.approx([100 * (bias["13"][0] - bias["3"][0])])
    assert all(0 <= values[0] <= 1 for values in bias.values())

    def neither(objective, images):  # a class that is neither the outline's nor the surface's
        test = claims.cue_pictures(quiet(tmp_path), "test", 32, True, 1000)
        return torch.tensor([next(c for c in range(10) if c not in pair) for pair in zip(test["label"], test["texture"])])

    monkeypatch.setattr(claims, "_answers", neither)
    with pytest.raises(InputError, match="no picture was decided"):
        claims.shape_claim(quiet(tmp_path / "b"), 96, budget)


def test_equal_shape_bias_is_not_higher():
    rule = large_kernels.paper.claims["c7"].rule
    assert rule(Measured(1.0, "", per_seed=[0.5, 1.5])) and not rule(Measured(0.5, "", per_seed=[0.0, 1.0]))


@pytest.mark.slow
def test_the_forecaster_with_small_kernels_has_no_fewer_parameters(tmp_path):
    found = claims.kernel_comparison(quiet(tmp_path), steps=2)
    folded = found.numbers["parameters, folded"]
    assert folded["13"] <= folded["3"] <= 1.05 * folded["13"]
    assert found.per_seed == pytest.approx([found.numbers["errors"]["3"][0] / found.numbers["errors"]["13"][0]])


def test_large_kernels_are_a_few_per_cent_of_the_operations():
    assert large_kernels.depthwise_share() == pytest.approx(0.036, abs=5e-4)


def test_both_sides_are_timed_as_their_networks_are(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "create", lambda name, **given: UniRepLKNet(depths=(1, 1), dims=(8, 8), **given))
    found = claims.latency_claim(quiet(tmp_path), {"small": lambda: torch.nn.Conv2d(3, 4, 3)})
    assert isinstance(claims._folded(), UniRepLKNet) and claims._folded().stages[1].blocks[0].gamma is None
    assert len(found.per_seed) == 1 and found.numbers["against small"] > 0


def test_a_modality_that_does_not_learn_fails(tmp_path, monkeypatch):
    claim = large_kernels.paper.claims["c9"]
    step = unireplknet._one_step
    monkeypatch.setattr(unireplknet, "_one_step", lambda given: (*step(given)[:2], float("inf")))
    found = claim.measure(quiet(tmp_path))
    assert found.value == 5 and verdict(claim, found) == "does not hold"
