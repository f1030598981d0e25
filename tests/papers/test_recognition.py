"""Papers of recognition networks: a small run of each from images to page, its verbs, and the claims that are counted."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers import _recognition_claims as measuring
from paperworks.papers._classification import ClassifierConfig, Trained
from paperworks.training import TrainConfig

SHRINK = {
    "simplenet": {"scale": 0.2},
    "ibn-net": {"channels": [4, 6, 8, 10], "stem_width": 4},
    "resnet-rs": {"channels": [4, 6, 8, 10], "stem_width": 4},
    "vovnet": {"stage_conv_chs": [4, 4, 6, 6], "stage_out_chs": [8, 8, 12, 12], "stem_chs": [4, 4, 8]},
    "resformer": {"embed_dim": 16, "depth": 1},
    "unireplknet": {"dims": [8, 12, 16]},
    "large-kernels": {"channels": [4, 6, 8]},
    "tic": {"dims": [8, 12], "heads": [2, 2]},
    "patch-scaling": {"embed_dim": 16, "depth": 1, "mamba_d_state": 4, "headdim": 16},
    "nasnet": {"filters": 2},
    "cswin": {"dims": [8, 12, 16], "depths": [1, 1, 1], "heads": [2, 2, 2]},
    "t2t-vit": {"embed_dim": 12, "depth": 2, "num_heads": 2, "token_dim": 4},
    "groupmamba": {"stem_hidden_dim": 4, "embed_dims": [16, 16, 16, 20], "mlp_ratios": [1, 1, 1, 1], "depths": [1, 1, 1, 1]},
    "maxvit": {"dims": [8, 8, 16], "stem_width": 8, "head_dim": 8},
}
"""arguments that make the laptop's network tiny"""
COUNTED = {
    "simplenet": ["c3"],
    "ibn-net": ["c3", "c5", "c6"],
    "vovnet": ["c1", "c2"],
    "kimianet": ["c5"],
    "nasnet": ["c1", "c6", "c7"],
    "resnet-rs": ["c9"],
    "unireplknet": ["c11"],
    "large-kernels": ["c9"],
    "tic": ["c1", "c2", "c4", "c8"],
    "patch-scaling": ["c8"],
    "resformer": ["c9"],
    "cswin": ["c1", "c2", "c14"],
    "t2t-vit": ["c1", "c2", "c4", "c9"],
    "groupmamba": ["c1", "c3", "c4"],
    "maxvit": ["c1", "c2", "c3"],
}
"""claims that need no training and hold"""


def paper_of(slug: str):
    return importlib.import_module(f"paperworks.papers.{slug.replace('-', '_')}").paper


def tiny(slug: str, data: str = "default") -> ClassifierConfig:
    config = paper_of(slug).recipes["laptop"](data=data).config
    network = replace(config.network, arguments={**config.network.arguments, **SHRINK[slug]})
    training = TrainConfig(6, 16, ema=0.9, eval_every=3, checkpoint_every=3)
    return replace(config, network=network, training=training, watch=50)


def carry_out(slug: str, folder: Path, config: ClassifierConfig) -> Run:
    run = Run.open(folder, slug=slug, recipe="laptop", arguments={}, config=config, command=f"paperworks run {slug}")
    run.execute(Recipe(config, paper_of(slug).recipes["laptop"]().stages), say=lambda _: None)
    return run


@pytest.mark.parametrize("slug", list(SHRINK))
def test_a_run_leaves_a_page_and_a_network_that_predicts_and_exports(slug, jpeg_folder, tmp_path):
    run = carry_out(slug, tmp_path / "run", tiny(slug, str(jpeg_folder)))
    assert len(run.result("train")["skipped"]) == 5
    page = (run.folder / "report.html").read_text()
    assert all(words in page for words in ("Confusion", "linear classifier on pixels", "Images that could not be read"))
    paper = paper_of(slug)
    rows = paper.verbs["predict"](run, str(jpeg_folder / "class0"), top=2)
    assert rows and "predictions.html" in {path.name for path in run.folder.iterdir()}
    assert paper.verbs["evaluate"](run)["top-1 %"] == pytest.approx(100 * run.result("evaluate")["top1"], abs=0.01)
    with torch.no_grad():
        assert Trained.of(run).objective.logits(torch.rand(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("slug", list(SHRINK))
def test_networks_have_the_published_sizes_and_names_are_suggested(slug):
    paper = paper_of(slug)
    for name, variant in paper.variants.items():
        if variant.parameters is not None:
            found = measuring.millions(variant.build)
            assert found == pytest.approx(variant.parameters, rel=1e-4, abs=6e-4), name
    with pytest.raises(InputError, match="no variant"):
        paper.recipes["released"](weights="x.pth", variant="nothing")


@pytest.mark.parametrize(("slug", "id"), [(slug, id) for slug, ids in COUNTED.items() for id in ids])
def test_counted_claims_hold(slug, id, tmp_path):
    claim = paper_of(slug).claims[id]
    assert verdict(claim, claim.measure(Bench(tmp_path, say=lambda _: None))) == "holds"


def test_claims_that_train_go_on_where_they_stopped(tmp_path, monkeypatch):
    said: list[str] = []
    bench = Bench(tmp_path, seeds=(0,), say=said.append)
    budget = measuring.Budget(images=64, test_images=50, epochs=2, batch=32)
    builds = {
        "a": lambda classes: torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, classes)
        )
    }
    shifts = {"dark": lambda images: images * 0}
    first = measuring.all_trained(bench, builds, budget, shifts)
    assert set(first["a"][0]) == {"top1", "milliseconds", "dark"}
    monkeypatch.setattr(measuring, "fit", None)  # a second measurement reads what the first one left
    assert measuring.all_trained(bench, builds, budget, shifts) == first
    found = measuring.lead(
        bench, {"a": [{"top1": 90.0, "milliseconds": 1}], "b": [{"top1": 88.0, "milliseconds": 1}]}, "a", "b", ""
    )
    assert found.value == 2.0 and list(found.per_seed) == [2.0]


def test_features_are_compared_of_the_networks_that_were_trained(tmp_path, monkeypatch):
    from paperworks.papers import t2t_vit

    monkeypatch.setattr(t2t_vit, "STEPS", 2)
    monkeypatch.setattr(t2t_vit, "MANY", 64)
    monkeypatch.setattr(t2t_vit, "LOOKED_AT", 8)
    bench = Bench(tmp_path, seeds=(0,), say=lambda _: None)
    first = t2t_vit.redundancy(bench)
    alike, dead = first.numbers["similarity"], first.numbers["dead"]
    assert 0 < alike["deep and narrow"][0] < 1 and dead["shallow and wide"] == [0.0]
    assert first.per_seed[0] == alike["deep and narrow"][0] / alike["shallow and wide"][0]
    assert t2t_vit.redundancy(bench).per_seed == first.per_seed
    claim = t2t_vit.paper.claims["c11"]
    assert verdict(claim, first) == ("direction holds" if first.per_seed[0] < 1 else "direction does not hold")
