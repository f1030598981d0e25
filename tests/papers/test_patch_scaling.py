"""The curve of patch scaling: a small one from images to page, its claims' rules."""

from dataclasses import replace

import pytest

from paperworks.errors import InputError
from paperworks.paper import Bench, Measured, Run
from paperworks.papers import _patch_scaling_claims as claims
from paperworks.papers import _patch_scaling_dense as dense
from paperworks.papers._patch_scaling_curve import build, tokens
from paperworks.papers.patch_scaling import paper


def test_a_curve_leaves_a_page_with_every_point(tmp_path, monkeypatch):
    recipe = paper.recipes["curve"](patches=(8, 4), images=64, epochs=2)
    recipe = replace(recipe, config=replace(recipe.config, batch=32, test_images=50))
    run = Run.open(tmp_path, slug="patch-scaling", recipe="curve", arguments={}, config=recipe.config, command="paperworks run")
    run.execute(recipe, say=lambda _: None)
    found = run.result("curve")
    assert set(found) == {"Adventurer", "ViT"} and found["ViT"]["8"]["tokens"] == 4 and found["ViT"]["4"]["tokens"] == 16
    page = (tmp_path / "report.html").read_text()
    assert "over tokens" in page and "8 x 8" in page and "million MACs" in page
    monkeypatch.setattr("paperworks.papers._patch_scaling_curve.fit", None)  # a second time everything is read
    config = replace(claims.CURVE, patches=(8, 4), images=64, epochs=2, batch=32, test_images=50)
    monkeypatch.setattr(claims, "CurveConfig", lambda **given: replace(config, **given))
    measured = claims.curve_of(Bench(tmp_path / "curve", seeds=(0,), say=lambda _: None))
    assert measured.value == min(found[kind]["4"]["top1"] - found[kind]["8"]["top1"] for kind in found)


def test_what_does_not_fit_is_said_before_training(tmp_path):
    with pytest.raises(InputError, match="do not divide"):
        build("ViT", 3, 16, 10)
    with pytest.raises(InputError, match="no network 'CNN'"):
        build("CNN", 4, 16, 10)
    with pytest.raises(InputError, match="do not divide"):
        paper.recipes["laptop"](size=30, patch=4)
    with pytest.raises(InputError, match="--weights"):
        paper.recipes["paper"](part=2)
    assert paper.recipes["paper"](part=3, weights="x.pth").config.network.arguments["drop_path_rate"] == 0.6


def test_rules():
    row = {"loss": {"8": 3.0, "4": 2.0, "2": 1.0, "1": 1.1}, "top1": {"8": 1.0, "4": 2.0, "2": 80.0, "1": 79.5}}
    measured = Measured(0.0, "", numbers={"means": {"ViT": row}})
    assert claims.falls(measured)
    row["top1"]["1"] = 78.0
    assert not claims.falls(measured)
    good = {"finite": True, "time": 4.2, "memory": 3.9}
    assert claims.linear_in_tokens(Measured(50176, "", numbers=good))
    assert not claims.linear_in_tokens(Measured(50176, "", numbers={**good, "time": 8.0}))
    assert tokens(224, 1) == 50176 and claims.attention_gib(50176) == pytest.approx(9.38, abs=0.01)


def test_both_sizes_are_told_apart(tmp_path, monkeypatch):
    folders = []

    def points(config, bench):
        folders.append(bench.folder.name)
        return {"Adventurer": {p: [{"loss": p / config.size, "top1": 90.0 - p}] for p in config.patches}}

    monkeypatch.setattr(claims, "all_points", points)
    found = claims.both_sizes(Bench(tmp_path / "curve", (0,), "digits"))
    assert folders == ["curve", "32 pixels"] and found.value == 6 and claims.falls_at_both(found)
    found.numbers["means"]["32"]["4"]["loss"] = 1.0
    assert not claims.falls_at_both(found)


def test_dense_claims_compare_patches_and_decoders(tmp_path, monkeypatch):
    table = {("linear", 8): 40.0, ("linear", 4): 50.0, ("linear", 2): 58.0}
    table |= {("convolutional", 8): 55.0, ("convolutional", 4): 58.0, ("convolutional", 2): 60.0}
    monkeypatch.setattr(dense, "_trained", lambda bench, kind, patch, seed: table[kind, patch])
    bench = Bench(tmp_path, (0, 1), "digits")
    rising, gaps = dense.smaller_patches(bench), dense.decoder_gaps(bench)
    assert rising.value == 18 and dense.rises(rising)
    assert gaps.value == 13 and gaps.per_seed == [13, 13]


@pytest.mark.slow
def test_a_dense_network_is_trained_once(tmp_path, monkeypatch):
    for name, value in {"TRAIN": 8, "TEST": 4, "EPOCHS": 1, "BATCH": 4}.items():
        monkeypatch.setattr(dense, name, value)
    bench = Bench(tmp_path, (0,), "digits", say=lambda text: None)
    first = dense._trained(bench, "convolutional", 8, 0)
    assert 0 <= first <= 100
    monkeypatch.setattr(dense, "fit", lambda *given, **named: pytest.fail("trained again"))
    assert dense._trained(bench, "convolutional", 8, 0) == first
