"""What DetailFlow's claims are measured on: counts, timings at published sizes, small tokenizers with and without a part."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from statistics import geometric_mean, mean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.analysis.timing import Work, alternate
from paperworks.generators.draws import Draws
from paperworks.generators.group_parallel import GroupParallelTransformer, sample_tokens
from paperworks.generators.next_scale import SCALES_256, NextScaleTransformer
from paperworks.generators.next_scale_sampling import sample as sample_var
from paperworks.objectives.detail_training import DetailTraining, GroupPrediction, training_sequences
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._generation import (
    TensorSet,
    adamw,
    framed,
    framed_at_random,
    labels_of,
    open_split,
    open_test,
    perceptual_loss,
    training_images,
)
from paperworks.tokenizers.detailflow import DetailFlow
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.tokenizers.resolution_map import resize
from paperworks.training import TrainConfig, fit

# --- counted ----------------------------------------------------------------------------------------------------------


def tokens_of_image() -> Measured:
    torch.manual_seed(0)
    model = DetailFlow(64, 16, 128, 8, (16, 1, 2, 32), (16, 1, 2, 32), vocab_size=32).eval()
    (found,) = model.encode(torch.rand(1, 3, 64, 64))
    scales = sum(side * side for side in SCALES_256)
    detail = f"VAR's scales sum to {scales}, {scales / found.shape[1]:.1f} times as many"
    return Measured(found.shape[1], "any", detail, numbers={"VAR": scales})


# --- timed at published sizes, random weights -------------------------------------------------------------------------


def parallel_speed(bench: Bench) -> Measured:
    torch.manual_seed(0)
    grouped = GroupParallelTransformer(tokens=128, group=8).eval()
    single = GroupParallelTransformer(tokens=128, group=1).eval()

    def sampling(model: GroupParallelTransformer, seed: int) -> Work:
        return lambda: sample_tokens(model, torch.tensor([0]), Draws.seeded(seed, 1))

    times = _in_turns(bench, lambda seed: {"groups": sampling(grouped, seed), "singly": sampling(single, seed)})
    ratios = [slow / fast for fast, slow in zip(times["groups"], times["singly"])]
    words = f"{grouped.passes} passes {mean(times['groups']):.2f} s, {single.passes} passes {mean(times['singly']):.2f} s"
    scale = f"GPT-L, 128 tokens, one guided image, float32, {torch.get_num_threads()} threads, random weights, both cached"
    return Measured(geometric_mean(ratios), scale, words, ratios, list(bench.seeds), {"passes": grouped.passes}, "x")


def _in_turns(bench: Bench, works: Callable[[int], dict[str, Work]]) -> dict[str, list[float]]:
    """Seconds of each work, once for every seed."""
    times: dict[str, list[float]] = {}
    for seed in bench.seeds:
        for name, found in alternate(works(seed), rounds=1, warmup=int(seed == bench.seeds[0])).items():
            times.setdefault(name, []).extend(found)
    return times


def against_var(bench: Bench) -> Measured:
    torch.manual_seed(0)
    ours, decoder = GroupParallelTransformer().eval(), DetailFlow().eval()
    var, vqvae = NextScaleTransformer(depth=16).eval(), MultiScaleVQVAE().eval()
    label = torch.tensor([0])

    @torch.inference_mode()
    def detailflow(seed: int) -> Tensor:
        return decoder.decode([sample_tokens(ours, label, Draws.seeded(seed, 1))])

    @torch.inference_mode()
    def next_scale(seed: int) -> Tensor:
        made = sample_var(var, vqvae, label, Draws.seeded(seed, 1), guidance=1.5)
        return vqvae.decode_features(made.features)

    times = _in_turns(bench, lambda seed: {"DetailFlow": partial(detailflow, seed), "VAR": partial(next_scale, seed)})
    ratios = [slow / fast for fast, slow in zip(times["DetailFlow"], times["VAR"])]
    words = f"DetailFlow with GPT-L {mean(times['DetailFlow']):.2f} s, VAR-d16 {mean(times['VAR']):.2f} s an image"
    scale = f"one guided 256-pixel image and its decoding, float32, {torch.get_num_threads()} threads, random weights"
    return Measured(geometric_mean(ratios), scale, words, ratios, list(bench.seeds), unit="x")


# --- trained small ----------------------------------------------------------------------------------------------------

STEPS = {"tokenizer": 600, "generator": 300}
SIZES: dict[str, Any] = {"vocab_size": 512, "in_channels": 1}


def _tokenizer(bench: Bench, name: str, seed: int, **options: Any) -> DetailFlow:
    torch.manual_seed(seed)
    model = DetailFlow(32, 8, 16, 4, (128, 3, 4, 512), (128, 3, 4, 512), **SIZES)
    options["quantize_from"] = STEPS["tokenizer"] // 2
    learner = DetailTraining(model, perceptual=perceptual_loss("pyramid"), **options)
    steps = TrainConfig(STEPS["tokenizer"], 64, optimizers={"main": adamw(1e-3)}, clip=1.0, checkpoint_every=10**9)
    data = training_images(open_split("default", "train", channels=1), 32, seed, 64)
    fit(learner, data, steps, bench.folder / f"{name}-{seed}", label=f"{name}, seed {seed}")
    return model.eval()


def coarse_to_fine(bench: Bench) -> Measured:
    """PSNR of prefixes against the image shrunk to their resolution, with and without training on prefixes."""
    images = framed(open_test("default", channels=1), 32)
    gains, table = [], {}
    for seed in bench.seeds:
        path = bench.folder / f"prefixes-{seed}.json"
        if not path.is_file():
            found: dict[str, float] = {}
            for name, share in (("with", 0.2), ("without", 0.0)):
                model = _tokenizer(bench, f"{name}-prefixes", seed, prefix_share=share, correction=0.0)
                found |= {f"{name} {count}": _prefix_psnr(model, images, count) for count in (4, 8, 16)}
            write_json(path, found)
        row = json.loads(path.read_text())
        gain = min(row[f"with {count}"] - row[f"without {count}"] for count in (4, 8))
        # what prefixes gain must not be paid for with all tokens: a difference beyond half a decibel voids it
        lost = row["without 16"] - row["with 16"]
        gains.append(gain if lost <= 0.5 else min(gain, -lost))
        table[str(seed)] = row
        bench.say(f"  seed {seed}: " + ", ".join(f"{name} {value:.1f} dB" for name, value in row.items()))
    means = {name: mean(row[name] for row in table.values()) for name in table[str(bench.seeds[0])]}
    words = ", ".join(
        f"{count} tokens {means[f'with {count}']:.1f} against {means[f'without {count}']:.1f} dB" for count in (4, 8)
    )
    detail = f"{words}; all 16 {means['with 16']:.1f} against {means['without 16']:.1f} dB"
    scale = f"digits, 32 pixels, 16 tokens, {STEPS['tokenizer']} steps on each side"
    return Measured(mean(gains), scale, detail, gains, list(bench.seeds), table, "dB")


@torch.inference_mode()
def _prefix_psnr(model: DetailFlow, images: Tensor, count: int) -> float:
    errors = []
    for batch in images.split(200):
        made = model.decode_prefix(model.encode(batch)[0], count)
        wanted = resize(resize(batch, model.map.resolution(count)), model.map.decoded(count)).clamp(0, 1)
        errors.append((made - wanted).square().mean((1, 2, 3)))
    return float(-10 * torch.cat(errors).mean().log10())


def correction_helps(bench: Bench) -> Measured:
    """By how much planting an error in the first group raises the error of the finished image, over the same without
    correction training. The rest is generated from the erring tokens, with the image's class."""
    test = open_test("default", channels=1)
    images, labels = framed(test, 32)[:400], labels_of(test)[:400]
    ratios, table = [], {}
    for seed in bench.seeds:
        path = bench.folder / f"correction-{seed}.json"
        if not path.is_file():
            found: dict[str, float] = {}
            for name, share in (("with", 0.5), ("without", 0.0)):
                tokenizer = _tokenizer(bench, f"{name}-correction", seed, correction=share)
                model = _generator(bench, name, seed, tokenizer, share > 0)
                found |= {f"{name}, {kind}": value for kind, value in _harm(tokenizer, model, images, labels, seed).items()}
            write_json(path, found)
        row = json.loads(path.read_text())
        harm = {name: row[f"{name}, erring"] - row[f"{name}, clean"] for name in ("with", "without")}
        # without harm there is nothing to lessen, and the claim gets no support from this seed
        ratios.append(max(harm["with"], 0.0) / harm["without"] if harm["without"] > 0 else float("inf"))
        table[str(seed)] = row
        later = ", ".join(f"{name} {row[f'{name}, later tokens wrong']:.3f}" for name in ("with", "without"))
        bench.say(f"  seed {seed}: harm {harm['with']:.4f} with, {harm['without']:.4f} without; later tokens wrong {later}")
    means = {name: mean(row[name] for row in table.values()) for name in table[str(bench.seeds[0])]}
    detail = "squared error of the image, and share of later tokens that are not the image's own: "
    detail += ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    scale = f"digits as 16 tokens, groups of 4, {STEPS['tokenizer']} and {STEPS['generator']} steps on each side"
    return Measured(mean(ratios), scale, detail, ratios, list(bench.seeds), table, "x harm")


def _generator(bench: Bench, name: str, seed: int, tokenizer: DetailFlow, correct: bool) -> GroupParallelTransformer:
    source = open_split("default", "train", channels=1)
    images = torch.cat([framed_at_random(source, 32, seed + copy) for copy in (1, 2)])
    columns = training_sequences(tokenizer, images, torch.Generator().manual_seed(seed), correction=correct)
    data = TensorSet(**columns, label=labels_of(source).repeat(2))
    torch.manual_seed(seed)
    model = GroupParallelTransformer(10, 16, 512, 128, 4, 4, group=4, multiple_of=64, dropout=0.0)
    steps = TrainConfig(STEPS["generator"], 64, optimizers={"main": adamw(2e-3)}, clip=1.0, checkpoint_every=10**9)
    learner = GroupPrediction(model, correction=0.3 if correct else 0.0)
    fit(learner, data, steps, bench.folder / f"{name}-generator-{seed}", label=f"{name} generator, seed {seed}")
    return model.eval()


@torch.inference_mode()
def _harm(
    tokenizer: DetailFlow, model: GroupParallelTransformer, images: Tensor, labels: Tensor, seed: int
) -> dict[str, float]:
    (tokens,) = tokenizer.encode(images)
    z = tokenizer.features(images)
    draw = torch.Generator().manual_seed(seed)
    erring = tokens[:, :4].clone()
    place = torch.randint(4, (len(tokens), 1), generator=draw)
    wrong = tokenizer.nearby(z, torch.randint(1, 50, z.shape[:2], generator=draw))[:, :4]
    erring.scatter_(1, place, wrong.gather(1, place))
    found = {}
    for name, known in (("clean", tokens[:, :4]), ("erring", erring)):
        made = sample_tokens(model, labels, Draws.seeded(seed, len(labels)), guidance=1.0, top_p=0.5, known=known)
        found[name] = float(F.mse_loss(tokenizer.decode([made]), images))
        if name == "erring":
            found["later tokens wrong"] = float((made[:, 4:] != tokens[:, 4:]).float().mean())
    return found
