"""HMAR (2506.04421): next-scale generation that remembers only the image so far, refined by masked prediction.

paperworks run hmar                                  digits, minutes on two cores
paperworks sample runs/hmar --classes 3 7
paperworks sample runs/hmar --image picture.png --mask hole.png
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.masked_scale import MaskedScaleTransformer, scale_weights
from paperworks.generators.masked_scale_sampling import inpaint, sample
from paperworks.generators.next_scale import SCALES_256
from paperworks.layers.block_causal import block_diagonal_attention
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Variant, at_least, at_most, equals
from paperworks.papers import _hmar_claims as measure
from paperworks.papers import card
from paperworks.papers._generation import adamw, default_channels, shows_photos, tokenizer_training
from paperworks.papers._generation_report import chosen_labels, edited_picture
from paperworks.papers._hmar_recipe import (
    GeneratorConfig,
    HMARConfig,
    HMARKit,
    TokenizerConfig,
    build_generator,
    build_tokenizer,
    passes,
    sample_tokens,
    schedule_of,
    show_more,
)
from paperworks.papers._token_recipe import JudgeConfig, SampleConfig, add_verbs, make_images
from paperworks.reporting import save_grid
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

KIT = HMARKit(
    "HMAR", MultiScaleVQVAE, MaskedScaleTransformer, build_tokenizer, build_generator, sample_tokens, passes, more=show_more
)


def _transformer(depth: int) -> MaskedScaleTransformer:
    """The published sizes: width 64 x depth, as many heads as layers, the last eight blocks twice."""
    return MaskedScaleTransformer(1000, depth, 64 * depth, depth)


paper = Paper(
    card("hmar"),
    parts=[MaskedScaleTransformer, sample, inpaint, block_diagonal_attention, scale_weights],
    variants={
        "hmar_d16": Variant(partial(_transformer, 16), 467.69, "both branches; 256 px"),
        "hmar_d20": Variant(partial(_transformer, 20), 845.52, "256 px"),
        "hmar_d24": Variant(partial(_transformer, 24), 1384.33, "256 px"),
        "hmar_d30": Variant(partial(_transformer, 30), 2556.32, "256 px"),
    },
)
add_verbs(paper, KIT, HMARConfig)


@paper.recipe("laptop")
def laptop(data: str = "default", seed: int = 0) -> Recipe:
    """All three stages on 32-pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        seed: of initial weights, data order and sampling
    """
    config = HMARConfig(
        data=data,
        channels=default_channels(data),
        flip=shows_photos(data),
        seed=seed,
        judge=JudgeConfig(adversarial_weight=0.5, adversarial_start=0.6),
        tokenizer_training=tokenizer_training(600, 32, 2e-3),
        generator_training=TrainConfig(470, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99),
        refining=TrainConfig(150, 64, optimizers={"main": adamw(1e-3)}, clip=2.0, ema=0.97),
        sampling=SampleConfig(guidance=1.0, top_p=0.96),
    )
    return Recipe(config, KIT.stages)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", depth: int = 16, seed: int = 0) -> Recipe:
    """The published setting: VAR's training, then 100 epochs of masked training; needs a cluster and torchrun.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        depth: 16, 20, 24 or 30; the width is 64 times it
        seed: of initial weights, data order and sampling
    """
    batch = 1024 if depth >= 30 else 768
    lr = (1e-4 if depth < 24 else 8e-5) * batch / 256
    schedule = ScheduleConfig("flat_linear", warmup=1 / 50, warmup_start=0.005, end=0.1 if depth <= 20 else 0.01)
    decay_end = 0.08 if depth >= 30 else None
    optimizer = OptimizerConfig(lr=lr, betas=(0.9, 0.95), weight_decay=0.05, weight_decay_end=decay_end, schedule=schedule)
    epochs = {16: 200, 20: 250}.get(depth, 350)
    guidance, top_k = {20: (1.9, 950), 24: (2.1, 900)}.get(depth, (1.7, 1000))

    def budget(count: int) -> TrainConfig:
        steps = count * 1_281_167 // batch
        return TrainConfig(steps, batch, optimizers={"main": optimizer}, clip=2.0, checkpoint_every=5000)

    config = HMARConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=1,
        seed=seed,
        tokenizer=TokenizerConfig(SCALES_256, 4096, 32, 160, (1, 1, 2, 2, 4), 2, 32, 1),
        generator=GeneratorConfig(depth, 64 * depth, depth, 8, drop_path_rate=0.1 * depth / 24),
        judge=JudgeConfig("lpips", discriminator_width=64, discriminator_layers=3),
        tokenizer_training=tokenizer_training(250_000, 256, 1e-4),
        generator_training=budget(epochs),
        refining=budget(100),
        sampling=SampleConfig(guidance, top_k, 0.99, images=50_000),
    )
    return Recipe(config, KIT.stages)


@paper.verb("sample")
def sample_images(
    run: Run,
    *,
    classes: tuple[str, ...] = (),
    count: int = 10,
    image: Path | None = None,
    mask: Path | None = None,
    seed: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Makes images, or makes a part of one anew.

    Args:
        classes: names of classes to make; with `image`, the one class to edit towards (none: fill in freely)
        count: images per class, or versions of the edited image
        image: a picture to edit
        mask: a picture of the same shape, white where pixels are to be made anew (default: the centre)
        seed: another one gives other images
        out: PNG to write, by default samples.png in the run's folder
    """
    config: HMARConfig = run.config(HMARConfig)
    tokenizer, model, part = KIT.tokenizer_of(run), KIT.generator_of(run), config.sampling
    labels = chosen_labels(run.result("tokenizer")["classes"], classes)
    if image is None:
        made, columns = make_images(KIT, config, model, tokenizer, labels.repeat_interleave(count), seed), count
    else:
        if len(classes) > 1:
            raise InputError("name one class to edit towards")
        wanted = torch.full((count,), int(labels[0]) if classes else model.num_classes)
        settings: dict[str, Any] = {"guidance": part.guidance, "top_k": part.top_k, "top_p": part.top_p}

        def fill(images: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
            draws = Draws.seeded(seed, count)
            return inpaint(model, tokenizer, images, hole, wanted, draws, schedule=schedule_of(config), **settings)

        made, columns = edited_picture(image, mask, config.image_size, config.channels, count, fill), count + 2
    path = save_grid(made, out or run.folder / "samples.png", columns)
    return {"images": len(made), "file": str(path)}


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c2", rule=at_least(2.0), says="tokens grow more than twofold with every doubling of the side, from 256 to 1024")
def sequence_growth(bench: Bench) -> Measured:
    return measure.sequence_growth()


@paper.claim(
    "c7", rule=at_least(3.0), says="bytes per image of VAR's cache and live scale over HMAR's live scale, d30, above 3"
)
def memory(bench: Bench) -> Measured:
    return measure.memory()


@paper.claim(
    "c5", rule=at_least(2.5), says="attention, forward and backward, at least 2.5 times as fast at 680 and 2240 tokens"
)
def training_speed(bench: Bench) -> Measured:
    return measure.attention_speed(bench)


@paper.claim(
    "c6", rule=at_least(1.0), says="one guided image at the width of d16 at least as fast as VAR's, in every repetition"
)
def sampling_speed(bench: Bench) -> Measured:
    return measure.sampling_speed(bench)


@paper.claim("c1", rule=at_most(0.999), says="Frechet distance with the two largest maps refined below that of single draws")
def refinement(bench: Bench) -> Measured:
    return measure.refinement(bench, KIT, laptop().config)


@paper.claim(
    "c3", rule=at_most(1.03), says="held-out cross-entropy at most 3 % above that of the same network with full context"
)
def markov(bench: Bench) -> Measured:
    return measure.markov(bench, KIT, laptop().config)


@paper.claim("c8", rule=equals(3), says="three schedules give valid images from one network, and a wrong sum is refused")
def schedules(bench: Bench) -> Measured:
    return measure.three_schedules(bench, KIT, laptop().config)


@paper.claim("c9", rule=at_most(0.999), says="error in the hole below that of another digit's pixels, and kept tokens exact")
def editing(bench: Bench) -> Measured:
    return measure.editing(bench, KIT, laptop().config)
