"""Papers of a tokenizer and a generator at toy size: stages, page, verbs, resuming, broken pictures, counted claims."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers import _generation_report, vqgan_lc
from paperworks.papers._recognition_claims import millions
from paperworks.training import TrainConfig
from tests.papers.test_generation import Mean

SHRINK = {
    "vit-vqgan": {
        "tokenizer": {"patch_size": 8, "vocab_size": 16, "code_dim": 4},
        "generator": {"dim": 16, "depth": 1, "heads": 2},
    },
    "vqgan-lc": {
        "tokenizer": {"vocab_size": 40, "ch": 8, "z_channels": 8, "ch_mult": (1, 2, 2), "groups": 4, "per_class": 4},
        "generator": {"dim": 16, "depth": 1, "heads": 2},
    },
}
SHRINK["hmar"] = {
    "tokenizer": {"vocab_size": 16, "ch": 8, "z_channels": 4, "groups": 4},
    "generator": {"depth": 2, "embed_dim": 16, "num_heads": 1, "refine_layers": 1},
}
SHRINK["resgen"] = {
    "tokenizer": {"depth": 3, "vocab_size": 16, "embed_dim": 4, "ch": 8, "z_channels": 8, "groups": 4},
    "generator": {"dim": 16, "layers": 1, "heads": 1, "mixtures": 4},
}
SHRINK["titok"] = {
    "proxy": {"vocab_size": 16, "z_channels": 4, "ch": 8, "groups": 4},
    "tokenizer": {"latents": 6, "encoder": (16, 1, 2), "decoder": (16, 1, 2), "vocab_size": 16, "code_dim": 4},
    "generator": {"dim": 16, "depth": 2, "heads": 2},
}
SHRINK["detailflow"] = {
    "tokenizer": {"latents": 8, "encoder": (16, 1, 2, 32), "decoder": (16, 1, 2, 32), "vocab_size": 16, "code_dim": 4},
    "generator": {"dim": 16, "depth": 1, "heads": 2, "multiple_of": 16},
}
COUNTED = {
    "vit-vqgan": {"sizes": "holds", "c10": "does not hold"},
    "vqgan-lc": {"c6": "holds"},
    "hmar": {"c2": "holds", "c7": "holds"},
    "resgen": {"c2": "holds"},
    "titok": {"c1": "holds", "c2": "holds", "c6": "holds", "c7": "direction holds"},
    "detailflow": {"c4": "holds"},
}


def paper_of(slug: str):
    return importlib.import_module(f"paperworks.papers.{slug.replace('-', '_')}").paper


def tiny(slug: str, data: str = "default"):
    config = paper_of(slug).recipes["laptop"](data=data).config
    parts = {name: replace(getattr(config, name), **changes) for name, changes in SHRINK[slug].items()}
    training = TrainConfig(4, 8, optimizers=config.tokenizer_training.optimizers, checkpoint_every=2)
    if slug == "hmar":
        parts["refining"] = replace(config.refining, steps=4, batch_size=8, checkpoint_every=2)
    if slug == "titok":
        parts |= {
            name: replace(getattr(config, name), steps=4, batch_size=8) for name in ("proxy_training", "latents_training")
        }
    return replace(
        config,
        **parts,
        copies=1,
        tokenizer_training=training,
        generator_training=replace(config.generator_training, steps=4, batch_size=8, checkpoint_every=2),
        sampling=replace(config.sampling, images=20),
    )


def carry_out(slug: str, folder: Path, config) -> Run:
    run = Run.open(folder, slug=slug, recipe="laptop", arguments={}, config=config, command=f"paperworks run {slug}")
    run.execute(Recipe(config, paper_of(slug).recipes["laptop"]().stages), say=lambda _: None)
    return run


class Eye(Mean):
    """Stands in for the judges, whose own training and weights have tests of their own."""

    def logits(self, images):
        return self.features(images) @ torch.ones(4, 10)


class Wide(Eye):
    """1280 features, as EfficientNet-Lite0 has them."""

    def features(self, images):
        return torch.nn.functional.interpolate(images, (16, 16)).mean(1).flatten(1).repeat(1, 5)


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch):
    monkeypatch.setattr(_generation_report, "digit_classifier", lambda folder: Eye())
    monkeypatch.setattr(_generation_report, "lite0", Eye)
    monkeypatch.setattr(vqgan_lc, "lite0", Wide)


@pytest.mark.parametrize("slug", list(SHRINK))
def test_a_run_on_digits_leaves_numbers_pictures_and_a_page(slug, tmp_path):
    run = carry_out(slug, tmp_path / "run", tiny(slug))
    numbers = run.result("report")
    assert {"Frechet distance of samples", "Frechet distance before training", "codes in use"} <= set(numbers)
    page = (run.folder / "report.html").read_text()
    assert all(title in page for title in ("Samples, a column per class", "What the tokenizer keeps", "Numbers"))
    verbs = paper_of(slug).verbs
    first, again = (verbs["sample"](run, classes=("3", "7"), count=2, out=tmp_path / f"{i}.png") for i in (1, 2))
    assert first["images"] == 4 and Path(first["file"]).read_bytes() == Path(again["file"]).read_bytes()
    with pytest.raises(InputError, match="no class 'x'"):
        verbs["sample"](run, classes=("x",))
    assert verbs["evaluate"](run)["codes in use"] == numbers["codes in use"]
    assert json.loads((run.folder / "run.json").read_text())["finished"]


MOST = [slug if slug == "titok" else pytest.param(slug, marks=pytest.mark.slow) for slug in SHRINK]


@pytest.mark.parametrize("slug", MOST)
def test_a_folder_with_broken_pictures_works_and_a_stage_resumes_to_the_same_weights(slug, jpeg_folder, tmp_path):
    config = tiny(slug, str(jpeg_folder))
    whole = carry_out(slug, tmp_path / "whole", config)
    assert len(whole.result("tokenizer")["skipped"]) == 5
    assert "Images left out" in (whole.folder / "report.html").read_text()
    short = replace(config.generator_training, steps=4)
    stopped = Run.open(tmp_path / "stopped", slug=slug, recipe="laptop", arguments={}, config=config, command="")
    stages = paper_of(slug).recipes["laptop"]().stages
    stopped.execute(Recipe(config, stages[: [stage.name for stage in stages].index("tokenizer") + 1]), say=lambda _: None)
    assert short == config.generator_training
    stopped.record["finished"] = False
    stopped.execute(Recipe(config, stages), say=lambda _: None)
    ours, theirs = (folder / "generator" / "model" / "model.safetensors" for folder in (whole.folder, stopped.folder))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("slug", list(SHRINK))
def test_variants_have_the_published_sizes(slug):
    for name, variant in paper_of(slug).variants.items():
        if variant.parameters is not None:
            assert millions(variant.build) == pytest.approx(variant.parameters, rel=1e-4), name


@pytest.mark.parametrize(("slug", "id", "expected"), [(s, i, e) for s, ids in COUNTED.items() for i, e in ids.items()])
def test_counted_claims(slug, id, expected, tmp_path):
    claim = paper_of(slug).claims[id]
    assert verdict(claim, claim.measure(Bench(tmp_path))) == expected
