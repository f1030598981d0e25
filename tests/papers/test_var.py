"""VAR end to end at toy size: both stages, the report, verbs, resuming, and a folder with broken pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from paperworks.errors import InputError
from paperworks.paper import Recipe, Run
from paperworks.papers import _generation_report
from paperworks.papers._generation import tokenizer_training
from paperworks.papers._var_recipe import TransformerConfig, VARConfig, build_tokenizer, load_transformer
from paperworks.papers.var import paper
from paperworks.training import TrainConfig


def tiny(data: str = "default", channels: int = 1) -> VARConfig:
    config = paper.recipes["laptop"]().config
    return replace(
        config,
        data=data,
        channels=channels,
        copies=1,
        tokenizer=replace(config.tokenizer, ch=8, ch_mult=(1, 1, 2, 2), vocab_size=32, z_channels=4, groups=4),
        tokenizer_training=replace(tokenizer_training(4, 8, 1e-3), checkpoint_every=2),
        transformer=TransformerConfig(1, 32, 1),
        transformer_training=TrainConfig(4, 8, ema=0.9, checkpoint_every=2),
        sampling=replace(config.sampling, images=20),
    )


class Eye(torch.nn.Module):
    """Stands in for the judges, whose own training and weights have tests of their own."""

    def features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 3).flatten(1)

    def logits(self, images):
        return self.features(images) @ torch.ones(9, 10)

    def forward(self, images):
        return self.features(images)


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch):
    monkeypatch.setattr(_generation_report, "digit_classifier", lambda folder: Eye())
    monkeypatch.setattr(_generation_report, "lite0", Eye)


def carry_out(folder: Path, config: VARConfig) -> Run:
    run = Run.open(folder, slug="var", recipe="laptop", arguments={}, config=config, command="paperworks run var")
    run.execute(Recipe(config, paper.recipes["laptop"]().stages), say=lambda words: None)
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generation_report, "digit_classifier", lambda folder: Eye())
        return carry_out(tmp_path_factory.mktemp("var") / "run", tiny())


def test_a_run_leaves_numbers_pictures_and_a_page(digits):
    numbers = digits.result("report")
    assert {"Frechet distance of samples", "Frechet distance before training", "codes in use", "precision"} <= set(numbers)
    assert numbers["sequential passes"] == 4
    page = (digits.folder / "report.html").read_text()
    for title in ("Samples, a column per class", "scale by scale", "What the tokenizer keeps", "Editing without retraining"):
        assert title in page
    assert json.loads((digits.folder / "run.json").read_text())["finished"]


def test_sampling_from_a_run_is_reproducible_and_takes_class_names(digits, tmp_path):
    first, again = (paper.verbs["sample"](digits, classes=("3", "7"), count=2, out=tmp_path / f"{i}.png") for i in (1, 2))
    assert first["images"] == 4 and Path(first["file"]).read_bytes() == Path(again["file"]).read_bytes()
    other = paper.verbs["sample"](digits, classes=("3", "7"), count=2, seed=2, out=tmp_path / "3.png")
    assert Path(other["file"]).read_bytes() != Path(first["file"]).read_bytes()
    best = paper.verbs["sample"](digits, classes=("3",), count=2, best_of=3, out=tmp_path / "4.png")
    assert best["images"] == 2
    with pytest.raises(InputError, match="no class 'three'"):
        paper.verbs["sample"](digits, classes=("three",))


def test_a_picture_is_edited_where_its_mask_is_white(digits, tmp_path):
    Image.new("L", (32, 32), 90).save(tmp_path / "grey.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save(tmp_path / "mask.png")
    settings = {"image": tmp_path / "grey.png", "mask": tmp_path / "mask.png", "out": tmp_path / "out.png"}
    made = paper.verbs["sample"](digits, count=2, **settings)
    assert made["images"] == 4  # the picture, its hole, two fillings
    with pytest.raises(InputError, match="one class to edit towards"):
        paper.verbs["sample"](digits, classes=("1", "2"), **settings)


def test_evaluating_other_images_and_a_stage_that_never_ran(digits, tmp_path):
    assert paper.verbs["evaluate"](digits)["held-out images"] > 10
    unfinished = Run.create(tmp_path / "r", slug="var", recipe="laptop", arguments={}, config=tiny(), command="x")
    with pytest.raises(InputError, match="no trained transformer yet"):
        load_transformer(unfinished)


def test_a_folder_with_broken_pictures_works_and_lists_them(jpeg_folder, tmp_path):
    run = carry_out(tmp_path / "run", tiny(str(jpeg_folder), channels=3))
    result = run.result("tokenizer")
    assert len(result["skipped"]) == 5 and len(result["classes"]) == 3
    assert "Images left out" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_run_that_died_in_a_stage_ends_with_the_same_weights(digits, tmp_path, monkeypatch, stage):
    """Dies after the first checkpoint of the stage, in the middle of a step; the kill -9 itself is tested on the engine."""
    from paperworks.objectives.token_prediction import TokenPrediction
    from paperworks.objectives.tokenizer_training import TokenizerTraining

    kind = TokenizerTraining if stage == "tokenizer" else TokenPrediction
    honest = kind.loss

    def dies(self, batch, phase, ctx):
        if ctx.step == 3:
            raise SystemError("power cut")
        return honest(self, batch, phase, ctx)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "loss", dies)
        with pytest.raises(SystemError):
            carry_out(tmp_path / "run", tiny())
    run = carry_out(tmp_path / "run", tiny())
    for part in ("tokenizer", "transformer"):
        weights = f"{part}/model/model.safetensors"
        assert (run.folder / weights).read_bytes() == (digits.folder / weights).read_bytes(), part


def test_an_image_size_that_the_scales_cannot_reach_is_named():
    with pytest.raises(InputError, match="image_size=48, but 3 halvings down to a map of 4 x 4 need 32"):
        build_tokenizer(replace(tiny(), image_size=48))


def test_every_recipe_builds_its_configuration():
    assert paper.recipes["laptop"]("photos", image_size=64).config.channels == 3
    published = paper.recipes["paper"](depth=30).config
    assert published.transformer_training.batch_size == 1024 and published.transformer.embed_dim == 1920


def test_exact_claims_are_measured_not_typed():
    from paperworks.paper import Bench, verdict

    for id, value in (("passes", 10), ("attention", pytest.approx(4, abs=0.01))):
        claim = paper.claims[id]
        measured = claim.measure(Bench(Path("unused")))
        assert measured.value == value and verdict(claim, measured) == "holds"
