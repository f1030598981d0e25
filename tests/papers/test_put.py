"""PUT: codec, transformer, filling, the run at toy size, a user's photo and mask."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.generators.unquantized_sampling import FillConfig, fill_tokens, inpaint, inpaint_photo, pass_counts
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers import _generation_report
from paperworks.papers._recognition_claims import millions
from paperworks.papers.put import paper
from paperworks.tokenizers.masked_codec import MaskedCodec
from paperworks.tokenizers.patch_vqvae import PatchVQVAE
from paperworks.tokenizers.vit_vqgan import ViTVQGAN
from paperworks.training import TrainConfig
from tests.papers.test_token_papers import Eye


def codec(**options) -> PatchVQVAE:
    torch.manual_seed(0)
    sizes = {"width": 16, "channels": 8, "code_dim": 8, "base_channels": 8, "encoder_blocks": 1, "decoder_blocks": 1}
    return PatchVQVAE(16, 4, **{**sizes, "vocab_size": 24, "clean_codes": 16, **options}).eval()


def transformer(of) -> UnquantizedTransformer:
    torch.manual_seed(1)
    spec = of.spec
    return UnquantizedTransformer(spec.code_channels, spec.tokens, spec.vocab_size, 16, 1, 2, codec=spec.id).eval()


def given(count: int = 2):
    torch.manual_seed(2)
    holes = torch.zeros(count, 16, 16, dtype=torch.bool)
    holes[:, 4:13, 5:12] = True
    return torch.rand(count, 3, 16, 16), holes


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_patch_is_encoded_by_itself():
    model, (images, holes) = codec(), given()
    changed = torch.where(holes[:, None], 1 - images, images)
    one, other = model.features(images), model.features(changed)
    known = torch.nn.functional.avg_pool2d((~holes[:, None]).float(), 4)[:, 0] == 1
    assert bool(known.any()) and torch.equal(one[known], other[known])
    assert not torch.allclose(one[~known], other[~known])


def test_known_pixels_come_back_exactly_and_completions_differ():
    model, (images, holes) = codec(), given()
    network = transformer(model)
    made = [inpaint(network, model, images, holes, Draws.seeded(seed, 2), FillConfig(2)) for seed in (0, 0, 1)]
    outside = ~holes[:, None].expand_as(images)
    assert all(torch.equal(each[outside], images[outside]) for each in made)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    nothing = torch.zeros_like(holes)
    assert torch.equal(inpaint(network, model, images, nothing, Draws.seeded(0, 2), FillConfig()), images)


@pytest.mark.parametrize(("per_pass", "passes"), [(1, 6), (4, 2), (-1, 1)])
def test_more_patches_a_pass_are_fewer_passes(per_pass, passes):
    model, (images, holes) = codec(), given()
    found = fill_tokens(transformer(model), model, images, ~holes[:, None], Draws.seeded(0, 2), FillConfig(per_pass))
    assert found.passes == passes


def test_pass_counts_add_up():
    for plan in (1, 3, -1, "cosine_8", "linear_8", "average_8", "cosine-1_8"):
        for masked in (1, 7, 64):
            counts = pass_counts(masked, plan)
            assert sum(counts) == masked and min(counts) >= 1


def test_a_photo_of_any_size_is_filled_window_by_window():
    model = codec()
    torch.manual_seed(0)
    photo, hole = torch.rand(3, 37, 50), torch.zeros(37, 50, dtype=torch.bool)
    hole[10:30, 20:45] = True
    made = inpaint_photo(transformer(model), model, photo, hole, Draws.seeded(0, 2), FillConfig(4))
    assert made.shape == (2, 3, 37, 50) and torch.equal(made[:, :, ~hole], photo[:, ~hole].expand(2, -1, -1))
    assert not torch.equal(made[0], made[1])


def test_another_tokenizer_serves_as_codec():
    torch.manual_seed(0)
    size = {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    other = MaskedCodec(ViTVQGAN(16, 4, size, size, code_dim=4, vocab_size=16).eval())
    images, holes = given()
    made = inpaint(transformer(other), other, images, holes, Draws.seeded(0, 2), FillConfig(3))
    assert torch.equal(made[:, :, :4], images[:, :, :4])
    with pytest.raises(InputError):
        inpaint(transformer(codec()), other, images, holes, Draws.seeded(0, 2), FillConfig())


@pytest.mark.parametrize(
    "config", [FillConfig(0), FillConfig(keep=-1), FillConfig(keep=3, keep_kind="prob"), FillConfig(temperature=0)]
)
def test_impossible_settings_are_named(config):
    with pytest.raises(InputError):
        config.check()


# --- the run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_judges(monkeypatch):
    monkeypatch.setattr(_generation_report, "digit_classifier", lambda folder: Eye())
    monkeypatch.setattr(_generation_report, "lite0", Eye)


def tiny(data: str = "photos"):
    config = paper.recipes["laptop"](data=data).config
    sizes = {"width": 16, "channels": 8, "code_dim": 8, "base_channels": 8, "encoder_blocks": 1, "decoder_blocks": 1}
    steps = TrainConfig(4, 8, optimizers=config.codec_training.optimizers, checkpoint_every=2)
    return replace(
        config,
        crops=64,
        codec=replace(config.codec, vocab_size=24, clean_codes=16, **sizes),
        losses=replace(config.losses, network="none"),
        codec_training=steps,
        transformer=replace(config.transformer, dim=16, layers=1, heads=2),
        transformer_training=replace(config.transformer_training, steps=4, batch_size=8, checkpoint_every=2),
        held_out=12,
    )


def carry_out(folder: Path, config) -> Run:
    run = Run.open(folder, slug="put", recipe="laptop", arguments={}, config=config, command="paperworks run put")
    run.execute(Recipe(config, paper.recipes["laptop"]().stages), say=lambda _: None)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generation_report, "lite0", Eye)
        return carry_out(tmp_path_factory.mktemp("put") / "run", tiny())


def test_a_run_leaves_numbers_and_a_page(finished):
    numbers = finished.result("report")
    assert numbers["largest change of a known pixel"] == 0
    page = (finished.folder / "report.html").read_text()
    assert all(title in page for title in ("Three completions", "A whole photo", "Patches drawn in a pass"))


def test_a_photo_and_a_mask_of_ones_own(finished, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = np.zeros((40, 56), dtype=np.uint8)
    mask[10:30, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "hole.png")
    found = paper.verbs["sample"](
        finished, image=tmp_path / "photo.png", mask=tmp_path / "hole.png", count=2, out=tmp_path / "made.png"
    )
    assert found["largest change of a known pixel"] == 0 and len(found["completions"]) == 2
    again = np.asarray(Image.open(found["completions"][0]))
    assert np.array_equal(again[mask == 0], pixels[mask == 0]) and not np.array_equal(again, pixels)
    Image.fromarray(mask[:20]).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="make them equal"):
        paper.verbs["sample"](finished, image=tmp_path / "photo.png", mask=tmp_path / "small.png")
    with pytest.raises(InputError, match="at least one completion"):
        paper.verbs["sample"](finished, count=0)


def test_a_folder_with_broken_pictures_works_and_lists_them(jpeg_folder, tmp_path):
    run = carry_out(tmp_path / "run", tiny(str(jpeg_folder)))
    assert len(run.result("codec")["skipped"]) == 5
    assert "Images left out" in (run.folder / "report.html").read_text()


def test_variants_have_the_published_sizes():
    for name, variant in paper.variants.items():
        if variant.parameters is not None:
            assert millions(variant.build) == pytest.approx(variant.parameters, rel=1e-4), name


@pytest.mark.parametrize("id", ["c3", "c6", "c10"])
def test_counted_claims(id, tmp_path):
    claim = paper.claims[id]
    assert verdict(claim, claim.measure(Bench(tmp_path))) == "holds"
