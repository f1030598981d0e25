"""VAR (2404.02905): images as a sequence of growing token maps, each predicted at once from the smaller ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from paperworks.data import open_images
from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.next_scale import SCALES_256, SCALES_512, NextScaleTransformer
from paperworks.generators.next_scale_sampling import inpaint, rejection_sample
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most, equals
from paperworks.papers import card
from paperworks.papers._generation import default_channels, open_test, tokenizer_training
from paperworks.papers._generation_report import Judge, chosen_labels, edited_picture
from paperworks.papers._var_claims import (
    attention_exponents,
    count_passes,
    edit_without_training,
    sampling_seconds,
    scaling,
    side_by_side,
)
from paperworks.papers._var_recipe import (
    SamplingConfig,
    TokenizerConfig,
    TransformerConfig,
    VARConfig,
    load_tokenizer,
    load_transformer,
    train_tokenizer,
    train_transformer,
)
from paperworks.papers._var_report import evaluate, make_images, write_report
from paperworks.reporting import save_grid
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQ, MultiScaleVQVAE
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

STAGES = (Stage("tokenizer", train_tokenizer), Stage("transformer", train_transformer), Stage("report", write_report))


def _transformer(depth: int, shared_aln: bool = False) -> NextScaleTransformer:
    """The published sizes: width 64 x depth, as many heads as layers."""
    scales = SCALES_512 if shared_aln else SCALES_256
    return NextScaleTransformer(1000, depth, 64 * depth, depth, scales, shared_aln=shared_aln)


paper = Paper(
    card("var"),
    parts=[MultiScaleVQ, MultiScaleVQVAE, NextScaleTransformer],
    variants={
        "var_vqvae": Variant(MultiScaleVQVAE, 108.95, "tokenizer of all models, 4096 codes x 32"),
        "var_d16": Variant(partial(_transformer, 16), 310.28, "256 px"),
        "var_d20": Variant(partial(_transformer, 20), 600.92, "256 px"),
        "var_d24": Variant(partial(_transformer, 24), 1033.40, "256 px"),
        "var_d30": Variant(partial(_transformer, 30), 2010.02, "256 px"),
        "var_d36_s": Variant(partial(_transformer, 36, shared_aln=True), 2353.89, "512 px, one adaLN for all blocks"),
    },
)


@paper.recipe("laptop")
def laptop(data: str = "default", image_size: Literal[32, 64] = 32, seed: int = 0) -> Recipe:
    """Both stages on 32 or 64 pixel images in minutes on two cores.

    Args:
        data: a folder of images, parquet, shards, or a name; the default is 5000 handwritten digits
        image_size: 64 has 122 tokens an image instead of 30 and wants more training than the default budget
        seed: of initial weights, data order and sampling
    """
    sizes = (1, 2, 3, 4) if image_size == 32 else (1, 2, 3, 4, 6, 8)
    config = VARConfig(
        data=data,
        image_size=image_size,
        channels=default_channels(data),
        copies=8,
        seed=seed,
        tokenizer=TokenizerConfig(patch_nums=sizes),
    )
    return Recipe(config, STAGES)


@paper.recipe("paper")
def imagenet256(data: str = "imagenet", depth: int = 16, seed: int = 0) -> Recipe:
    """The published setting: 256 pixels, batch 768 (1024 for d30), 200 to 350 epochs; needs a cluster and torchrun.

    Args:
        data: ImageNet as a folder of class folders, shards or parquet
        depth: 16, 20, 24 or 30; the width is 64 times it
        seed: of initial weights, data order and sampling
    """
    batch = 1024 if depth >= 30 else 768
    epochs = {16: 200, 20: 250}.get(depth, 350)
    steps = epochs * 1_281_167 // batch
    lr = (1e-4 if depth < 24 else 8e-5) * batch / 256
    schedule = ScheduleConfig("flat_linear", warmup=1 / 50, warmup_start=0.005, end=0.1 if depth <= 20 else 0.01)
    optimizer = OptimizerConfig(
        lr=lr,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        weight_decay_end=0.08 if depth >= 30 else None,
        schedule=schedule,
    )
    config = VARConfig(
        data=data,
        image_size=256,
        channels=3,
        copies=1,
        seed=seed,
        tokenizer=TokenizerConfig(
            patch_nums=SCALES_256,
            vocab_size=4096,
            z_channels=32,
            ch=160,
            ch_mult=(1, 1, 2, 2, 4),
            num_res_blocks=2,
            groups=32,
            perceptual="lpips",
            discriminator_width=64,
            discriminator_layers=3,
        ),
        tokenizer_training=tokenizer_training(250_000, 256, 1e-4),
        transformer=TransformerConfig(depth, 64 * depth, depth, drop_path_rate=0.1 * depth / 24),
        transformer_training=TrainConfig(steps, batch, optimizers={"main": optimizer}, clip=2.0, checkpoint_every=5000),
        sampling=SamplingConfig(1.5, 900, 0.96, 50_000),
    )
    return Recipe(config, STAGES)


@paper.verb("sample")
def sample_images(
    run: Run,
    *,
    classes: tuple[str, ...] = (),
    count: int = 10,
    best_of: int = 1,
    image: Path | None = None,
    mask: Path | None = None,
    seed: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Makes images, or makes a part of one anew.

    Args:
        classes: names of classes to make; with `image`, the one class to edit towards (none: fill in freely)
        count: images per class, or versions of the edited image
        best_of: make this many candidates per image and keep the one its classifier likes best (rejection sampling)
        image: a picture to edit
        mask: a picture of the same shape, white where pixels are to be made anew (default: the centre)
        seed: another one gives other images
        out: PNG to write, by default samples.png in the run's folder
    """
    config: VARConfig = run.config(VARConfig)
    model, tokenizer = load_transformer(run), load_tokenizer(run)
    labels = chosen_labels(run.result("tokenizer")["classes"], classes)
    if image is not None:
        made = _edited(config, model, tokenizer, image, mask, labels if classes else None, count, seed)
        columns = count + 2
    else:
        wanted = labels.repeat_interleave(count)
        made, columns = make_images(config, model, tokenizer, wanted, seed), count
        if best_of > 1:
            judge = Judge.of(config.data, run.stage_folder("judge"))
            if not judge.knows_classes:
                raise InputError("--best-of needs a classifier of these classes, which there is for the embedded digits only")
            made, _ = rejection_sample(
                lambda labels, first: make_images(config, model, tokenizer, labels, seed, first),
                lambda images, labels: judge.network.logits(images).log_softmax(1).gather(1, labels[:, None])[:, 0],
                wanted,
                best_of,
            )
    path = save_grid(made, out or run.folder / "samples.png", columns)
    return {"images": len(made), "file": str(path)}


@paper.verb("evaluate")
def evaluate_run(run: Run, *, data: str | None = None) -> dict[str, Any]:
    """Measures a run again, on its own held-out images or on others.

    Args:
        data: other images of the same classes
    """
    config: VARConfig = run.config(VARConfig)
    channels = config.channels
    test = open_test(config.data, channels=channels) if data is None else open_images(data, channels=channels)
    return evaluate(config, run, test)


@paper.verb("export")
def export(run: Run, *, to: Literal["onnx"] = "onnx", out: Path | None = None) -> dict[str, Any]:
    """Writes the tokenizer's decoder (features to image) for other runtimes; the weights of both networks are already in
    the run as safetensors.

    Args:
        to: the format
        out: file to write, by default decoder.onnx in the run's folder
    """
    tokenizer = load_tokenizer(run)
    path = out or run.folder / "decoder.onnx"
    tokenizer.forward = tokenizer.decode_features
    torch.onnx.export(
        tokenizer, (tokenizer.begin(1),), path, input_names=["features"], output_names=["image"], dynamo=True, verbose=False
    )
    return {"format": to, "file": str(path)}


def _edited(
    config: VARConfig,
    model: NextScaleTransformer,
    tokenizer: MultiScaleVQVAE,
    image: Path,
    mask: Path | None,
    labels: torch.Tensor | None,
    count: int,
    seed: int,
) -> torch.Tensor:
    """The picture, the picture with its hole, and `count` ways to fill it."""
    if labels is not None and len(labels) != 1:
        raise InputError("name one class to edit towards")
    label = int(labels[0]) if labels is not None else model.num_classes
    part = config.sampling

    def fill(images: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        draws, wanted = Draws.seeded(seed, count), torch.full((count,), label)
        settings: dict[str, Any] = {"guidance": part.guidance, "top_k": part.top_k, "top_p": part.top_p}
        return inpaint(model, tokenizer, images, hole, wanted, draws, **settings)

    return edited_picture(image, mask, config.image_size, config.channels, count, fill)


# --- claims -------------------------------------------------------------------------------------------------------------

TOY = "MNIST-5k at 32 px, 4 x 4 latents, 900 tokenizer steps; 4 layers x 128 for 600 steps (raster order: for as long)"


@paper.claim(
    "passes",
    rule=equals(10),
    says="exactly 10, counted while sampling",
    statement="A 256-pixel image takes 10 sequential passes where raster order takes 256",
    paper_value="10",
    unit="passes",
)
def sequential_passes(bench: Bench) -> Measured:
    ours, theirs = count_passes()
    return Measured(
        ours, "any", f"{ours} passes; next-token on the same 16 x 16 grid: {theirs}", numbers={"next_token": theirs}
    )


@paper.claim(
    "attention",
    rule=equals(4.0, absolute=0.1),
    says="exponent 4 within 0.1",
    statement="Generating n x n tokens costs O(n^4) attention, against O(n^6) in raster order",
    paper_value="4",
    unit="exponent of n",
)
def attention_cost(bench: Bench) -> Measured:
    token, scale = attention_exponents()
    return Measured(
        scale, "n from 64 to 1024", f"counted exponent {scale:.3f}; raster order {token:.3f}", numbers={"next_token": token}
    )


@paper.claim("c3", rule=at_least(5.0), says="at least 5x in every round (the paper's 20x is on a GPU)")
def sampling_speed(bench: Bench) -> Measured:
    times = sampling_seconds(len(bench.seeds), say=bench.say)
    ratios = [token / scale for scale, token in times]
    ours, theirs = (statistics.median(side) for side in zip(*times))
    return Measured(
        statistics.median(ratios),
        "d16 width, one guided 256-pixel image, random weights, bfloat16 on this processor",
        f"{ours:.2f} s against {theirs:.2f} s, both with cached keys and values",
        ratios,
        bench.seeds,
        {"next_scale_seconds": ours, "next_token_seconds": theirs},
    )


def _compared(bench: Bench, key: str, ratio: Callable[[list[float], list[float]], float], words: str) -> Measured:
    found = [side_by_side(bench, seed) for seed in bench.seeds]
    ratios = [ratio(one[key]["scale"], one[key]["token"]) for one in found]
    ours = ", ".join(f"{one[key]['scale'][-1]:.3g}" for one in found)
    theirs = ", ".join(f"{one[key]['token'][-1]:.3g}" for one in found)
    numbers = {f"seed{seed}": one for seed, one in zip(bench.seeds, found)}
    detail = f"{words}: next-scale {ours}; raster order {theirs}"
    return Measured(statistics.median(ratios), TOY, detail, ratios, bench.seeds, numbers, "x")


@paper.claim("c1", rule=at_least(1.0), says="raster order's Frechet distance over next-scale's is at least 1 on every seed")
def better_distance(bench: Bench) -> Measured:
    return _compared(bench, "distance", lambda ours, theirs: theirs[-1] / ours[-1], "Frechet distance after equal time")


@paper.claim("c2", rule=at_least(1.0), says="next-scale's classifier score over raster order's is at least 1 on every seed")
def better_score(bench: Bench) -> Measured:
    return _compared(bench, "score", lambda ours, theirs: ours[-1] / theirs[-1], "classifier score after equal time")


@paper.claim("c8", rule=at_least(1.0), says="the ratio of Frechet distances is at least 1 at every checkpoint of every seed")
def learns_faster(bench: Bench) -> Measured:
    def smallest(ours: list[float], theirs: list[float]) -> float:
        return min(b / a for a, b in zip(ours, theirs))

    return _compared(bench, "distance", smallest, "Frechet distance at the end; the ratio is the smallest over three times")


@paper.claim("c6", rule=at_most(-0.95), says="correlation of log loss and log parameters at most -0.95 on every seed")
def power_law(bench: Bench) -> Measured:
    found = [scaling(bench, seed) for seed in bench.seeds]
    correlations = [one["correlation"] for one in found]
    return Measured(
        statistics.median(correlations),
        "MNIST-5k tokens, 4 layers of width 32 to 160, 200 steps each",
        f"exponents {', '.join(format(one['exponent'], '.3f') for one in found)}",
        correlations,
        bench.seeds,
        {f"seed{seed}": one for seed, one in zip(bench.seeds, found)},
    )


@paper.claim(
    "c7",
    rule=at_most(0.999),
    says="error in the hole below that of another digit's pixels in every task and seed, and kept tokens exact",
)
def editing(bench: Bench) -> Measured:
    found = [edit_without_training(bench, seed) for seed in bench.seeds]
    ratios = [one["ratio"] if one["kept_tokens_exact"] else float("inf") for one in found]
    edited = ", ".join(f"{one['edited_to_target']:.0%}" for one in found)
    return Measured(
        statistics.median(ratios),
        TOY,
        f"worst of centre, lower half and surroundings; edited towards another class, recognised as it: {edited}",
        ratios,
        bench.seeds,
        {f"seed{seed}": one for seed, one in zip(bench.seeds, found)},
    )
