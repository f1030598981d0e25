"""InceptionNeXt end to end at toy size: a run, its verbs, and the claims that can be computed exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers._inceptionnext_recipe import InceptionNeXtConfig, NetworkConfig, build_network
from paperworks.papers.inceptionnext import paper


def tiny(data: str = "digits", channels: int = 1) -> InceptionNeXtConfig:
    config = paper.recipes["laptop"](data, image_size=16).config
    network = NetworkConfig((1, 1), (16, 32), 2)
    training = replace(config.training, steps=4, batch_size=8, eval_every=2, checkpoint_every=2)
    return replace(config, channels=channels, network=network, training=training)


def carry_out(folder: Path, config: InceptionNeXtConfig) -> Run:
    run = Run.open(folder, slug="inceptionnext", recipe="laptop", arguments={}, config=config, command="paperworks run")
    run.execute(Recipe(config, paper.recipes["laptop"]().stages), say=lambda words: None)
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Run:
    return carry_out(tmp_path_factory.mktemp("inceptionnext") / "run", tiny())


def test_a_run_compares_with_a_linear_classifier_and_shows_its_mistakes(digits):
    numbers = digits.result("report")
    assert numbers["linear classifier on pixels, top-1"] > 0.8
    assert 0 <= numbers["top-1"] <= numbers["top-5"] <= 1
    page = (digits.folder / "report.html").read_text()
    assert "What is taken for what" in page and "Its surest mistakes" in page and "Recognised per class" in page


def test_evaluate_predict_and_export_use_the_run(digits, tmp_path):
    found = paper.verbs["evaluate"](digits)
    assert found["top-1"] == digits.result("report")["top-1"]
    assert abs(paper.verbs["evaluate"](digits, fast=True)["top-1"] - found["top-1"]) < 0.05
    Image.new("L", (20, 16), 80).save(tmp_path / "a.png")
    rows = paper.verbs["predict"](digits, images=tmp_path / "a.png", top=3)
    assert len(rows) == 1 and rows[0]["said"].count("%") == 3
    path = Path(paper.verbs["export"](digits, to="torchscript", out=tmp_path / "m.pt")["file"])
    images = torch.rand(3, 1, 16, 16)
    from paperworks.papers._inceptionnext_recipe import load_classifier

    with torch.inference_mode():
        assert torch.allclose(torch.jit.load(path)(images), load_classifier(digits).logits(images), atol=1e-5)


@pytest.mark.slow
def test_the_onnx_file_takes_any_batch_and_agrees(digits, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from paperworks.papers._inceptionnext_recipe import load_classifier

    path = paper.verbs["export"](digits, out=tmp_path / "m.onnx")["file"]
    images = torch.rand(5, 1, 16, 16)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"image": images.numpy()})
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(logits), load_classifier(digits).logits(images), atol=1e-4)


def test_a_folder_with_broken_pictures_works_and_a_flat_one_is_named(jpeg_folder, tmp_path):
    run = carry_out(tmp_path / "run", tiny(str(jpeg_folder), channels=3))
    assert len(run.result("train")["skipped"]) == 5
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (20, 20)).save(flat / "a.png")
    with pytest.raises(InputError, match="label"):
        carry_out(tmp_path / "other", tiny(str(flat), channels=3))


@pytest.mark.parametrize("mixer", ["inception", "depthwise7", "depthwise3", "partial3"])
def test_every_mixer_of_the_study_builds_and_they_differ_in_size_only_by_the_mixer(mixer):
    config = replace(tiny(), network=NetworkConfig((1, 1), (16, 32), 2, mixer=mixer))
    network = build_network(config, 10)
    mixers = sum(p.numel() for name, p in network.named_parameters() if "token_mixer" in name)
    rest = sum(p.numel() for p in network.parameters()) - mixers
    plain = build_network(replace(config, network=NetworkConfig((1, 1), (16, 32), 2, mixer="depthwise7")), 10)
    assert rest == sum(p.numel() for name, p in plain.named_parameters() if "token_mixer" not in name)


@pytest.mark.parametrize("id", ["sizes", "c1", "c3", "c6", "c6_bands"])
def test_exact_claims_are_counted_and_hold(id):
    claim = paper.claims[id]
    assert verdict(claim, claim.measure(Bench(Path("unused")))) == "holds"


@pytest.mark.parametrize("name", list(paper.variants))
def test_variants_have_the_published_size(name):
    variant = paper.variants[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in variant.build().parameters()) / 1e6 == pytest.approx(variant.parameters, abs=1e-3)
