"""NASNet's recipes: published settings, shrunken runs of them, and the trained claims at toy size."""

from dataclasses import replace
from pathlib import Path

import pytest

from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run
from paperworks.papers import _nasnet_search as searching
from paperworks.papers import nasnet
from paperworks.papers._recognition_claims import Budget
from paperworks.papers.nasnet import paper


def config_of(recipe: str, **arguments):
    return paper.recipes[recipe](**arguments).config


def test_the_cifar_training_is_the_published_one():
    config = config_of("paper")
    optimizer = config.training.optimizers["main"]
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.025, 0.9, 5e-4)
    assert (config.training.batch_size, config.training.steps, config.training.clip) == (32, 600 * (50_000 // 32), 5.0)
    assert config.network.name == "nasnet_a_cifar_6_768" and config.network.arguments["drop_path_rate"] == 0.4
    assert config.augment.kind == "shift" and config.augment.cutout == 0 and config.augment.mixup == 0
    larger = config_of("paper", variant="nasnet_a_cifar_7_2304", cutout=True)
    assert larger.network.name == "nasnet_a_cifar_7_2304" and larger.augment.cutout == 16
    with pytest.raises(InputError, match="no variant 'nasnetalarge'"):
        config_of("paper", variant="nasnetalarge")


@pytest.mark.parametrize(("size", "pixels", "keep", "decay"), [("large", 331, 0.7, 5e-5), ("mobile", 224, 1.0, 4e-5)])
def test_the_imagenet_training_is_the_published_one(size, pixels, keep, decay):
    config = config_of("imagenet", size=size)
    optimizer = config.training.optimizers["main"]
    assert (optimizer.name, optimizer.eps, optimizer.weight_decay) == ("rmsprop", 1.0, decay)
    assert optimizer.lr == pytest.approx(0.015 * 100 if size == "large" else 0.04 * 50)
    assert optimizer.schedule.gamma == 0.97 and optimizer.schedule.milestones[0] == pytest.approx(2.4 / 250)
    assert config.image_size == pixels and config.network.arguments["drop_path_rate"] == pytest.approx(1 - keep)
    augment = config.augment  # Inception's crops of any size and shape, mirrored, and nothing else
    assert (augment.kind, augment.magnitude, augment.erase, augment.mixup, augment.cutmix) == ("imagenet", 0, 0, 0, 0)
    assert augment.smoothing == 0.1


def test_the_search_is_the_published_one():
    config = config_of("search-paper")
    assert (config.evaluations, config.top, config.blocks, config.controller.lr) == (20_000, 250, 5, 3.5e-4)
    assert (config.num_cells, config.reductions, config.filters, config.stem_stride) == (6, 2, 32, 1)
    assert config.image_size == 32 and config.child.steps == 20 * (45_000 // 32) and config.held_out == 0.1
    assert config.longer.steps > config.child.steps


@pytest.mark.parametrize("recipe", ["paper", "imagenet"])
def test_the_published_training_runs(recipe, jpeg_folder, tmp_path):
    more = {"cutout": True} if recipe == "paper" else {"size": "mobile"}
    given = paper.recipes[recipe](data=str(jpeg_folder), **more)
    config = given.config
    arguments = {**config.network.arguments, "num_cells": 3, "filters": 4}
    if recipe == "imagenet":  # a side of 96 pixels is 6 where the auxiliary head reads
        arguments |= {"stem_size": 4, "auxiliary_map": 6}
        config = replace(config, image_size=96)
    training = replace(config.training, steps=2, batch_size=8, micro_batch=4, workers=0, eval_every=1, checkpoint_every=1)
    config = replace(config, network=replace(config.network, arguments=arguments), training=training, watch=4)
    run = Run.open(tmp_path / "run", slug="nasnet", recipe=recipe, arguments={}, config=config, command="paperworks run nasnet")
    run.execute(Recipe(config, [stage for stage in given.stages if stage.name == "train"]), say=lambda _: None)
    assert run.result("train")["classes"] == 3


# --- claims -----------------------------------------------------------------------------------------------------------


def bench(folder: Path) -> Bench:
    return Bench(folder, seeds=(0,), say=lambda _: None)


def test_dropping_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(nasnet, "BUDGET", Budget(images=48, test_images=40, epochs=1, batch=16))
    measured = paper.claims["c13"].measure(bench(tmp_path))
    assert set(measured.numbers["accuracy"]) == {"none", "constant", "scheduled"} and len(measured.per_seed) == 1
    ahead = {"none": 50.0, "constant": 51.0, "scheduled": 51.0}
    assert paper.claims["c13"].rule(replace(measured, numbers={"accuracy": ahead}))
    assert not paper.claims["c13"].rule(replace(measured, numbers={"accuracy": {**ahead, "constant": 52.0}}))


def test_the_controller_is_compared_with_random_search(tmp_path, monkeypatch):
    tiny = {"evaluations": 4, "batch": 2, "image_size": 8, "filters": 2, "held_out": 0.02, "child": searching.short(2, 8)}
    monkeypatch.setattr(nasnet, "SearchConfig", lambda **given: searching.SearchConfig(**{**given, **tiny}))
    measured = paper.claims["search"].measure(bench(tmp_path))
    assert len(measured.per_seed) == 1 and -100 <= measured.value <= 100
    assert set(measured.numbers["0"]["last"]) == set(measured.numbers["0"]["best"]) == {"ppo", "random"}
