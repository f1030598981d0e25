"""InceptionNeXt end to end at toy size: a run, its verbs, and the claims that can be computed exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers._classification import ClassifierConfig, NetworkConfig
from paperworks.papers.inceptionnext import paper


def tiny(data: str = "digits") -> ClassifierConfig:
    config = paper.recipes["laptop"](data, size=32, steps=4).config
    network = NetworkConfig("inceptionnext_tiny", {"depths": [1, 1], "dims": [16, 32], "patch_size": 4})
    training = replace(config.training, batch_size=8, eval_every=2, checkpoint_every=2)
    return replace(config, network=network, training=training)


def carry_out(folder: Path, config: ClassifierConfig) -> Run:
    run = Run.open(folder, slug="inceptionnext", recipe="laptop", arguments={}, config=config, command="paperworks run")
    run.execute(Recipe(config, paper.recipes["laptop"]().stages), say=lambda words: None)
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Run:
    return carry_out(tmp_path_factory.mktemp("inceptionnext") / "run", tiny())


def test_a_run_compares_with_a_linear_classifier_and_leaves_a_page(digits):
    assert digits.result("linear")["top1"] > 0.8
    found = digits.result("evaluate")
    assert 0 <= found["top1"] <= found["top5"] <= 1
    assert (digits.folder / "report.html").stat().st_size > 10_000


def test_evaluate_predict_and_export_use_the_run(digits, tmp_path):
    found = paper.verbs["evaluate"](digits)
    assert found["top-1 %"] == pytest.approx(100 * digits.result("evaluate")["top1"], abs=0.01)
    Image.new("L", (20, 16), 80).save(tmp_path / "a.png")
    rows = paper.verbs["predict"](digits, str(tmp_path / "a.png"), top=3)
    assert len(rows) == 1
    made = paper.verbs["export"](digits, to="torchscript", out=tmp_path / "m.pt")
    logits = torch.jit.load(tmp_path / "m.pt")(torch.rand(3, 3, 32, 32))
    assert logits.shape == (3, 10) and made


def test_a_folder_with_broken_pictures_works_and_one_class_is_named(jpeg_folder, tmp_path):
    run = carry_out(tmp_path / "run", tiny(str(jpeg_folder)))
    assert len(run.result("train")["skipped"]) == 5
    single = tmp_path / "images" / "only"
    single.mkdir(parents=True)
    for number in range(20):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(single / f"{number}.png")
    with pytest.raises((InputError, ValueError), match="class"):
        carry_out(tmp_path / "other", tiny(str(single.parent)))


@pytest.mark.parametrize("id", ["c1", "c3", "c6"])
def test_exact_claims_are_counted_and_hold(id):
    claim = paper.claims[id]
    assert verdict(claim, claim.measure(Bench(Path("unused")))) == "holds"


@pytest.mark.parametrize("name", list(paper.variants))
def test_variants_have_the_published_size(name):
    variant = paper.variants[name]
    with torch.device("meta"):
        count = sum(p.numel() for p in variant.build().parameters()) / 1e6
    if variant.parameters is not None:
        assert count == pytest.approx(variant.parameters, abs=1e-3)
