"""xAR (2502.20388): continuous latents, an entity at a time, by flow matching from noisy context.

paperworks run xar                                   digits in four cells, minutes on two cores
paperworks run xar --entity scale                    another entity: token, cell, subsample, scale, image
paperworks sample runs/xar --classes 3 7
"""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from paperworks.generators.next_entity import EntityKind, NextEntityTransformer, make_entities
from paperworks.generators.next_entity_sampling import sample
from paperworks.objectives.flow_matching import EntityFlow
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Variant, equals
from paperworks.papers import _xar_claims as measure
from paperworks.papers import _xar_training_claims as trained_claims
from paperworks.papers import card
from paperworks.papers._generation import default_channels, open_test, shows_photos, tokenizer_training
from paperworks.papers._generation_report import chosen_labels
from paperworks.papers._token_recipe import JudgeConfig
from paperworks.papers._xar_recipe import (
    STAGES,
    AutoencoderConfig,
    FlowConfig,
    FlowSampling,
    XARConfig,
    evaluate,
    make_images,
    parts_of,
)
from paperworks.reporting import save_grid
from paperworks.tokenizers.kl_autoencoder import KLAutoencoder
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

paper = Paper(
    card("xar"),
    parts=[NextEntityTransformer, make_entities, sample, EntityFlow, KLAutoencoder],
    variants={
        "xar_base": Variant(partial(NextEntityTransformer, 1000, 16, 16, 768, 8, 12), 172.64, "40 steps, guidance 2.7"),
        "xar_large": Variant(partial(NextEntityTransformer, 1000, 16, 16, 1024, 16, 16), 608.40, "50 steps, guidance 2.3"),
        "xar_huge": Variant(partial(NextEntityTransformer, 1000, 16, 16, 1280, 20, 16), 1186.02, "50 steps, guidance 2.2"),
        "kl16": Variant(KLAutoencoder, 66.46, "MAR's autoencoder, 16 channels"),
    },
)


@paper.recipe("laptop")
def laptop(data: str = "default", entity: EntityKind = "cell", seed: int = 0) -> Recipe:
    """Both stages on 32-pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        entity: token, cell, subsample, scale or image
        seed: of initial weights, data order and sampling
    """
    size = 4 if entity == "scale" else 2
    config = XARConfig(
        data=data,
        channels=default_channels(data),
        flip=shows_photos(data),
        seed=seed,
        flow=FlowConfig(entity=entity, entity_size=size),
    )
    return Recipe(config, STAGES)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", size: Literal["base", "large", "huge"] = "base", seed: int = 0) -> Recipe:
    """The published setting: 256 pixels, 16 x 16 latents of 16 channels, 800 epochs of batch 2048; needs a cluster.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        size: base, large or huge
        seed: of initial weights, data order and sampling
    """
    dim, depth, heads, steps, guidance = {
        "base": (768, 8, 12, 40, 2.7),
        "large": (1024, 16, 16, 50, 2.3),
        "huge": (1280, 20, 16, 50, 2.2),
    }[size]
    schedule = ScheduleConfig("flat_cosine", warmup=1 / 8, flat=5 / 7, end=0.025)  # of 800 epochs: 100 up, until 600 flat
    optimizer = OptimizerConfig(lr=4e-4, betas=(0.9, 0.96), weight_decay=0.02, schedule=schedule)
    config = XARConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=2,
        flip=True,
        crop_latents=False,
        latents="sample",
        seed=seed,
        autoencoder=AutoencoderConfig(16, 1e-6, 128, (1, 1, 2, 2, 4), 2, 32, 1),
        judge=JudgeConfig("lpips", discriminator_width=64, discriminator_layers=3),
        autoencoder_training=tokenizer_training(250_000, 256, 1e-4),
        flow=FlowConfig(dim, depth, heads, "cell", 8, 0.1),
        flow_training=TrainConfig(
            800 * 1_281_167 // 2048, 2048, optimizers={"main": optimizer}, clip=1.0, ema=0.9999, checkpoint_every=5000
        ),
        sampling=FlowSampling(steps, guidance, images=50_000),
    )
    return Recipe(config, STAGES)


@paper.verb("sample")
def sample_images(
    run: Run, *, classes: tuple[str, ...] = (), count: int = 10, seed: int = 1, out: Path | None = None
) -> dict[str, Any]:
    """Makes images.

    Args:
        classes: names of classes to make; all when none is named
        count: images per class
        seed: another one gives other images
        out: PNG to write, by default samples.png in the run's folder
    """
    config: XARConfig = run.config(XARConfig)
    autoencoder, model = parts_of(run)
    wanted = chosen_labels(run.result("autoencoder")["classes"], classes).repeat_interleave(count)
    made = make_images(config, model, autoencoder, wanted, seed)
    path = save_grid(made, out or run.folder / "samples.png", count)
    return {"images": len(made), "file": str(path)}


@paper.verb("evaluate")
def evaluate_run(run: Run, *, data: str | None = None) -> dict[str, Any]:
    """Measures a run again, on its own held-out images or on others.

    Args:
        data: other images of the same classes
    """
    config: XARConfig = run.config(XARConfig)
    return evaluate(config, run, open_test(data or config.data, channels=config.channels))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured by it.


@paper.claim("c1", rule=equals(5), says="all five kinds split and merge exactly, take a training step and sample")
def five_entities(bench: Bench) -> Measured:
    return measure.five_entities()


@paper.claim(
    "c2",
    rule=trained_claims.less_exposed,
    says="on every seed the error grows at least 20 % less than after teacher forcing with as many learned entities, from a "
    "base at most a tenth above, in a network that another image's context costs at least 5 %",
)
def exposure_bias(bench: Bench) -> Measured:
    return trained_claims.exposure(bench)


@paper.claim(
    "c3",
    rule=equals(1),
    says="on every seed the loss falls by a fifth, and samples are finite and three times nearer than untrained ones",
)
def continuous_entities(bench: Bench) -> Measured:
    return trained_claims.continuous(bench)


@paper.claim(
    "c10",
    rule=equals(1),
    says="a watched step reads latents and labels alone, no other network runs, guidance has no interval and is always on",
)
def no_teacher(bench: Bench) -> Measured:
    return measure.no_teacher(field.name for field in fields(FlowSampling))


@paper.claim("c4", rule=equals(172, absolute=1), says="within 1 M of 172")
def base_size(bench: Bench) -> Measured:
    return measure.base_size()


@paper.claim("c5", rule=equals(675.0, absolute=1.0), says="DiT-XL/2's count within 1 M of 675")
def larger_models(bench: Bench) -> Measured:
    return measure.larger_models()


@paper.claim(
    "c7",
    rule=measure.both_at_least_five,
    says="DiT-XL/2's 250 guided steps at least 5 times xAR-B's image, in operations and by timed single passes",
)
def operations(bench: Bench) -> Measured:
    return measure.operations()
