"""RD-prune through the vocabulary: recipes as runs, what runs are good for, and the arithmetic behind the claims."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch

from paperworks.backbones.registry import create
from paperworks.compression.iterative import CurveConfig, IterativeConfig, prune_iteratively
from paperworks.compression.sparse_file import load_sparse
from paperworks.compression.sparsity import sparsity
from paperworks.config import override
from paperworks.data import Transformed, open_images
from paperworks.data.transforms import eval_crop
from paperworks.errors import InputError
from paperworks.objectives.classify import Classify
from paperworks.paper import Recipe, Run
from paperworks.papers import _pruning_claims as claims
from paperworks.papers import _pruning_stages as stages
from paperworks.papers._classification import Trained
from paperworks.papers.inceptionnext import paper as inceptionnext
from paperworks.papers.layer_adaptive_pruning import paper
from paperworks.training import TrainConfig

TINY = [
    "data=digits",
    "network.image_size=8",
    "training.steps=30",
    "training.batch_size=32",
    "curves.images=16",
    "curves.levels=11",
    "curves.every=1",
    "iterative.curves.images=16",
    "iterative.curves.levels=11",
    "iterative.curves.every=2",
    "iterative.target=0.7",
    "iterative.finetune.steps=5",
    "iterative.finetune.batch_size=32",
    "sparsities=[0.3,0.6]",
    "test_images=100",
]


def start(folder) -> tuple[Run, Recipe]:
    laptop = paper.recipes["laptop"]()
    network = dataclasses.replace(laptop.config.network, arguments={"depth": 8, "width": 4})
    config = override(dataclasses.replace(laptop.config, network=network), TINY)
    run = Run.open(folder, slug=paper.slug, recipe="laptop", arguments={}, config=config, command="paperworks run ...")
    return run, Recipe(config, laptop.stages)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    run, recipe = start(tmp_path_factory.mktemp("runs") / "tiny")
    run.execute(recipe, say=lambda _: None)
    return run


def test_a_run_leaves_a_pruned_network_and_a_report(finished):
    made = finished.result("prune")
    assert made["sparsity"] >= 0.7 and [step["number"] for step in made["iterations"]] == [1, 2, 3]
    assert made["bytes"] < made["dense_bytes"]
    html = (finished.folder / "report.html").read_text()
    assert "add up" in html and "layer1.0.conv1" in html
    compared = finished.result("compare")
    assert set(compared["schemes"]) == {"rd", "lamp", "erk", "uniform", "unif+", "global"}
    assert compared["additivity"][0]["mean"]["joint"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["compare", "prune_iteratively"])
def test_a_killed_run_goes_on(tmp_path, monkeypatch, finished, stage):
    run, recipe = start(tmp_path / "run")
    calls = []

    def killed(*args, **kwargs):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, stage, killed)
    with pytest.raises(KeyboardInterrupt):
        run.execute(recipe, say=lambda _: None)
    monkeypatch.undo()
    again, recipe = start(tmp_path / "run")
    again.execute(recipe, say=lambda _: None)
    assert calls and again.finished
    ours, theirs = load_sparse(again.folder / stages.PRUNED), load_sparse(finished.folder / stages.PRUNED)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_verbs(finished, tmp_path):
    dense, pruned = paper.verbs["evaluate"](finished)
    assert dense["removed"] == 0 and pruned["removed"] >= 0.7 and pruned["multiply-adds left"] < 1
    rows = paper.verbs["predict"](finished, "digits", top=2)
    assert len(rows) == 1797 and rows[0]["classes"].count("%") == 2
    plain = paper.verbs["export"](finished, to="safetensors", out=tmp_path / "plain.safetensors")
    small = paper.verbs["export"](finished, to="sparse", half=True)
    assert small["bytes"] < plain["bytes"]
    with pytest.raises(InputError, match="no export to 'onx'; did you mean 'onnx'"):
        paper.verbs["export"](finished, to="onx")


@pytest.mark.slow
def test_onnx_gives_the_same_logits(finished, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    made = paper.verbs["export"](finished, to="onnx", out=tmp_path / "pruned.onnx")
    images = torch.rand(5, 1, 8, 8)
    problem = stages.Problem.open(finished.config(stages.PruningConfig))
    expected = stages.pruned_network(finished, problem)(problem.normalised(images))
    session = runtime.InferenceSession(made["file"])
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_photos_without_labels_compare_with_the_dense_network(tmp_path):
    recipe = paper.build_recipe(
        "photos",
        {"size": 64},
        [
            "crops=8",
            "test_images=6",
            "curves.images=2",
            "curves.levels=3",
            "curves.every=1",
            "sparsities=[0.2]",
            'schemes=["rd","uniform"]',
        ],
    )
    run = Run.create(tmp_path / "run", slug=paper.slug, recipe="photos", arguments={}, config=recipe.config, command="-")
    run.execute(recipe, say=lambda _: None)
    compared = run.result("compare")
    assert compared["dense"]["agreement"] == 100 and "accuracy" not in compared["dense"]
    assert run.result("prune")["sparsity"] >= 0.3
    assert "agreement" in (run.folder / "report.html").read_text()


def test_recipes_describe_themselves():
    for name in ("laptop", "photos"):
        assert paper.build_recipe(name, {}).config.data in ("default", "photos")
    published = paper.build_recipe("paper", {"network": "vgg16_cifar"}).config
    assert published.iterative.target == 0.9885 and published.iterative.finetune.steps == 40_000
    assert published.training.optimizers["main"].lr == 3e-4 and published.curves.measure == "worst"
    assert paper.build_recipe("paper", {"network": "resnet50"}).config.curves.images == 256
    with pytest.raises(InputError, match="no published setting"):
        paper.build_recipe("paper", {"network": "resnet51"})


@pytest.mark.parametrize("name", sorted(paper.variants))
def test_variants_have_the_printed_size(name):
    variant = paper.variants[name]
    with torch.device("meta"):
        model = variant.build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(variant.parameters, rel=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (['schemes=["rd","lmap"]'], "no 'lmap'; did you mean 'lamp'"),
        (["sparsities=[0.5,1.0]"], "1.0 is not a share"),
        (['schemes=["lamp"]'], "at least the scheme rd"),
        (["network.name=resnet21_cifar"], "resnet21_cifar"),
        (["data=photos"], "no labels"),
    ],
)
def test_bad_settings_are_named_before_anything_is_trained(changes, message):
    config = paper.build_recipe("laptop", {}, changes).config
    with pytest.raises(InputError, match=message):
        stages.Problem.open(config).network()


# --- networks of the library and of timm, end to end -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inceptionnext", "resnet18 of timm"])
def test_other_networks_are_pruned_and_fine_tuned(tmp_path, name):
    torch.manual_seed(0)
    if name == "inceptionnext":
        network = create("inceptionnext_tiny", depths=(1, 1, 1, 1), dims=(16, 24, 32, 40), in_chans=1, num_classes=10)
    else:
        network = timm.create_model("resnet18", in_chans=1, num_classes=10)
    source = open_images("default", split="train").subset(range(0, 4000, 20))
    data = Transformed(source, eval_crop(32), seed=0)
    images = torch.stack([data[i]["image"] for i in range(8)]).float() / 255
    config = IterativeConfig(
        target=0.75,
        rate=0.5 if name == "inceptionnext" else 1.0,
        curves=CurveConfig(measure="mean", levels=5),
        finetune=TrainConfig(steps=4, batch_size=16, precision="32"),
    )
    objective = Classify(network, mean=(0.0,), std=(1.0,))
    steps = prune_iteratively(
        objective, network, data, images, config, tmp_path, evaluate=lambda _: {"done": 1.0}, say=lambda _: None
    )
    assert len(steps) == (2 if name == "inceptionnext" else 1) and sparsity(network) >= 0.75 and 0 < steps[-1].flops_left < 1
    with torch.no_grad():
        assert torch.isfinite(network(images)).all()


def test_the_network_of_a_classification_run_is_pruned_as_it_is(tmp_path):
    laptop = inceptionnext.recipes["laptop"]()
    changes = ["network.arguments.depths=[1,1,1,1]", "network.arguments.dims=[8,12,16,20]", "training.steps=12"]
    config = override(laptop.config, [*changes, "training.batch_size=32", "training.eval_every=12", "watch=50"])
    trained = Run.open(tmp_path / "dense", slug="inceptionnext", recipe="laptop", arguments={}, config=config, command="")
    training = [stage for stage in laptop.stages if stage.name == "train"]
    trained.execute(Recipe(config, training), say=lambda _: None)
    recipe = paper.build_recipe("trained", {"run": tmp_path / "dense", "steps": 4}, ["curves.images=8", "curves.levels=5"])
    small = ["curves.every=1", "iterative.curves.images=8", "iterative.curves.levels=5", "sparsities=[0.5]", "test_images=100"]
    recipe = Recipe(override(recipe.config, small), recipe.stages)
    run = Run.open(tmp_path / "run", slug=paper.slug, recipe="trained", arguments={}, config=recipe.config, command="")
    run.execute(recipe, say=lambda _: None)
    problem = stages.Problem.open(recipe.config)
    images = next(problem.test_batches())
    dense = Trained.of(trained).objective.model
    with torch.no_grad():
        assert torch.allclose(problem.network()(images), dense(images), atol=1e-5)
        assert torch.allclose(dense(images), Trained.of(trained).objective.model(images))
    pruned = problem.network()
    pruned.load_state_dict(load_sparse(run.folder / stages.PRUNED))
    assert sparsity(pruned) >= 0.79
    with pytest.raises(InputError, match="without a trained classifier"):
        paper.build_recipe("trained", {"run": tmp_path / "run"})


def test_a_folder_with_broken_pictures_works_and_lists_them(jpeg_folder, tmp_path):
    _, recipe = start(tmp_path / "unused")
    config = override(
        recipe.config, [f"data={jpeg_folder}", "network.image_size=16", "training.steps=6", "iterative.target=0.4"]
    )
    run = Run.open(tmp_path / "run", slug=paper.slug, recipe="laptop", arguments={}, config=config, command="")
    run.execute(Recipe(config, recipe.stages), say=lambda _: None)
    assert len(run.result("train")["skipped"]) == 5
    assert "Images left out" in (run.folder / "report.html").read_text()


# --- claims ------------------------------------------------------------------------------------------------------------------


def comparison(**accuracy) -> dict:
    schemes = {name: {s: {"accuracy": a} for s, a in zip(("0.3", "0.6", "0.8"), values)} for name, values in accuracy.items()}
    return {"dense": {"accuracy": 90.0}, "classes": 10, "schemes": schemes}


def test_the_knee_is_where_half_of_the_accuracy_is_lost():
    others = {"global": (85, 40, 10), "rd-worst": (0, 65, 0)}
    compared = comparison(rd=(89, 70, 12), lamp=(88, 60, 10), erk=(87, 50, 10), uniform=(80, 20, 10), **others)
    assert claims.knee(compared) == "0.6"
    assert claims.margin_at_knee(compared) == (10, "lamp", "0.6")
    assert claims.margin_at_knee(compared, "rd-worst")[0] == 5


def test_the_solver_claims_measure_something():
    worst, solved, overspent = claims.largest_deviation(60)
    assert worst < 1e-9 and solved > 20 and overspent == 0
    exponents = claims.scaling((32, 64), (2000, 4000), repeats=1)
    assert exponents["additions in layers"] == pytest.approx(1, abs=0.05)
    assert exponents["additions in cells"] == pytest.approx(1, abs=0.05)
    assert claims.fitted_exponent((1, 2, 4), (3, 12, 48)) == pytest.approx(2)


def test_claims_cover_what_can_be_measured_here():
    assert {"c1", "c2", "c3", "c4", "c5", "c6"} <= set(paper.claims)
    assert {claim.text.id for claim in paper.claims.values()} <= {text.id for text in paper.card.claims}
    assert json.dumps(sorted(paper.claims))
