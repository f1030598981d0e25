"""xAR end to end at toy size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paperworks.generators.draws import Draws
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.flow_matching import EntityFlow
from paperworks.paper import Bench, Measured, Recipe, Run, verdict
from paperworks.papers import _generation_report, _xar_claims, _xar_recipe, _xar_training_claims
from paperworks.papers._generation import framed, framed_at_random, open_split
from paperworks.papers._recognition_claims import millions
from paperworks.papers.xar import paper
from paperworks.training import TrainConfig
from paperworks.training.schedules import rate
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


@pytest.mark.parametrize(("entity", "latents"), [("cell", "mean"), ("scale", "sample")])
def test_a_run_leaves_a_page_and_samples(entity, latents, tmp_path):
    run = carry_out(tmp_path / "run", replace(tiny(entity=entity), latents=latents))
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


@pytest.mark.parametrize("id", ["c1", "c4", "c5", "c10"])
def test_counted_claims_hold(id, tmp_path):
    claim = paper.claims[id]
    with torch.random.fork_rng(devices=[]):
        assert verdict(claim, claim.measure(Bench(tmp_path))).endswith("holds")


def test_the_size_may_differ_by_a_million_from_the_paper_s():
    rule = paper.claims["c4"].rule
    assert rule(Measured(172.638, "")) and not rule(Measured(173.1, "")) and not rule(Measured(170.9, ""))


def test_operations_and_times_both_count(monkeypatch, tmp_path):
    claim = paper.claims["c7"]
    for seconds, expected in ((1.0, "direction holds"), (0.01, "direction does not hold")):
        monkeypatch.setattr(_xar_claims, "single_passes", lambda seconds=seconds: {"DiT-XL/2": seconds, "xAR-B": 0.1})
        found = claim.measure(Bench(tmp_path))
        assert found.value == pytest.approx(26.77, abs=0.01)
        assert found.numbers["by time"] == pytest.approx(seconds * 250 / (0.1 * 163))
        assert verdict(claim, found) == expected and f"DiT-XL/2 {1e3 * seconds:.0f} ms" in found.detail


def test_a_timed_pass_is_that_of_the_last_entity():
    torch.manual_seed(0)
    net = _xar_claims.NextEntityTransformer(3, 4, 2, 16, 1, 2, entity_size=2).eval()
    cache = _xar_claims._full_cache(net, 2)
    with _xar_claims.running_modules() as ran:
        assert _xar_claims.last_pass(net, cache).shape == (2, 4, 2)
    assert cache.used == 12 and any(module is net.pred for module, _ in ran)


class Aligned(EntityFlow):
    """Pulls in a foundation model's features."""

    def loss(self, batch, phase, ctx):
        torch.nn.Linear(8, 8)(batch["features"])
        return super().loss(batch, phase, ctx)


def test_a_teacher_or_an_interval_would_be_noticed(monkeypatch):
    found = _xar_claims.no_teacher(["steps"])
    assert found.value == 1 and found.numbers["read"] == ["label", "latents"]
    assert found.numbers["rows"] == [2] * 3 + [4] * 9
    found = _xar_claims.no_teacher(["steps"], Aligned)
    assert found.value == 0 and "reads latents and labels alone, runs one network" in found.detail
    assert _xar_claims.no_teacher(["interval"]).value == 0
    sample = _xar_claims.sample

    def now_and_then(model, labels, draws, *, steps, guidance):
        return sample(model, labels, draws, steps=steps, guidance=1.0)

    monkeypatch.setattr(_xar_claims, "sample", now_and_then)
    assert "is guided at every time" in _xar_claims.no_teacher([]).detail


def exposed(growth=(0.1, 0.3), base=(1.0, 1.0), another=1.2) -> Measured:
    noisy, clean = ({"base": [b], "growth": [g], "another": [another]} for b, g in zip(base, growth))
    return Measured(0.0, "", per_seed=[growth[0] / growth[1]], numbers={"noisy": noisy, "clean": clean})


def test_less_exposure_counts_from_a_fair_start_only():
    rule = paper.claims["c2"].rule
    assert rule(exposed()) and not rule(exposed(growth=(0.25, 0.3)))
    assert not rule(exposed(growth=(0.1, -0.3)))  # teacher forcing that does not suffer shows nothing
    assert not rule(exposed(base=(1.2, 1.0)))
    assert not rule(exposed(another=1.01))  # a network that does not look has nothing to lose


def test_trained_claims_report_what_they_compare(monkeypatch, tmp_path):
    part, sample = _xar_training_claims.latents, _xar_training_claims.sample
    monkeypatch.setattr(_xar_training_claims, "STEPS", 2)
    monkeypatch.setattr(_xar_training_claims, "latents", lambda split, limit: part(split, 64))

    def few(network, labels, draws, **options):
        return sample(network, labels[:20], Draws.seeded(0, 20), steps=2, guidance=1.0)

    monkeypatch.setattr(_xar_training_claims, "sample", few)
    said: list[str] = []
    bench = Bench(tmp_path, seeds=(0,), say=said.append)
    found = _xar_training_claims.exposure(bench)
    noisy, clean = found.numbers["noisy"], found.numbers["clean"]
    assert found.per_seed == [pytest.approx(noisy["growth"][0] / clean["growth"][0])]
    assert f"{noisy['base'][0]:.4f}" in found.detail and f"{clean['base'][0]:.4f}" in found.detail and len(said) == 2
    claim = paper.claims["c3"]
    found = claim.measure(bench)
    assert found.per_seed == [0.0] and verdict(claim, found) == "does not hold"
    assert set(found.numbers) >= {"distance", "untrained", "deviation"}


def test_the_judge_s_weights_reach_training():
    config = paper.recipes["laptop"]().config
    judge = replace(
        config.judge,
        l2_weight=0.5,
        l1_weight=0.25,
        perceptual_weight=2.0,
        codebook_weight=3.0,
        adversarial=Adversarial(loss="non_saturating", lecam=0.1),
    )
    made = _xar_recipe.autoencoder_objective(replace(config, judge=judge))
    assert (made.l2_weight, made.l1_weight, made.perceptual_weight, made.codebook_weight) == (0.5, 0.25, 2.0, 3.0)
    assert made.game == judge.adversarial and made.lecam is not None


def test_latents_are_encoded_batch_by_batch(monkeypatch):
    config = replace(tiny(), copies=2)
    source = open_split("default", "train", channels=1).subset(range(50))
    autoencoder = _xar_recipe.build_autoencoder(config).eval()
    monkeypatch.setattr(_xar_recipe, "ENCODED", 30)
    images = _xar_recipe.latent_images(config, source)
    made = _xar_recipe.encoded(config, autoencoder, images)
    whole = torch.cat([framed_at_random(source, 32, config.seed + 1 + copy) for copy in range(2)])
    assert set(made) == {"latents", "label"} and made["label"].tolist() == source.labels.repeat(2).tolist()
    assert torch.allclose(made["latents"], autoencoder.encode_latents(whole), atol=1e-5)
    both = _xar_recipe.encoded(replace(config, latents="sample"), autoencoder, images)
    assert torch.allclose(both["deviation"], autoencoder.encode_moments(whole)[1], atol=1e-5)


def test_uncropped_copies_are_the_centre_and_its_mirror_image():
    source = open_split("default", "train", channels=1).subset(range(6))
    config = replace(tiny(), copies=2, flip=True, crop_latents=False)
    images = torch.cat(list(_xar_recipe.latent_images(config, source).split(4)))
    assert torch.equal(images[:6], framed(source, 32)) and torch.equal(images[6:], images[:6].flip(-1))


def test_sampled_latents_vary_about_the_mean():
    batch = {"latents": torch.ones(500, 2, 3, 3), "deviation": torch.full((500, 2, 3, 3), 0.5), "label": torch.zeros(500)}
    first, again, other = (_xar_recipe.sampled(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert set(first) == {"latents", "label"} and torch.equal(first["latents"], again["latents"])
    assert not torch.equal(first["latents"], other["latents"])
    assert float(first["latents"].mean()) == pytest.approx(1, abs=0.03)
    assert float(first["latents"].std()) == pytest.approx(0.5, abs=0.03)


def test_the_configuration_says_how_many_images_are_judged(jpeg_folder, tmp_path, monkeypatch):
    asked: list[int] = []
    make = _xar_recipe.make_images
    monkeypatch.setattr(_xar_recipe, "make_images", lambda *given, **more: asked.append(len(given[3])) or make(*given, **more))
    monkeypatch.setattr(_xar_recipe, "HELD", 150)
    config = tiny(str(jpeg_folder))
    carry_out(tmp_path / "run", replace(config, sampling=replace(config.sampling, images=210)))
    assert asked[:4] == [150, 60, 150, 60]


def test_the_published_setting_is_the_sheet_s():
    config = paper.recipes["paper"]().config
    optimizer = config.flow_training.optimizers["main"]
    total = config.flow_training.steps
    steps = [round(epoch / 800 * (total - 1)) for epoch in (50, 100, 600, 700, 800)]
    rates = [optimizer.lr * rate(step, total, optimizer.schedule) for step in steps]
    assert rates == pytest.approx([2e-4, 4e-4, 4e-4, 2.05e-4, 1e-5], rel=1e-3)
    assert (config.latents, config.copies, config.flip, config.crop_latents) == ("sample", 2, True, False)
    model = _xar_recipe.build_generator(replace(config, flow=replace(config.flow, depth=1, dim=32, heads=2)), 10)
    assert model.encoder_blocks[0].attn.attention_dropout == 0.1
    assert paper.recipes["laptop"]().config.latents == "mean"
