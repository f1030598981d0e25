"""ByteFormer (2306.00238): images, sound or anything else, classified by the bytes of their files.

paperworks run byteformer                                       digits as TIFF files, minutes on two cores
paperworks run byteformer --format jpeg --data FOLDER           your photos in class folders, written as JPEG
paperworks run byteformer --recipe files --data FOLDER          files of any kind in class folders, read as they lie
paperworks run byteformer --recipe speech --data FOLDER         Speech Commands as published, for a cluster
paperworks predict runs/byteformer --files FOLDER
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from paperworks.backbones.byteformer import VARIANTS, ByteFormer, ByteStem
from paperworks.data.file_bytes import (
    Changes,
    ImageFormat,
    Order,
    SampleFormat,
    check_keep,
    encode_image,
    encode_wave,
    open_files,
)
from paperworks.errors import InputError, nearest
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most, equals
from paperworks.papers import _byteformer_claims as measure
from paperworks.papers import _byteformer_use as use
from paperworks.papers import card
from paperworks.papers._byteformer_files import FilesConfig
from paperworks.papers._byteformer_recipe import (
    Trained,
    baseline,
    evaluate,
    load_released,
    train,
    train_on_pixels,
    usual_kernel,
)
from paperworks.papers._byteformer_speech import TRAINING_FILES, open_recordings
from paperworks.papers._classification import DIGITS, AugmentConfig, NetworkConfig
from paperworks.papers._recognition import imagenet_steps
from paperworks.training import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig

MILLIONS = {
    "byteformer_tiny_k32": 9.011944,
    "byteformer_tiny_k8": 8.651560,
    "byteformer_small_k32": 31.9,
    "byteformer_base_k32": 119.2,
}

paper = Paper(
    card("byteformer"),
    parts=[ByteFormer, ByteStem, encode_image, encode_wave, open_files, open_recordings],
    variants={name: Variant(partial(ByteFormer, **arguments), MILLIONS.get(name)) for name, arguments in VARIANTS.items()},
)

STAGES = (
    Stage("linear", baseline),
    Stage("train", train),
    Stage("pixels", train_on_pixels),
    Stage("evaluate", evaluate),
    Stage("report", use.write_report),
)


def _small(kernel: int) -> NetworkConfig:
    sizes = {"width": 64, "depth": 6, "heads": 2, "window": 64, "kernel": kernel, "max_tokens": 0}
    return NetworkConfig("byteformer_tiny_k8", sizes)


def _budget(steps: int, seed: int) -> TrainConfig:
    schedule = ScheduleConfig("cosine", warmup=0.1)
    # every byte value has a vector of its own and most are rare, so these move faster
    stem = ParameterRule(r"(^|\.)stem\.", lr_scale=5.0)
    optimizer = OptimizerConfig("adamw", lr=2e-3, weight_decay=0.05, schedule=schedule, rules=(stem,))
    every = max(1, steps // 10)
    return TrainConfig(steps, 64, optimizers={"main": optimizer}, ema=0.99, clip=5.0, seed=seed, eval_every=every)


@paper.recipe("laptop")
def laptop(
    data: str = "default",
    format: ImageFormat = "tiff",
    size: int = 32,
    quality: int = 100,
    order: Order = "none",
    keep: float = 1.0,
    noise: int = 0,
    permute: bool = False,
    kernel: int | None = None,
    steps: int | None = None,
    pixels: bool = True,
    seed: int = 0,
) -> Recipe:
    """Images written as files, for a small ByteFormer, beside a transformer on pixels; minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        format: of the files: tiff, png (uncompressed), jpeg, or bare pixels fchw and fhwc
        size: pixels; images are cut or resized to it
        quality: of JPEG
        order: of the bytes: as they are, reverse, random, cyclic, stride or window
        keep: share of the values that a masking camera keeps, at fixed places (with fhwc or fchw)
        noise: integers of up to this size are added to the bytes
        permute: replace all byte values by a fixed permutation
        kernel: bytes of a token, an even number; two rows of pixels when none is given, 8 for JPEG
        steps: of training; 1000 for the digits, 3000 for other data
        pixels: train a transformer on pixels too, as wide and deep, with as many steps
        seed: of initial weights, order and augmentation
    """
    check_keep(format, keep)
    digits = data in DIGITS
    steps = steps or (1000 if digits else 3000)
    channels = 1 if digits else 3
    config = FilesConfig(
        data=data,
        image_size=size,
        crop_pct=0.9,
        network=_small(kernel or usual_kernel(format, size, channels, keep)),
        augment=AugmentConfig("shift" if digits or size == 32 else "crop", flip=not digits, smoothing=0.1),
        training=_budget(steps, seed),
        seed=seed,
        format=format,
        quality=quality,
        channels=channels,
        changes=Changes(order, keep, noise, permute),
        pixels=pixels,
    )
    return Recipe(config, STAGES)


@paper.recipe("files")
def files(data: str, longest: int = 1 << 17, kernel: int = 16, steps: int = 1000, seed: int = 0) -> Recipe:
    """Files of any kind, read as they lie: sound, photos, documents, programs.

    Args:
        data: a folder with a sub-folder of files per class
        longest: bytes; longer files are left out and listed
        kernel: bytes of a token, an even number; files of 100 kB take 64 or more, or every step is long
        steps: of training
        seed: of initial weights and order
    """
    network, augment = _small(kernel), AugmentConfig("none", smoothing=0.1)
    config = FilesConfig(
        data, network=network, augment=augment, training=_budget(steps, seed), seed=seed, format="raw", longest=longest
    )
    return Recipe(config, STAGES)


def _published_network(variant: str) -> NetworkConfig:
    if variant not in VARIANTS:
        raise InputError(f"no variant {variant!r}{nearest(variant, VARIANTS)}")
    return NetworkConfig(variant, {"max_tokens": 50_000})


def _published_training(steps: int, batch: int, warmup: int, micro_batch: int, seed: int) -> TrainConfig:
    """300 epochs; images and sound differ in the batch and the warm-up only."""
    schedule = ScheduleConfig("cosine", warmup=warmup, warmup_start=1e-3, end=0.02)
    return TrainConfig(
        steps,
        batch,
        micro_batch,
        optimizers={"main": OptimizerConfig("adamw", lr=1e-3, weight_decay=0.05, schedule=schedule)},
        ema=0.9999,
        seed=seed,
        workers=8,
        eval_every=steps // 60,
        checkpoint_every=steps // 300,
    )


@paper.recipe("paper")
def published(
    variant: str = "byteformer_tiny_k32",
    data: str = "imagenet",
    format: ImageFormat = "tiff",
    quality: int = 100,
    order: Order = "none",
    keep: float = 1.0,
    noise: int = 0,
    permute: bool = False,
    seed: int = 0,
    micro_batch: int = 48,
) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 768, augmentation on pixels before they are written.

    Args:
        variant: a network of the paper (paperworks show byteformer lists them)
        data: ImageNet as a folder of class folders, shards or parquet
        format: of the files; jpeg goes with byteformer_tiny_k8 (quality 100) or byteformer_tiny_k4 (quality 60)
        quality: of JPEG
        order: of the bytes: as they are, reverse, random, cyclic, stride or window; published for JPEG with 32 bytes a token
        keep: share of the values that a masking camera keeps (with fhwc or fchw); published with 4 bytes a token up to 0.1,
            8 for 0.25, 16 for 0.5 (--set network.arguments.kernel=16) and 32 for 0.75
        noise: integers of up to this size are added to the bytes; published are 5, 10 and 20, for fhwc with permute
        permute: replace all byte values by a fixed permutation
        seed: of initial weights, order and augmentation
        micro_batch: files per process and backward pass
    """
    check_keep(format, keep)
    training = _published_training(imagenet_steps(300, 768), 768, 7500, micro_batch, seed)
    config = FilesConfig(
        data=data,
        image_size=224,
        network=_published_network(variant),
        augment=AugmentConfig("imagenet", smoothing=0.1),
        training=training,
        watch=50_000,
        seed=seed,
        format=format,
        quality=quality,
        changes=Changes(order, keep, noise, permute),
        pixels=False,
    )
    return Recipe(config, STAGES)


@paper.recipe("speech")
def speech(
    data: str,
    variant: str = "byteformer_tiny_k32",
    samples: SampleFormat = "float32",
    seed: int = 0,
    micro_batch: int = 48,
) -> Recipe:
    """The published Speech Commands training: twelve classes, 300 epochs of batch 384, recordings moved by up to a tenth of a
    second, with faint background and mixup before they are written as WAV.

    Args:
        data: Speech Commands v2 as distributed (folders of words beside testing_list.txt), or class folders of WAV files of
            16 kHz
        variant: a network of the paper; published besides 32 bytes a token are 16, and 8 and 4 for shorter samples
        samples: float32, int32, int16 or uint8
        seed: of initial weights, order and augmentation
        micro_batch: files per process and backward pass
    """
    config = FilesConfig(
        data=data,
        network=_published_network(variant),
        augment=AugmentConfig("shift", mixup=1.0, smoothing=0.1),
        training=_published_training(round(300 * TRAINING_FILES / 384), 384, 500, micro_batch, seed),
        watch=5000,
        seed=seed,
        format="wav",
        samples=samples,
        pixels=False,
    )
    return Recipe(config, STAGES)


@paper.recipe("released")
def released(
    weights: str,
    format: ImageFormat | Literal["raw", "wav"] = "tiff",
    quality: int = 100,
    samples: SampleFormat = "float32",
    order: Order = "none",
    keep: float = 1.0,
    noise: int = 0,
    permute: bool = False,
    window: int | None = None,
) -> Recipe:
    """No training: the authors' weights, to predict and evaluate with. Give what they were trained on.

    Args:
        weights: a file, such as imagenet_tiff.pt
        format: of the files; wav for speech_commands_wav, raw for files that are read as they lie, such as MP3
        quality: of JPEG
        samples: of WAV files
        order: of the bytes
        keep: share of the values that the camera keeps (with fhwc or fchw)
        noise: integers of up to this size are added
        permute: byte values are permuted (imagenet_obfuscation)
        window: tokens that see one another; 128 unless said otherwise, 32 for speech_commands_mp3_k4_w32
    """
    check_keep(format, keep)
    config = FilesConfig(
        data="",
        image_size=224,
        network=NetworkConfig("byteformer_tiny_k32", weights=weights),
        augment=AugmentConfig("crop"),
        format=format,
        quality=quality,
        samples=samples,
        longest=1 << 31,  # the network's positions are the limit
        changes=Changes(order, keep, noise, permute),
    )
    return Recipe(config, (Stage("train", partial(load_released, window)),))


# --- verbs ------------------------------------------------------------------------------------------------------------


@paper.verb("predict")
def predict(run: Run, files: str, *, top: int = 5, raw: bool = False) -> list[dict[str, Any]]:
    """The most likely classes of your files.

    Args:
        files: a folder or a file; for a run on images also whatever holds images, which are cut to the run's size and written
            in its format, as WAV files are for a run on recordings
        top: classes per file
        raw: read files as they lie, without looking into them; runs of the recipe `files` always do
    """
    return use.predict(Trained.of(run), files, top, raw)


@paper.verb("evaluate")
def evaluate_on(
    run: Run, *, data: str | None = None, split: Literal["train", "test", "all"] = "test", raw: bool = False
) -> dict[str, Any]:
    """Top-1 and top-5 on labelled files.

    Args:
        data: a folder with a sub-folder per class, or images as for `run`; the run's own data by default
        split: which part of it
        raw: read files as they lie
    """
    data = data or run.record["config"]["data"]
    if not data:
        raise InputError("this run has no data of its own: name labelled files with --data")
    return use.evaluate_on(Trained.of(run), data, split, raw)


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=at_least(-5.0), says="TIFF bytes within 5 points of a patch model with at least as many parameters")
def tiff_bytes(bench: Bench) -> Measured:
    return measure.bytes_against_pixels(bench)


@paper.claim(
    "c3",
    rule=measure.same_sizes,
    says="width, heads and depth equal those of DeiT-Ti; 7.2 M parameters without positions",
)
def like_deit(bench: Bench) -> Measured:
    return measure.against_deit()


@paper.claim("c4", rule=at_least(20.0), says="TIFF, PNG and JPEG: at least 20 % each (chance is 10 %), nothing is decoded")
def without_decoding(bench: Bench) -> Measured:
    return measure.files_of_three_formats(bench)


@paper.claim("c5", rule=at_least(0.0), says="at least as accurate as a linear classifier on the samples, on every seed")
def sound(bench: Bench) -> Measured:
    return measure.sound_against_linear(bench)


@paper.claim("c7", rule=at_least(50.0), says="one configuration: at least 50 % on images and on sound (chance is 10 %)")
def one_configuration(bench: Bench) -> Measured:
    return measure.images_and_sound(bench)


@paper.claim("c8", rule=equals(0.0), says="bytes and embedding permuted together: logits differ by nothing")
def obfuscated(bench: Bench) -> Measured:
    return measure.permuted_alphabet(bench)


@paper.claim(
    "c9", rule=equals(90.0, absolute=0.001), says="of 224 x 224 x 3 values floor(N / 10) are kept, the same for every image"
)
def camera(bench: Bench) -> Measured:
    return measure.camera()


@paper.claim("c10", rule=at_most(15.0), says="one tenth of the values costs at most 15 points on every seed")
def masked(bench: Bench) -> Measured:
    return measure.camera_against_all(bench)
