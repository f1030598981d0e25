"""ViT-VQGAN, VQGAN-LC and ResGen: published settings against the variants, code books from images, verbs, benches."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from paperworks.data import ImageSource
from paperworks.errors import InputError
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.layers.residual_discriminator import ResidualDiscriminator
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.logit_laplace import LogitLaplaceTraining
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.paper import Bench
from paperworks.papers import _code_bench, _generation_report, _vit_vqgan_claims, _vqgan_lc_claims, resgen, vit_vqgan, vqgan_lc
from paperworks.papers._token_recipe import tokenizer_objective
from paperworks.papers.vqgan_lc import LCConfig, make_table, patch_vectors
from paperworks.training.schedules import rate
from tests.papers.test_token_papers import Eye, Wide, carry_out, tiny


def shapes(model: nn.Module, *without: str) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items() if not name.startswith(without)}


def built(paper, name):
    with torch.device("meta"):
        return paper.variants[name].build()


def published(module, **arguments):
    config = module.paper.recipes["paper"](**arguments).config
    with torch.device("meta"):
        return config, module.build_tokenizer(config), module.build_generator(config, 1000)


@pytest.mark.parametrize("size", ["base", "large"])
def test_vit_vqgans_published_settings(size):
    config, tokenizer, generator = published(vit_vqgan, size=size)
    assert shapes(tokenizer) == shapes(built(vit_vqgan.paper, "vitvqgan_base"))
    ours, theirs = shapes(generator), shapes(built(vit_vqgan.paper, f"vim_{size}"))
    assert ours.pop("class_embedding.weight")[0] == theirs.pop("class_embedding.weight")[0] + 1  # and one for no class
    assert ours == theirs and generator.heads == (16 if size == "base" else 32) and generator.dropout.p == 0.1
    judge = config.judge
    assert judge.adversarial == Adversarial("non_saturating", r1=10, adaptive=False)
    assert judge.adversarial_weight == judge.perceptual_weight == config.logit_laplace_weight == 0.1
    assert judge.l2_weight == 1 and judge.adversarial_start == 0
    with torch.device("meta"):
        assert isinstance(vit_vqgan.KIT.discriminator(config), ResidualDiscriminator)
    training = config.generator_training
    schedule = training.optimizers["main"].schedule
    rates = [rate(step, training.steps, schedule) for step in (2500, 5000, 100_000, 200_000, 300_000, 449_999)]
    assert rates[:2] == [0.5, 1.0] and rates[-1] == pytest.approx(1 / 30)
    assert rates[3] / rates[2] == pytest.approx(rates[4] / rates[3], rel=0.05)  # equal shares in equal times


def test_vit_vqgan_trains_with_the_published_losses_and_a_patch_discriminator_on_a_laptop():
    config = vit_vqgan.laptop().config
    assert isinstance(vit_vqgan.KIT.discriminator(config), PatchDiscriminator) and config.logit_laplace_weight == 0
    small = replace(config, discriminator="residual", logit_laplace_weight=0.1)
    objective = tokenizer_objective(vit_vqgan.KIT, replace(small, judge=replace(small.judge, perceptual="none")))
    assert isinstance(objective, LogitLaplaceTraining) and objective.logit_laplace_weight == 0.1
    assert objective.discriminator(torch.rand(2, 1, 32, 32)).shape == (2, 1)


def test_vqgan_lcs_published_settings():
    config, tokenizer, generator = published(vqgan_lc)
    without = "quantize.tok_embeddings", "quantize.codebook_projection.weight"  # of another network's features
    assert shapes(tokenizer, *without) == shapes(built(vqgan_lc.paper, "vqgan_lc_f16"), *without)
    assert shapes(generator) == shapes(built(vqgan_lc.paper, "gpt_lc")) and generator.joint_vocabulary
    assert tokenizer.quantize.start == "paper" and config.generator.keep == 0.8
    objective = vqgan_lc.KIT.objective(config, generator, tokenizer, None)
    assert (objective.keep, objective.label_smoothing, objective.label_dropout) == (0.8, 0.0, 0.0)
    training = config.generator_training
    schedule = training.optimizers["main"].schedule
    rates = [rate(step, training.steps, schedule) for step in (2500, 5000, 79_000, 265_000, 449_999)]
    assert rates == pytest.approx([0.5, 1, 1, 0.5, 0], abs=1e-3)


@pytest.mark.parametrize("depth", [8, 16])
def test_resgens_published_settings(depth):
    config, tokenizer, generator = published(resgen, depth=depth)
    name = "resgen_xl" if depth == 8 else "resgen_xl_d16"
    assert shapes(generator) == shapes(built(resgen.paper, name))
    assert tokenizer.depth == depth
    assert tokenizer.image_size // tokenizer.downsampling == 8 and tokenizer.quantize.channels == generator.code_channels
    assert config.guide_means and not resgen.laptop().config.guide_means


# --- a code book from images ------------------------------------------------------------------------------------------


def pictures(counts: list[int]) -> ImageSource:
    """Random images, so many of each class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.randint(0, 256, (len(labels), 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSource.from_tensor(images, labels, name="pictures", classes=[str(number) for number in range(len(counts))])


class Counting(Wide):
    """Remembers how many images it saw at a time, and all in all."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def feature_maps(self, images):
        self.seen.append(len(images))
        return super().feature_maps(images)


@pytest.mark.parametrize(("codes", "counts"), [(20, [30, 30]), (21, [4, 40, 9]), (5, [3] * 8), (60, [1, 1]), (50, [30])])
def test_a_code_book_has_an_equal_share_of_patches_of_each_class(codes, counts):
    config, network = replace(LCConfig(image_size=16), tokenizer=vqgan_lc.TokenizerConfig(vocab_size=codes)), Counting()
    table = make_table(config, pictures(counts), network)
    assert table.shape == (codes, vqgan_lc.TABLE_WIDTH) and table.isfinite().all()
    share = -(-codes // len(counts))
    assert sum(network.seen) == sum(min(count, share) for count in counts) and max(network.seen) <= 64
    if min(counts) * 16 >= share:
        assert len(table.unique(dim=0)) == codes
    assert torch.equal(make_table(config, pictures(counts), Wide()), table)


def test_patch_vectors_are_of_sixteen_places_of_an_image():
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, :8, 8:16] = 1

    class Whole:
        def split(self, size):
            return images.split(size)

    vectors = patch_vectors(Wide(), Whole()).mean(1)
    assert vectors.shape == (32,) and int(vectors.argmax()) == 1 and float(vectors[16:].abs().sum()) == 0


# --- verbs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_judges(monkeypatch):
    monkeypatch.setattr(_generation_report, "digit_classifier", lambda folder: Eye())


def test_vit_vqgan_rejects_samples_and_probes(quick_judges, tmp_path, monkeypatch):
    run = carry_out("vit-vqgan", tmp_path / "run", tiny("vit-vqgan"))
    verbs = vit_vqgan.paper.verbs
    liked = []
    monkeypatch.setattr(vit_vqgan, "save_grid", lambda made, path, columns: liked.append(made) or path)
    assert all(verbs["sample"](run, classes=("3",), count=4, best_of=best)["images"] == 4 for best in (1, 5))
    score = [float(Eye().logits(made).log_softmax(1)[:, 3].mean()) for made in liked]
    assert liked[0].shape == liked[1].shape and score[1] >= score[0]
    found = verbs["predict"](run, "digits")
    assert set(Counter(row["class"] for row in found)) <= set("0123456789") and len(found) > 100
    assert all(0.1 <= row["probability"] <= 1 for row in found)
    with pytest.raises(InputError, match="there are 1 to 1"):
        verbs["predict"](run, "digits", block=2)


def test_rejection_needs_a_classifier_of_the_classes(quick_judges, jpeg_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(_generation_report, "lite0", Eye)
    run = carry_out("vit-vqgan", tmp_path / "run", tiny("vit-vqgan", str(jpeg_folder)))
    with pytest.raises(InputError, match="embedded digits only"):
        vit_vqgan.paper.verbs["sample"](run, count=1, best_of=2)


# --- training and benches ---------------------------------------------------------------------------------------------


def test_published_ways_to_disturb_what_a_gpt_reads():
    config = tiny("vqgan-lc")
    config = replace(config, generator=replace(config.generator, joint_vocabulary=True, keep=0.5, label_smoothing=0.1))
    model = vqgan_lc.build_generator(config, 10)
    assert model.joint_vocabulary and not model.null_class
    objective = vqgan_lc.objective(config, model, None, None)
    assert isinstance(objective, TokenPrediction) and (objective.keep, objective.label_smoothing) == (0.5, 0.1)


def test_code_books_start_from_features_unless_they_are_measured_as_published(monkeypatch, tmp_path):
    monkeypatch.setattr(_code_bench, "photo_patches", lambda: torch.rand(6000, 192) - 0.5)
    bench = Bench(tmp_path)
    build = _vqgan_lc_claims._build("FC", 512)
    seeded, plain = (
        _code_bench.usage_and_error(bench, name, 0, build, 8, steps=2, seeded=seeded)["usage"]
        for name, seeded in (("seeded", True), ("plain", False))
    )
    assert seeded > 0.5 > plain
    names = []
    monkeypatch.setattr(
        _vqgan_lc_claims, "usage_and_error", lambda bench, name, *rest, **options: names.append((name, options))
    )
    _vqgan_lc_claims._measured(bench, "EMA", 256, 0)
    _vqgan_lc_claims._measured(bench, _vqgan_lc_claims.AS_PUBLISHED, 256, 0)
    assert [(name, options["seeded"]) for name, options in names] == [
        ("EMA-seeded-256", True),
        ("FC-as-published-256", False),
    ]


def test_vit_vqgans_rival_has_vqgans_quantiser():
    quantizer = _vit_vqgan_claims._cnn().quantize
    assert (quantizer.beta, quantizer.codebook_weight, quantizer.channels) == (0.25, 1.0, 64)
    before = torch.get_num_threads()
    with _vit_vqgan_claims.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_one_network_is_judged_in_three_uses_beside_an_untrained_one(quick_judges, tmp_path, monkeypatch):
    run = carry_out("vit-vqgan", tmp_path / "run", tiny("vit-vqgan"))
    monkeypatch.setattr(_vit_vqgan_claims, "_trained", lambda *_: run)
    monkeypatch.setattr(_vit_vqgan_claims, "SAMPLES", 20)
    config = run.config(vit_vqgan.VIMConfig)
    found = _vit_vqgan_claims.one_model(Bench(tmp_path, seeds=(0,)), vit_vqgan.KIT, config)
    numbers = found.numbers
    expected = (
        (numbers["recognised"] > 30)
        + (numbers["distances"][0] < numbers["distances"][1])
        + (numbers["probes"][0] > max(30, numbers["probes"][1]))
    )
    assert found.value == expected and len(numbers["distances"]) == len(numbers["probes"]) == 2
