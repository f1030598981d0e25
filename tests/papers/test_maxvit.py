"""MaxViT's recipes: published settings, small runs of the generator, of fine-tuning and of ratings, and claims at toy size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paperworks.analysis.counting import count_parameters
from paperworks.backbones.maxvit import ENTRIES, MaxViT
from paperworks.errors import InputError
from paperworks.generators.maxvit_gan import MaxViTGenerator
from paperworks.paper import Bench, Measured, Recipe, Run, verdict
from paperworks.papers import _maxvit_claims as claims
from paperworks.papers import _maxvit_gan as gan
from paperworks.papers._classification import Trained
from paperworks.papers._recognition_claims import Budget
from paperworks.papers.maxvit import Rated, paper
from paperworks.training import ScheduleConfig
from tests.data.making import picture


def test_a_generator_is_trained_judged_and_sampled(jpeg_folder, tmp_path):
    given = paper.recipes["generate"](data=str(jpeg_folder), size=16, steps=3)
    small = gan.GeneratorConfig((16, 8, 8), latent=4, tokens=2, token_dim=8, head_dim=8)
    config = replace(given.config, generator=small, training=replace(given.config.training, batch_size=4), images=6)
    run = Run.open(tmp_path / "run", slug="maxvit", recipe="generate", arguments={}, config=config, command="paperworks")
    run.execute(Recipe(config, given.stages), say=lambda _: None)
    assert "to our specification" in (run.folder / "report.html").read_text()
    assert len(run.result("train")["skipped"]) == 5
    made = paper.verbs["sample"](run, count=7)
    assert made["images"] == 7 and (run.folder / "samples.png").is_file()


def test_generators_have_the_size_that_is_asked_for():
    assert paper.recipes["generate"](data="photos", size=64).config.generator.dims == (192, 192, 128, 96, 64)
    with pytest.raises(InputError, match="size=48"):
        paper.recipes["generate"](size=48)


def test_compared_networks_have_equal_parameters():
    with torch.device("meta"):
        both, twice = (count_parameters(claims.network(axes, 10)) for axes in (("block", "grid"), ("grid", "grid")))
        alone = count_parameters(claims.attention_only(10))
        config = gan.GenerateConfig()
        ours, theirs = count_parameters(gan.build_generator(config)), count_parameters(claims.convolutional(config))
    assert both == twice and alone == pytest.approx(both, rel=0.02) and theirs == pytest.approx(ours, rel=0.02)


# --- published settings -----------------------------------------------------------------------------------------------


def published(**arguments):
    return paper.recipes["paper"](**arguments).config


def test_training_from_scratch_is_the_published_one():
    config = published(variant="maxvit_small")
    optimizer = config.training.optimizers["main"]
    assert config.training.steps == round(300 * 1_281_167 / 4096) and config.training.batch_size == 4096
    assert (optimizer.lr, optimizer.weight_decay, optimizer.schedule.warmup) == (3e-3, 0.05, 10_000)
    assert optimizer.lr * optimizer.schedule.end == pytest.approx(1e-5)
    augment = config.augment
    assert (augment.magnitude, augment.deviation, augment.probability, augment.erase) == (15.0, 0.0, 1.0, 0.0)
    assert (augment.mixup, augment.cutmix, augment.smoothing) == (0.8, 0.0, 0.1)
    assert config.network.arguments["drop_path_rate"] == pytest.approx(0.3) and config.image_size == 224
    with pytest.raises(InputError, match="from random weights"):
        published(variant="maxvit_small", weights="x.safetensors")


@pytest.mark.parametrize("variant", ["maxvit_base_21k", "maxvit_large_21k", "maxvit_xlarge", "maxvit_xlarge_tf_224"])
def test_pretraining_is_the_published_one(variant):
    config = published(variant=variant, data="in21k")
    optimizer = config.training.optimizers["main"]
    assert optimizer.lr == 1e-3 and 0.01 <= optimizer.weight_decay <= 0.1
    assert config.training.steps == round(90 * 14_197_122 / 4096) and config.training.batch_size == 4096
    assert ENTRIES[variant].pretrained_cfg["num_classes"] == 21843
    with pytest.raises(InputError, match="name its folder"):
        published(variant=variant)


@pytest.mark.parametrize(
    ("variant", "start", "name", "window"),
    [
        ("maxvit_tiny_tf_384", "imagenet", "maxvit_tiny", 12),
        ("maxvit_large_tf_512", "imagenet", "maxvit_large", 16),
        ("maxvit_base_tf_512", "imagenet21k", "maxvit_base_21k", 16),
        ("maxvit_xlarge_tf_384", "imagenet", "maxvit_xlarge", 12),
    ],
)
def test_fine_tuning_normalises_images_as_the_start_did(variant, start, name, window):
    config = published(variant=variant, weights="start.safetensors", start=start)
    assert (config.network.name, config.network.weights) == (name, "start.safetensors")
    assert config.network.arguments["window"] == window and config.image_size == 32 * window
    cfg = ENTRIES[name].pretrained_cfg
    assert cfg["mean"] == ((0.5,) * 3 if cfg["num_classes"] == 21843 else (0.485, 0.456, 0.406))
    optimizer = config.training.optimizers["main"]
    assert (optimizer.lr, optimizer.weight_decay, optimizer.schedule.kind) == (5e-5, 1e-8, "constant")
    assert (config.training.batch_size, config.training.steps) == (512, round(30 * 1_281_167 / 512))


def test_fine_tuning_needs_weights():
    with pytest.raises(InputError, match=r"maxvit_tiny_tf_384 is fine-tuned from weights for 224 pixels.*--weights"):
        published(variant="maxvit_tiny_tf_384")
    with pytest.raises(InputError, match="no tiny network was pre-trained on ImageNet-21K"):
        published(variant="maxvit_tiny_tf_384", weights="x", start="imagenet21k")


TINY = {"dims": [8, 8], "depths": [1, 1], "stem_width": 8, "head_dim": 8}


def tiny_weights(folder: Path, classes: int = 1000) -> str:
    torch.manual_seed(0)
    file = folder / "weights.safetensors"
    save_file(MaxViT(**TINY, num_classes=classes).state_dict(), file)
    return str(file)


def carry_out(folder: Path, recipe: Recipe) -> Run:
    run = Run.open(folder, slug="maxvit", recipe="paper", arguments={}, config=recipe.config, command="paperworks run maxvit")
    run.execute(recipe, say=lambda _: None)
    return run


@pytest.mark.parametrize("variant", ["maxvit_tiny", "maxvit_tiny_tf_384"])
def test_the_published_training_runs(variant, jpeg_folder, tmp_path):
    weights = tiny_weights(tmp_path) if "384" in variant else ""
    given = paper.recipes["paper"](variant=variant, data=str(jpeg_folder), weights=weights)
    config = given.config
    network = replace(config.network, arguments={**config.network.arguments, **TINY})
    # two steps have no room for 10,000 of warm-up
    optimizers = {"main": replace(config.training.optimizers["main"], schedule=ScheduleConfig("constant"))}
    few = {"steps": 2, "batch_size": 8, "micro_batch": 4, "workers": 0, "eval_every": 1, "checkpoint_every": 1}
    training = replace(config.training, optimizers=optimizers, **few)
    config = replace(config, network=network, training=training, image_size=64, watch=4)
    run = carry_out(tmp_path / "run", Recipe(config, [stage for stage in given.stages if stage.name == "train"]))
    trained = Trained.of(run).objective
    table = trained.model.stages[0].get_submodule("blocks.0").attn_block.attn.rel_pos.relative_position_bias_table
    assert table.shape[1] == (23 if weights else 13)
    assert float(trained.normalise.mean[0, 0, 0, 0]) == pytest.approx(0.485)


# --- ratings ----------------------------------------------------------------------------------------------------------


def rated_folder(folder: Path, images: int = 24, heading: str = "image,1,2,3,4,5,6,7,8,9,10") -> Path:
    """Pictures of which the later ones are liked better."""
    folder.mkdir()
    lines = [heading]
    for number in range(images):
        picture(number).save(folder / f"{number}.png")
        counts = [0] * 10
        counts[number * 9 // images], counts[number * 9 // images + 1] = 3, 5
        lines.append(",".join([f"{number}.png", *map(str, counts)]))
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_ratings_are_learned_and_predicted(tmp_path):
    folder = rated_folder(tmp_path / "rated")
    given = paper.recipes["aesthetics"](data=str(folder), weights=tiny_weights(tmp_path), size=64, steps=3)
    config = given.config
    assert config.network.arguments == {"window": 2}
    network = replace(config.network, arguments={**TINY, **config.network.arguments})
    run = carry_out(tmp_path / "run", Recipe(replace(config, network=network), given.stages))
    assert run.result("train")["images"] == 22 and run.result("evaluate")["images"] == 2
    assert 0 < run.result("evaluate")["distance"] < 1
    rows = paper.verbs["predict"](run, str(folder / "3.png"), top=10, page=False)
    assert len(rows) == 1 and {rows[0][f"{place}."].split()[0] for place in range(1, 11)} == {str(n) for n in range(1, 11)}


def test_ratings_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Rated(str(tmp_path), "train")
    folder = rated_folder(tmp_path / "few", images=19)
    with pytest.raises(InputError, match="rates 19 images"):
        Rated(str(folder), "train")
    folder = rated_folder(tmp_path / "rated")
    table = (folder / "ratings.csv").read_text()
    for line in ("x.png,1,2", "x.png" + ",0" * 10, "x.png" + ",-1" * 10, "x.png" + ",many" * 10):
        (folder / "ratings.csv").write_text(table + line + "\n")
        with pytest.raises(InputError, match="line 26: expected an image's name and 10 counts"):
            Rated(str(folder), "train")
    (folder / "ratings.csv").write_text(table)
    (folder / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png, which ratings\.csv lists, cannot be read"):
        Rated(str(folder), "train")[0]
    with pytest.raises(InputError, match="size=100"):
        paper.recipes["aesthetics"](data="x", weights="y", size=100)


# --- the generator of published size ----------------------------------------------------------------------------------


def test_the_published_generator_is_the_variant_and_has_the_printed_size():
    config = paper.recipes["generate-paper"]().config
    assert (config.image_size, config.channels, config.training.batch_size, config.judged) == (128, 3, 256, 10_000)
    assert config.game.r1_every == 1 and set(config.game.augment) == {"colour", "translation", "cutout"}
    with torch.device("meta"):
        counts = {count_parameters(model) for model in (gan.build_generator(config), MaxViTGenerator())}
        counts.add(count_parameters(paper.variants["maxvit_gan_128"].build()))
        gan.build_discriminator(config)
    [count] = counts
    assert count / 1e6 == pytest.approx(18.6, abs=0.05)


# --- claims -----------------------------------------------------------------------------------------------------------


def test_the_better_of_the_two_alone_is_taken_for_every_seed(tmp_path, monkeypatch):
    tops = {"block and grid": (90.0, 85.0), "block twice": (91.0, 70.0), "grid twice": (60.0, 84.0)}
    found = {name: [{"top1": value, "milliseconds": 1.0} for value in values] for name, values in tops.items()}
    monkeypatch.setattr(claims, "all_trained", lambda *_: found)
    measured = paper.claims["c4"].measure(Bench(tmp_path, seeds=(0, 1)))
    assert list(measured.per_seed) == [-1.0, 1.0]
    assert verdict(paper.claims["c4"], measured) == "direction does not hold"


@pytest.mark.slow
def test_trained_claims_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BUDGET", Budget(images=48, test_images=40, epochs=1, batch=16))
    bench = Bench(tmp_path, seeds=(0,), say=lambda _: None)
    for id in ("c4", "c6"):
        measured = paper.claims[id].measure(bench)
        assert -100 <= measured.value <= 100 and len(measured.per_seed) == 1 and measured.detail
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention only-0",
        "block and grid-0",
        "block twice-0",
        "grid twice-0",
    ]


def test_every_stage_has_to_see_everything():
    claim = paper.claims["c3"]
    numbers = {"block alone": 16, "grid alone": 16} | {f"share at {side}x{side}, two blocks": 1.0 for side in claims.SIDES}
    assert claim.rule(Measured(256, "any", numbers=numbers))
    assert not claim.rule(Measured(256, "any", numbers={**numbers, "share at 56x56, two blocks": 0.99}))
    assert not claim.rule(Measured(256, "any", numbers={**numbers, "grid alone": 32}))


@pytest.mark.slow
def test_generators_are_compared(tmp_path):
    for number in range(60):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(number, (32, 32)).save(tmp_path / "images" / f"{number}.png")

    def recipe(**given):
        made = paper.recipes["generate"](size=16, steps=2, **given)
        small = gan.GeneratorConfig((16, 8, 8), latent=4, tokens=2, token_dim=8, head_dim=8)
        training = replace(made.config.training, batch_size=4)
        return replace(made, config=replace(made.config, generator=small, training=training, images=8))

    bench = Bench(tmp_path / "bench", seeds=(0,), data=str(tmp_path / "images"), say=lambda _: None)
    measured = claims.generation(bench, recipe)
    assert measured.value > 0 and set(measured.numbers["distances"]) == {"MaxViT", "convolution"}
    again = claims.generation(bench, recipe)  # reads what the first one left
    assert again.per_seed == measured.per_seed
