"""MaxViT's recipe `generate`: a small run from images to page and samples; comparisons are between equals."""

from dataclasses import replace

import pytest
import torch

from paperworks.analysis.counting import count_parameters
from paperworks.errors import InputError
from paperworks.paper import Recipe, Run
from paperworks.papers import _maxvit_claims as claims
from paperworks.papers import _maxvit_gan as gan
from paperworks.papers.maxvit import paper


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
