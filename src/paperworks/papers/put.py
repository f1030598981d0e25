"""PUT (2205.05076, 2404.00513): holes filled from continuous features of what is known, patch by patch, in several ways.

paperworks run put                                       digits with holes, minutes on two cores
paperworks run put --data DIR                            your photos; "photos" are eleven embedded ones
paperworks sample runs/put --image photo.png --mask hole.png --count 3
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from paperworks.data import open_images
from paperworks.data.masks import read_hole
from paperworks.data.transforms import resize_shorter, to_float
from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.generators.unquantized_sampling import FillConfig, inpaint, inpaint_photo
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most, equals
from paperworks.papers import _put_claims as measure
from paperworks.papers import card
from paperworks.papers._generation import default_channels
from paperworks.papers._put_recipe import (
    CodecConfig,
    CodecLossConfig,
    HoleConfig,
    PUTConfig,
    TransformerConfig,
    held_out,
    load_codec,
    load_transformer,
    train_codec,
    train_transformer,
)
from paperworks.papers._put_report import complete, evaluate, write_report
from paperworks.reporting import save_grid
from paperworks.tokenizers.dual_quantizer import DualQuantizer
from paperworks.tokenizers.patch_vqvae import PatchVQVAE
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

STAGES = (Stage("codec", train_codec), Stage("transformer", train_transformer), Stage("report", write_report))

LATER_CODEC: dict[str, Any] = {
    "vocab_size": 9216,
    "clean_codes": 8192,
    "decoder_blocks": 2,
    "upsample": "nearest",
    "stage_blocks": 2,
}
"""what the 2024 codec has instead"""

_transformer = partial(UnquantizedTransformer, 256, 1024, 512)

paper = Paper(
    card("put"),
    parts=[PatchVQVAE, DualQuantizer, UnquantizedTransformer, inpaint, inpaint_photo],
    variants={
        "put_codec": Variant(PatchVQVAE, note="2022, 512 + 512 codes; encoder 0.643 M, decoder 6.627 M"),
        "put_ffhq": Variant(partial(_transformer, 512, 30, 8), 95.49, "30 x 512"),
        "put_naturalscene": Variant(partial(_transformer, 512, 35, 8), 111.25, "35 x 512"),
        "put_imagenet": Variant(partial(_transformer, 1024, 35, 8), 442.70, "35 x 1024"),
        "put_codec_2024": Variant(partial(PatchVQVAE, **LATER_CODEC), note="8192 + 1024 codes"),
        "put_vit_base_2024": Variant(
            partial(UnquantizedTransformer, 256, 1024, 8192, 768, 12, 12, mask_embedding=True), note="ViT-B, a mask embedding"
        ),
    },
)


@paper.recipe("laptop")
def laptop(data: str = "default", image_size: Literal[32, 64] = 32, seed: int = 0) -> Recipe:
    """Both stages on small images, or on crops of photos, in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name: "default" are digits, "photos" eleven embedded photos
        image_size: of images or crops; 64 has patches of 8 pixels instead of 4
        seed: of initial weights, data order and sampling
    """
    codec = CodecConfig(patch=image_size // 8)
    channels = default_channels(data)
    return Recipe(PUTConfig(data=data, image_size=image_size, channels=channels, seed=seed, codec=codec), STAGES)


@paper.recipe("paper")
def published(
    data: str, masks: str = "", variant: Literal["ffhq", "naturalscene", "imagenet", "2024"] = "ffhq", seed: int = 0
) -> Recipe:
    """The published settings at 256 pixels; need a cluster and torchrun.

    Args:
        data: a folder of photos, shards or parquet
        masks: a folder of irregular masks (white = hole), of which four fifths of the training holes are; strokes without
        variant: sizes and budget of the 2022 models, or of the 2024 form (FFHQ)
        seed: of initial weights, data order and sampling
    """
    later = variant == "2024"
    # images, epochs and images a step of the transformer; the codec's start of the further losses
    images, epochs, batch, start = {
        "ffhq": (69_000, 250, 128, 5_000),
        "naturalscene": (227_096, 200, 48, 5_000),
        "imagenet": (1_281_167, 150, 64, 30_000),
        "2024": (69_000, 800, 48, 5_000),
    }[variant]
    sizes = {"ffhq": (512, 30, 8), "naturalscene": (512, 35, 8), "imagenet": (1024, 35, 8), "2024": (768, 12, 12)}[variant]
    codec_steps = 150 * images // 128
    cosine = ScheduleConfig("cosine", warmup=5_000 / codec_steps, end=5e-3)
    judged = replace(cosine, end=5e-2)
    steps = epochs * images // batch
    config = PUTConfig(
        data=data,
        image_size=256,
        crops=0,
        seed=seed,
        masks=masks,
        holes=HoleConfig(),
        codec=CodecConfig(8, 256, 256, 256, 8, 8, 64, 1024, 512, ema=0.99, upsample="deconv"),
        losses=CodecLossConfig(
            "vgg19",
            gradient_weight=2.0 if later else 5.0,
            content_weight=0.05 if later else 0.1,
            style_weight=100.0 if later else 250.0,
            adversarial_weight=0.05 if later else 0.1,
            start=start / codec_steps,
            noisy=30_000 / codec_steps if later else 0.0,
            discriminator_width=64,
            discriminator_layers=3,
        ),
        codec_training=TrainConfig(
            codec_steps,
            128,
            optimizers={
                "main": OptimizerConfig("adam", lr=2e-4, betas=(0.0, 0.9), schedule=cosine),
                "discriminator": OptimizerConfig("adam", lr=2e-5, betas=(0.0, 0.9), schedule=judged),
            },
            checkpoint_every=5_000,
        ),
        transformer=TransformerConfig(*sizes, positions="zeros"),
        transformer_training=TrainConfig(
            steps,
            batch,
            optimizers={
                "main": OptimizerConfig(
                    lr=1.5e-3 if later else 3e-4,
                    betas=(0.9, 0.999) if later else (0.9, 0.95),
                    weight_decay=0.05 if later else 0.01,
                    schedule=ScheduleConfig("cosine", warmup=28_750 if later else 2_000, end=1 / 150 if later else 1 / 30),
                )
            },
            checkpoint_every=5_000,
        ),
        filling=FillConfig(per_pass=20 if later else 1),
        held_out=1_000,
    )
    if later:
        config = replace(
            config,
            codec=replace(config.codec, **LATER_CODEC),
            transformer=replace(config.transformer, mask_embedding=True, drop_path=0.1, poly=1.0),
        )
    return Recipe(config, STAGES)


@paper.verb("sample")
def sample_completions(
    run: Run,
    *,
    image: Path | None = None,
    mask: Path | None = None,
    count: int = 3,
    per_pass: int | None = None,
    keep: float | None = None,
    temperature: float | None = None,
    shorter_side: int | None = None,
    seed: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Fills the hole of a photo in several ways.

    Args:
        image: a picture of any size; held-out crops of the run's data without
        mask: a picture of the same shape, white where pixels are to be made anew (default: the centre)
        count: completions
        per_pass: patches drawn in a pass of the network: more are faster, 1 is the most careful; -1 for all at once
        keep: likeliest codes that are drawn from; 1 always takes the likeliest
        temperature: multiplies the logits: larger is surer, smaller more varied
        shorter_side: reduce the picture to this first; a hole of a few patches' width is filled best
        seed: another one gives other completions
        out: PNG to write, by default completions.png in the run's folder; each completion stands beside it in a file of its own
    """
    config: PUTConfig = run.config(PUTConfig)
    given: dict[str, Any] = {"per_pass": per_pass, "keep": keep, "temperature": temperature}
    filling = replace(config.filling, **{name: value for name, value in given.items() if value is not None})
    filling.check()
    if count < 1:
        raise InputError(f"count={count}: there must be at least one completion")
    codec, model, path = load_codec(run), load_transformer(run), out or run.folder / "completions.png"
    if image is None:
        if mask is not None:
            raise InputError("a mask needs the image that it belongs to: name it with --image")
        images, holes = held_out(config, count=10)
        rows = [torch.where(holes[:, None], 0.5, images)]
        rows += [complete(model, codec, images, holes, seed * 1000 + number, filling) for number in range(count)]
        save_grid(torch.cat([*rows, images]), path, len(images))
        return {"crops": len(images), "completions": count, "file": str(path)}
    photo, hole = _opened(image, mask, config.channels, shorter_side)
    made = inpaint_photo(model, codec, photo, hole, Draws.seeded(seed, count), filling)
    save_grid(torch.cat((photo[None], torch.where(hole, 0.5, photo)[None], made)), path, count + 2)
    files = [path.with_name(f"{path.stem}-{number + 1}{path.suffix}") for number in range(count)]
    for each, completion in zip(files, made):
        _write(completion, each)
    changed = float(((made - photo).abs() * ~hole).max())
    return {
        "photo": f"{photo.shape[-1]} x {photo.shape[-2]}",
        "hole": f"{float(hole.float().mean()):.1%}",
        "largest change of a known pixel": changed,
        "file": str(path),
        "completions": [str(each) for each in files],
    }


@paper.verb("evaluate")
def evaluate_run(run: Run, *, data: str | None = None) -> dict[str, Any]:
    """Measures a run again, on its own held-out crops or on crops of other photos.

    Args:
        data: other photos
    """
    return evaluate(run.config(PUTConfig), run, data)


def _opened(image: Path, mask: Path | None, channels: int, shorter_side: int | None) -> tuple[Tensor, Tensor]:
    """The photo [C, H, W] in [0, 1] and its hole bool [H, W]."""
    pixels = open_images(image, channels=channels, strict=True).read(0)
    height, width = pixels.shape[-2:]
    if mask is None:
        hole = torch.zeros(height, width, dtype=torch.bool)
        hole[height // 3 : -(height // 3), width // 3 : -(width // 3)] = True
    else:
        drawn = open_images(mask, channels=1, strict=True).read(0)
        if drawn.shape[-2:] != pixels.shape[-2:]:
            raise InputError(
                f"{mask} has {drawn.shape[-1]} x {drawn.shape[-2]} pixels, {image} has {width} x {height}: make them equal"
            )
        hole = read_hole(drawn, str(mask))
    if shorter_side is not None:
        pixels = resize_shorter(pixels[None], shorter_side)[0]
        hole = resize_shorter(hole[None, None].to(torch.uint8) * 255, shorter_side)[0, 0] > 0
    return to_float(pixels), hole


def _write(image: Tensor, path: Path) -> None:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=at_most(40.0), says="photos shrunk to 32, 48 or 64 pixels come back with at most 40 dB, never exact")
def shrinking(bench: Bench) -> Measured:
    return measure.shrinking()


@paper.claim("c2", rule=equals(512), says="512 colours are left of a photo set that had many more, below 60 dB")
def palette(bench: Bench) -> Measured:
    return measure.palette()


@paper.claim("c3", rule=equals(0), says="no feature of a known patch changes with the hole's pixels; a convolution's do")
def patches_apart(bench: Bench) -> Measured:
    return measure.patches_apart()


@paper.claim("c4", rule=equals(0.0), says="known pixels change by exactly 0")
def known_pixels(bench: Bench) -> Measured:
    return measure.known_pixels()


@paper.claim("c5", rule=at_least(0.0), says="cross-entropy in large holes lower than when reading codes, on every seed")
def features_against_codes(bench: Bench) -> Measured:
    return measure.features_against_codes(bench)


@paper.claim("c6", rule=equals(1024), says="exactly 1024 positions at 256 pixels, where one per pixel is 65,536")
def tokens(bench: Bench) -> Measured:
    return measure.tokens()


@paper.claim(
    "c8", rule=at_least(0.0), says="the gain over reading codes is larger in large holes than in small ones, every seed"
)
def larger_holes(bench: Bench) -> Measured:
    return measure.larger_holes(bench)


@paper.claim("c10", rule=equals(3), says="all three pairs of completions differ in every hole and agree outside")
def several(bench: Bench) -> Measured:
    return measure.several()
