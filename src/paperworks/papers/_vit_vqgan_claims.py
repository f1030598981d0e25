"""What ViT-VQGAN's claims are measured on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import geometric_mean, mean, median
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from paperworks.analysis.counting import count_parameters
from paperworks.analysis.metrics import frechet_distance, psnr
from paperworks.analysis.timing import alternate
from paperworks.data import ImageSource, open_images
from paperworks.data.photos import random_crops
from paperworks.errors import InputError
from paperworks.generators.gpt import GPT
from paperworks.objectives.perceptual import PyramidLoss
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Bench, Measured, Recipe, Run, write_json
from paperworks.papers._code_bench import usage_and_error
from paperworks.papers._generation import (
    FramedImages,
    framed,
    framed_batches,
    labels_of,
    open_split,
    tokenizer_training,
    training_images,
)
from paperworks.papers._generation_report import Judge
from paperworks.papers._token_recipe import Kit, make_images
from paperworks.tokenizers.protocol import reconstruct
from paperworks.tokenizers.quantizers import VectorQuantizer
from paperworks.tokenizers.vit_vqgan import ViTVQGAN
from paperworks.tokenizers.vqgan_lc import VQGANLC
from paperworks.training import fit

CODES = 4096


def code_usage(bench: Bench) -> Measured:
    kinds: dict[str, tuple[int, Callable[[], VectorQuantizer]]] = {
        "plain 64": (64, partial(VectorQuantizer, CODES, 64)),
        "plain 8": (8, partial(VectorQuantizer, CODES, 8)),
        "normalised 8": (8, partial(VectorQuantizer, CODES, 8, normalize=True, straight_through="raw", start=0.0)),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for seed in bench.seeds:
        for name, (channels, build) in kinds.items():
            found[name].append(usage_and_error(bench, name.replace(" ", "-"), seed, build, channels, seeded=False))
    ratios = [best["usage"] / plain["usage"] for best, plain in zip(found["normalised 8"], found["plain 64"])]
    errors = [best["error"] / plain["error"] for best, plain in zip(found["normalised 8"], found["plain 64"])]
    words = "; ".join(
        f"{name}: {100 * mean(run['usage'] for run in runs):.2f} % in use, error {mean(run['error'] for run in runs):.4f}"
        for name, runs in found.items()
    )
    shares = [100 * run["usage"] for run in found["normalised 8"]]
    scale = (
        f"{CODES} codes, 8 x 8 patches of the embedded photos, the same MLP autoencoder, 500 steps, {len(bench.seeds)} seeds; "
        "all start at random, as they were published"
    )
    numbers = {"usage ratios": ratios, "error ratios": errors, "runs": found}
    return Measured(mean(shares), scale, words, shares, list(bench.seeds), numbers)


def ten_times_and_better(measured: Measured) -> bool:
    numbers = measured.numbers
    return all(ratio >= 10 for ratio in numbers["usage ratios"]) and all(ratio < 1 for ratio in numbers["error ratios"])


# --- against a CNN ----------------------------------------------------------------------------------------------------

SIDE, STEPS = 32, 400


def _vit() -> nn.Module:
    part = {"dim": 128, "depth": 3, "heads": 4, "mlp_dim": 512, "head_dim": 32}
    return ViTVQGAN(SIDE, 8, part, part, code_dim=8, vocab_size=512)


def _cnn() -> nn.Module:
    """As many parameters, tokens and codes; the plain quantiser of VQGAN with its higher dimension and its weights."""
    small: dict[str, Any] = {"z_channels": 64, "ch": 20, "ch_mult": (1, 2, 2, 4), "num_res_blocks": 1, "groups": 4}
    model = VQGANLC(SIDE, 512, embed_dim=64, kind="fc", attention=False, **small)
    model.quantize = VectorQuantizer(512, 64, beta=0.25, codebook_weight=1.0)
    return model


def against_cnn(bench: Bench) -> Measured:
    """Both trained for the same steps on the same crops of photos; the ratio of their errors on held-out crops."""
    photos = open_images("photos", labels="none", channels=3)
    half = range(0, len(photos), 2), range(1, len(photos), 2)
    train, test = (random_crops(photos.subset(list(part)), SIDE, count, seed=1) for part, count in zip(half, (2000, 500)))
    held_out = framed(test, SIDE)
    found: dict[str, list[float]] = {"ViT": [], "CNN": []}
    for seed in bench.seeds:
        for name, build in {"ViT": _vit, "CNN": _cnn}.items():
            found[name].append(_error(bench, name, build, seed, train, held_out))
    ratios = [vit / cnn for vit, cnn in zip(found["ViT"], found["CNN"])]
    sizes = {"ViT": round(count_parameters(_vit()) / 1e6, 2), "CNN": round(count_parameters(_cnn()) / 1e6, 2)}
    words = ", ".join(f"{name} ({sizes[name]} M) {mean(values):.5f}" for name, values in found.items())
    scale = f"{SIDE}-pixel crops of the embedded photos, 16 tokens of 512 codes, {STEPS} steps, {len(bench.seeds)} seeds"
    return Measured(mean(ratios), scale, f"held-out squared error: {words}", ratios, list(bench.seeds), {"runs": found})


def _error(bench: Bench, name: str, build: Callable[[], Any], seed: int, train: Any, held_out: Tensor) -> float:
    folder = bench.folder / f"{name}-{seed}"
    path = folder / "error.json"
    if path.is_file():
        return float(json.loads(path.read_text()))
    torch.manual_seed(seed)
    objective = TokenizerTraining(build(), perceptual=PyramidLoss())
    budget = replace(tokenizer_training(STEPS, 64, 1e-3), seed=seed, channels_last=name == "CNN")
    fit(objective, training_images(train, SIDE, seed, 64), budget, folder, label=f"{name}, seed {seed}")
    made, usage = reconstruct(objective.tokenizer.eval(), held_out)
    error = float((made - held_out).square().mean())
    bench.say(f"  {name}, seed {seed}: error {error:.5f} ({psnr(made, held_out):.2f} dB), {usage.usage:.0%} of the codes")
    write_json(path, error)
    return error


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def speed_against_cnn(bench: Bench) -> Measured:
    """On one thread, which favours neither side's kernels."""
    images = torch.rand(32, 3, SIDE, SIDE)
    ratios, table = [], {}
    for seed in bench.seeds:
        torch.manual_seed(seed)
        vit, cnn = _vit().eval(), _cnn().eval().to(memory_format=torch.channels_last)
        works = {"ViT": lambda net=vit: net.decode(net.encode(images)), "CNN": lambda net=cnn: net.decode(net.encode(images))}
        with one_thread():
            times = {name: median(seconds) for name, seconds in alternate(works, rounds=5).items()}
        ratios.append(times["CNN"] / times["ViT"])
        table = {name: round(len(images) / seconds, 1) for name, seconds in times.items()}
    scale = f"encode and decode 32 images of {SIDE} pixels, float32, one thread"
    words = ", ".join(f"{name} {value} images a second" for name, value in table.items())
    return Measured(geometric_mean(ratios), scale, words, ratios, list(bench.seeds), table, "x")


# --- counted ----------------------------------------------------------------------------------------------------------

PRINTED = {
    "small": ("vitvqgan_small", 32),
    "base": ("vitvqgan_base", 91),
    "large": ("vitvqgan_small_large", 599),
    "VIM-B": ("vim_base", 650),
    "VIM-L": ("vim_large", 1697),
}
"""the network that is built for each, and millions of the paper's table 1 (of a tokenizer's larger side)"""


def printed_sizes(builds: Mapping[str, Callable[[], nn.Module]]) -> Measured:
    """Depth and width of the networks as they are built here, put into the formula that gives the printed numbers: 11 d^2 a
    block, one less than the 12 d^2 of a block's matrices, and tables besides."""
    found = {}
    for name, (variant, _) in PRINTED.items():
        with torch.device("meta"):
            model = builds[variant]()
        blocks, width = _depth_and_width(model)
        found[name] = (blocks * 11 * width**2 + (2 * 8192 + 1024) * width) / 1e6
    worst = max(abs(round(found[name]) - millions) / millions for name, (_, millions) in PRINTED.items())
    words = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
    return Measured(worst, "any", f"millions by the formula: {words}", numbers=found)


def _depth_and_width(model: nn.Module) -> tuple[int, int]:
    stack: Any = model.stack if isinstance(model, ViTVQGAN) else model
    return len(stack.blocks), stack.norm.normalized_shape[0]


def similar_sizes() -> Measured:
    """iGPT-L as its paper describes it: 48 blocks of width 1536, 512 colours, 32 x 32 positions."""
    with torch.device("meta"):
        vim = count_parameters(GPT(1000, 1024, 8192, 2048, 36, 32)) / 1e6
        igpt = count_parameters(GPT(0, 1024, 512, 1536, 48, 16)) / 1e6
    return Measured(
        vim / igpt, "any", f"VIM-Large {vim:.0f} M, iGPT-L {igpt:.0f} M as built here", numbers={"VIM": vim, "iGPT": igpt}
    )


# --- one small model for three uses -----------------------------------------------------------------------------------

STEPS_OF_GENERATOR, SAMPLES = 400, 200


def _trained(bench: Bench, kit: Kit, config: Any, seed: int) -> Run:
    """The laptop recipe's first two stages with a shorter budget."""
    config = replace(
        config,
        seed=seed,
        copies=2,
        tokenizer_training=replace(config.tokenizer_training, steps=500, seed=seed),
        generator_training=replace(config.generator_training, steps=STEPS_OF_GENERATOR, seed=seed),
    )
    folder = bench.folder / f"model-{seed}"
    run = Run.open(folder, slug="vit-vqgan", recipe="check", arguments={}, config=config, command="paperworks check vit-vqgan")
    run.execute(Recipe(config, kit.stages[:2]), say=bench.say)
    return run


def fitted_probe(features: Tensor, labels: Tensor) -> Pipeline:
    """A linear classifier of standardised features [N, D]."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return probe.fit(features.numpy(), labels.numpy())


def _probe_accuracy(features: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    predicted = fitted_probe(features, labels).predict(test.numpy())
    return 100 * float((torch.from_numpy(predicted) == truth).float().mean())


@torch.inference_mode()
def _hidden(tokenizer: Any, model: GPT, images: FramedImages, block: int) -> Tensor:
    """[N, dim]: mean over the tokens of a block's outputs, without a class."""
    parts = []
    for batch in images.split(200):
        tokens = torch.cat(tokenizer.encode(batch), 1)
        parts.append(model.hidden(torch.full((len(tokens),), model.num_classes), tokens, block))
    return torch.cat(parts)


def _features(tokenizer: Any, model: GPT, config: Any, block: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Per split: features of its images, and labels."""
    found = {}
    for split in ("train", "test"):
        images = framed_batches(open_split(config.data, split, channels=config.channels), config.image_size)
        found[split] = (_hidden(tokenizer, model, images, block), images.labels)
    return found


def probed(run: Run, kit: Kit, config: Any, source: ImageSource, block: int) -> list[dict[str, Any]]:
    """What a probe on `block`, fitted to the run's training images, takes each image for."""
    tokenizer, model = kit.tokenizer_of(run), kit.generator_of(run)
    names = run.result("tokenizer")["classes"]
    if len(names) < 2:
        raise InputError(f"{run.folder} was trained on one class: a probe needs images of at least two to tell apart")
    train = framed_batches(open_split(config.data, "train", channels=config.channels), config.image_size)
    probe = fitted_probe(_hidden(tokenizer, model, train, block), train.labels)
    chances = probe.predict_proba(_hidden(tokenizer, model, framed_batches(source, config.image_size), block).numpy())
    seen = probe.classes_[chances.argmax(1)]  # classes without training images are unknown to the probe
    return [
        {"image": source.key(number), "class": names[seen[number]], "probability": round(float(row.max()), 4)}
        for number, row in enumerate(chances)
    ]


def probe(bench: Bench, kit: Kit, config: Any) -> Measured:
    depth, tokens = config.generator.depth, 0
    blocks = {"middle block": depth // 2, "last block": depth}
    found: dict[str, list[float]] = {name: [] for name in ("pixels", *blocks)}
    for seed in bench.seeds:
        run = _trained(bench, kit, config, seed)
        tokenizer, model = kit.tokenizer_of(run), kit.generator_of(run)
        tokens = model.tokens
        train, test = (open_split(config.data, split, channels=config.channels) for split in ("train", "test"))
        pixels = [framed(source, config.image_size).flatten(1) for source in (train, test)]
        found["pixels"].append(_probe_accuracy(pixels[0], labels_of(train), pixels[1], labels_of(test)))
        for name, block in blocks.items():
            parts = _features(tokenizer, model, config, block)
            found[name].append(_probe_accuracy(*parts["train"], *parts["test"]))
        bench.say(f"  seed {seed}: " + ", ".join(f"{name} {values[-1]:.1f} %" for name, values in found.items()))
    points = [middle - pixel for middle, pixel in zip(found["middle block"], found["pixels"])]
    words = ", ".join(f"{name} {mean(values):.1f} %" for name, values in found.items())
    scale = (
        f"digits as {tokens} tokens, {depth} blocks of {config.generator.dim}, {STEPS_OF_GENERATOR} steps; logistic regression"
    )
    return Measured(mean(points), scale, f"{words}; points above pixels", points, list(bench.seeds), {"runs": found})


def one_model(bench: Bench, kit: Kit, config: Any) -> Measured:
    """How many of the three uses one network has learned; an untrained one of the same size stands beside it."""
    seed = bench.seeds[0]
    run = _trained(bench, kit, config, seed)
    tokenizer, model = kit.tokenizer_of(run), kit.generator_of(run)
    torch.manual_seed(seed)
    untrained: Any = kit.build_generator(config, model.num_classes).eval()
    judge = Judge.of(config.data, bench.folder / "judge")
    quiet = replace(config, sampling=replace(config.sampling, guidance=0.0))
    labels = torch.arange(SAMPLES) % model.num_classes
    nobody = torch.full((SAMPLES,), model.num_classes)
    recognised = 100 * judge.accuracy(make_images(kit, quiet, model, tokenizer, labels, seed), labels)
    test = framed(open_split(config.data, "test", channels=config.channels), config.image_size)
    real = judge.features(test)
    distances = [
        frechet_distance(real, judge.features(make_images(kit, quiet, network, tokenizer, nobody, seed)))
        for network in (model, untrained)
    ]
    probes = []
    for network in (model, untrained):
        parts = _features(tokenizer, network, config, max(1, config.generator.depth // 2))
        probes.append(_probe_accuracy(*parts["train"], *parts["test"]))
    chance = 100 / model.num_classes
    works = (recognised > 3 * chance) + (distances[0] < distances[1]) + (probes[0] > max(3 * chance, probes[1]))
    detail = (
        f"samples of a class recognised {recognised:.1f} % (chance {chance:.0f} %); Frechet distance without a class "
        f"{distances[0]:.1f}, untrained {distances[1]:.1f}; a probe on the middle block {probes[0]:.1f} %, untrained "
        f"{probes[1]:.1f} %"
    )
    numbers = {"recognised": recognised, "distances": distances, "probes": probes}
    scale = f"digits, {STEPS_OF_GENERATOR} steps, {SAMPLES} samples of each kind"
    return Measured(works, scale, detail, seeds=[seed], numbers=numbers)
