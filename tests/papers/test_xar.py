"""xAR end to end at toy size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers import _generation_report
from paperworks.papers._recognition_claims import millions
from paperworks.papers.xar import paper
from paperworks.training import TrainConfig
from tests.papers.test_token_papers import Eye


def tiny(data: str = "default", entity: str = "cell"):
    config = paper.recipes["laptop"](data=data, entity=entity).config
    return replace(
        config,
        copies=1,
        autoencoder=replace(config.autoencoder, ch=8, groups=4),
        autoencoder_training=TrainConfig(4, 8, optimizers=config.autoencoder_training.optimizers, checkpoint_every=2),
        flow=replace(config.flow, dim=16, depth=1, heads=2),
        flow_training=replace(config.flow_training, steps=4, batch_size=8, checkpoint_every=2),
        sampling=replace(config.sampling, steps=3, images=20),
    )


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch):
    monkeypatch.setattr(_generation_report, "digit_classifier", lambda folder: Eye())
    monkeypatch.setattr(_generation_report, "lite0", Eye)


def carry_out(folder: Path, config) -> Run:
    run = Run.open(folder, slug="xar", recipe="laptop", arguments={}, config=config, command="paperworks run xar")
    run.execute(Recipe(config, paper.recipes["laptop"]().stages), say=lambda _: None)
    return run


@pytest.mark.parametrize("entity", ["cell", "scale"])
def test_a_run_leaves_a_page_and_samples(entity, tmp_path):
    run = carry_out(tmp_path / "run", tiny(entity=entity))
    page = (run.folder / "report.html").read_text()
    assert all(words in page for words in ("Samples, a column per class", "What the autoencoder keeps"))
    first, again = (paper.verbs["sample"](run, classes=("3",), count=2, out=tmp_path / f"{i}.png") for i in (1, 2))
    assert Path(first["file"]).read_bytes() == Path(again["file"]).read_bytes()
    assert "precision" in paper.verbs["evaluate"](run)


def test_a_folder_with_broken_pictures_works_and_lists_them(jpeg_folder, tmp_path):
    run = carry_out(tmp_path / "run", tiny(str(jpeg_folder)))
    assert len(run.result("autoencoder")["skipped"]) == 5
    assert "Images left out" in (run.folder / "report.html").read_text()


def test_variants_have_the_published_sizes():
    for name, variant in paper.variants.items():
        assert millions(variant.build) == pytest.approx(variant.parameters, rel=1e-4), name


@pytest.mark.parametrize("id", ["c1", "c4", "c5", "c7"])
def test_counted_claims_hold(id, tmp_path):
    claim = paper.claims[id]
    with torch.random.fork_rng(devices=[]):
        assert verdict(claim, claim.measure(Bench(tmp_path))).endswith("holds")
