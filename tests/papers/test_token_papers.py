"""Papers of a tokenizer and a generator at toy size: stages, page, verbs, resuming, broken pictures, counted claims."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paperworks.data import open_images
from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers import _generation_report, _titok_claims, _token_report, vqgan_lc
from paperworks.papers._generation import framed, framed_at_random
from paperworks.papers._recognition_claims import millions
from paperworks.papers._token_recipe import token_images
from paperworks.training import TrainConfig
from paperworks.training.progress import TrainingProgress
from tests.papers.test_generation import Mean

SHRINK = {
    "vit-vqgan": {
        "tokenizer": {"patch_size": 8, "vocab_size": 16, "code_dim": 4},
        "generator": {"dim": 16, "depth": 1, "heads": 2},
    },
    "vqgan-lc": {
        "tokenizer": {"vocab_size": 40, "ch": 8, "z_channels": 8, "ch_mult": (1, 2, 2), "groups": 4},
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


def tiny(slug: str, data: str = "default", **arguments):
    config = paper_of(slug).recipes["laptop"](data=data, **arguments).config
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
    """A last map of 320 channels, as EfficientNet-Lite0 has it."""

    def feature_maps(self, images):
        grey = torch.nn.functional.interpolate(images.mean(1, keepdim=True), (128, 128))
        channels = torch.nn.functional.pixel_unshuffle(grey, 16)
        return [torch.cat((channels, channels[:, :64]), 1)]


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


class Crash(Exception):
    """Stands for whatever stops a process in the middle of a stage."""


@pytest.fixture
def progress(monkeypatch):
    """(label, step) of every training step that was done; a step in `stops` is the last one of its process."""
    seen, stops, advance = [], set(), TrainingProgress.advance

    def watched(self, done):
        advance(self, done)
        seen.append((self.label, done))
        if (self.label, done) in stops:
            stops.remove((self.label, done))
            raise Crash

    monkeypatch.setattr(TrainingProgress, "advance", watched)
    return seen, stops


MOST = [slug if slug == "titok" else pytest.param(slug, marks=pytest.mark.slow) for slug in SHRINK]


@pytest.mark.parametrize("slug", MOST)
def test_a_folder_with_broken_pictures_works_and_stages_stopped_inside_end_with_the_same_weights(
    slug, jpeg_folder, progress, tmp_path
):
    config = tiny(slug, str(jpeg_folder))
    whole = carry_out(slug, tmp_path / "whole", config)
    assert len(whole.result("tokenizer")["skipped"]) == 5
    assert "Images left out" in (whole.folder / "report.html").read_text()
    seen, stops = progress
    stages = ("tokenizer", "generator")
    stops.update((stage, 3) for stage in stages)
    for stage in stages:  # each is stopped past its checkpoint of step 2, before the one of its end
        with pytest.raises(Crash):
            carry_out(slug, tmp_path / "stopped", config)
        assert seen[-1] == (stage, 3) and not (tmp_path / "stopped" / stage / "model").exists()
        seen.clear()
    stopped = carry_out(slug, tmp_path / "stopped", config)
    assert seen[:2] == [("generator", 3), ("generator", 4)], "it went on from the checkpoint"
    for stage in stages:
        ours, theirs = (run.folder / stage / "model" / "model.safetensors" for run in (whole, stopped))
        assert ours.read_bytes() == theirs.read_bytes(), stage


def test_averaged_tokenizers_are_kept_and_numbers_do_not_depend_on_how_many_images_are_in_memory(monkeypatch, tmp_path):
    config = tiny("titok")
    names = ("proxy", "latents", "tokenizer")
    config = replace(
        config,
        **{f"{name}_training": replace(getattr(config, f"{name}_training"), ema=0.9, ema_warmup=False) for name in names},
    )
    run = carry_out("titok", tmp_path / "run", config)
    for name in names:
        saved = load_file(run.folder / name / "model" / "model.safetensors")
        (last,) = (run.folder / name / "checkpoints").glob("step-*4")
        averaged, weights = (load_file(last / file) for file in ("ema.safetensors", "weights.safetensors"))
        moved = "decoder.conv_in.weight" if name == "proxy" else "decoder.mask_token"
        assert torch.equal(saved[moved], averaged[f"tokenizer.{moved}"])
        assert not torch.equal(saved[moved], weights[f"tokenizer.{moved}"])
    monkeypatch.setattr(_token_report, "HELD", 130)
    numbers = paper_of("titok").verbs["evaluate"](run)
    for name in (TIMED, "judged by"):
        del numbers[name]
    assert numbers == pytest.approx({name: run.result("report")[name] for name in numbers}, rel=1e-3)


TIMED = "milliseconds per sampled image"


@pytest.mark.parametrize("decoder", ["pixels", "vae"])
def test_titok_trains_in_one_stage_and_as_a_vae(decoder, tmp_path):
    config = tiny("titok", decoder=decoder)
    assert config.judge.codebook_weight == 1
    run = carry_out("titok", tmp_path / "run", config)
    assert "not needed" in run.result("proxy") and not (run.folder / "latents").exists()
    numbers, verbs = run.result("report"), paper_of("titok").verbs
    page = (run.folder / "report.html").read_text()
    assert "What the tokenizer keeps" in page and "Without a grid" not in page
    again = verbs["evaluate"](run)
    assert {**again, TIMED: 0} == {**numbers, TIMED: 0}
    if decoder == "pixels":
        assert "Frechet distance of samples" in numbers and "codes in use" in numbers
        return
    assert numbers["reconstruction PSNR (dB)"] > 0 and "Frechet distance of reconstructions" in numbers
    assert "codes in use" not in numbers and "Samples, a column per class" not in page
    with pytest.raises(InputError, match="a tokenizer alone"):
        verbs["sample"](run)


def test_what_the_generator_is_trained_on_is_framed_as_the_configuration_says():
    source = open_images("photos", split="train", channels=3).subset(range(2))
    config = replace(tiny("titok", "photos"), copies=3, flip=True, crop_tokens=False)
    (images,) = token_images(config, source).split(6)
    plain = framed(source, 32)
    assert torch.equal(images, torch.cat((plain, plain.flip(-1), plain)))
    cropped = replace(config, flip=False, crop_tokens=True)
    expected = [framed_at_random(source, 32, cropped.seed + 1 + copy) for copy in range(3)]
    assert torch.equal(torch.cat(list(token_images(cropped, source).split(4))), torch.cat(expected))


def test_titoks_published_settings():
    recipes = paper_of("titok").recipes
    for name, size in (("paper", "s128"), ("later", "sl256"), ("later", "bl64_vae")):
        config = recipes[name](size=size).config
        assert config.flip and config.margin == 1 and not config.crop_tokens and config.sampling.images == 50_000
        assert config.judge.l2_weight == 0.25 and not config.judge.adversarial.adaptive
        assert config.tokenizer_training.ema == 0.999
    assert recipes["paper"]().config.judge.perceptual == "convnext"
    assert config.tokenizer.quantizer == "vae" and config.tokenizer.code_dim == 16 and not config.two_stages
    assert recipes["later"](size="sl256").config.tokenizer.encoder == (512, 8, 8)
    assert not recipes["laptop"]().config.flip and recipes["laptop"](data="some/folder").config.flip


def test_titoks_rules_look_at_everything_they_say(monkeypatch, tmp_path):
    claims, bench = paper_of("titok").claims, Bench(tmp_path)
    errors = {32: {"8": 4.0, "16": 2.0, "32": 1.0, "grid": 2.5}, 64: {"16": 2.0, "grid": 3.0}}

    def judged(id):
        return verdict(claims[id], claims[id].measure(bench))

    monkeypatch.setattr(_titok_claims, "_errors", lambda bench, size, seed: dict(errors[size.side]))
    assert judged("c10") == "direction holds" and judged("c11") == "direction holds"
    errors[32]["32"] = 2.1  # more codes, a larger error
    assert judged("c10") == "direction does not hold"
    errors[32] |= {"32": 1.0, "grid": 1.9}  # worse than the grid, so that 64 pixels save more
    assert judged("c10") == "direction does not hold" and judged("c11") == "direction holds"
    errors[64]["grid"] = 1.8
    assert judged("c11") == "direction does not hold"


@pytest.mark.slow
@pytest.mark.parametrize("size", [_titok_claims.SMALL, _titok_claims.LARGE], ids=lambda size: f"{size.side} pixels")
def test_both_sides_of_titoks_comparison_train_and_the_teacher_is_paid_for(size, monkeypatch, tmp_path):
    monkeypatch.setattr(_titok_claims, "STEPS", {"proxy": 1, "stage 1": 1, "stage 2": 1})
    trained, paid = {}, []
    train, cost = _titok_claims._train, _titok_claims._cost

    def watched(bench, learner, steps, size, name, seed):
        trained[name] = steps
        train(bench, learner, 1, size, name, seed)

    def counted(part, size):
        paid.append(type(part).__name__)
        return cost(part, size)

    monkeypatch.setattr(_titok_claims, "_train", watched)
    monkeypatch.setattr(_titok_claims, "_cost", counted)
    found = _titok_claims._errors(Bench(tmp_path), size, 0)
    assert set(found) == {"grid", *map(str, size.latents)} and all(0 < error < 1 for error in found.values())
    assert trained[f"grid-{size.side}px-0"] >= 1
    assert paid == ["MaskGITVQGAN", "TiTok", "Encoder", "TiTok", "MaskGITVQGAN"]
    assert _titok_claims._errors(Bench(tmp_path), size, 0) == found


@pytest.mark.parametrize("slug", list(SHRINK))
def test_variants_have_the_published_sizes(slug):
    for name, variant in paper_of(slug).variants.items():
        if variant.parameters is not None:
            assert millions(variant.build) == pytest.approx(variant.parameters, rel=1e-4), name


@pytest.mark.parametrize(("slug", "id", "expected"), [(s, i, e) for s, ids in COUNTED.items() for i, e in ids.items()])
def test_counted_claims(slug, id, expected, tmp_path):
    claim = paper_of(slug).claims[id]
    assert verdict(claim, claim.measure(Bench(tmp_path))) == expected
