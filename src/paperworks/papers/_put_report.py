"""PUT's numbers and page: holes of held-out crops or small images, and of a whole photo, filled several times."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.analysis.metrics import frechet_distance
from paperworks.data.masks import draw_hole
from paperworks.data.transforms import resize_shorter, to_float
from paperworks.generators.draws import Draws
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.generators.unquantized_sampling import FillConfig, fill_tokens, inpaint, inpaint_photo
from paperworks.layers.vector_quantization import CodeUsage
from paperworks.objectives.unquantized_prediction import UnquantizedPrediction
from paperworks.paper import Run, first_process
from paperworks.papers._generation import open_test
from paperworks.papers._generation_report import Judge, numbers_table, reconstruction_numbers, rounded, skipped_table
from paperworks.papers._put_recipe import (
    PUTConfig,
    are_large,
    build_transformer,
    held_out,
    load_codec,
    load_transformer,
)
from paperworks.reporting import Report
from paperworks.tokenizers.patch_vqvae import PatchVQVAE

COMPLETIONS = 3
AVERAGED = 4
"""completions whose mean is compared with the mean colour: a single draw, however good, is twice as far from the truth"""
REPEATED = 100
"""images for the numbers that need several completions of each"""
SHOWN = 10
PHOTO = 192
"""shorter side of the photo on the page"""


def hole_psnr(made: Tensor, images: Tensor, where: Tensor) -> float:
    """PSNR in dB over the pixels of `where` bool [N, H, W], all images together."""
    wrong = (made - images).square() * where[:, None]
    return float(-10 * (wrong.sum() / (where.sum() * images.shape[1])).clamp(min=1e-12).log10())


def mean_filled(images: Tensor, holes: Tensor) -> Tensor:
    """The hole in the mean colour of what is known: what any method must beat."""
    known = (~holes[:, None]).float()
    mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(holes[:, None], mean, images)


def complete(
    model: UnquantizedTransformer,
    codec: PatchVQVAE,
    images: Tensor,
    holes: Tensor,
    seed: int,
    config: FillConfig,
    batch_size: int = 100,
    paste: bool = True,
) -> Tensor:
    """Crops [N, C, H, W] completed; crop i depends on (seed, i) alone."""
    made = []
    for start in range(0, len(images), batch_size):
        part, hole = images[start : start + batch_size], holes[start : start + batch_size]
        made.append(inpaint(model, codec, part, hole, Draws.seeded(seed, len(part), start), config, paste=paste))
    return torch.cat(made)


@torch.no_grad()
def token_numbers(
    model: UnquantizedTransformer, codec: PatchVQVAE, images: Tensor, holes: Tensor, config: PUTConfig
) -> tuple[float, float]:
    """Cross-entropy in nats a patch, and share of patches whose likeliest code is right, over patches in the hole."""
    objective = UnquantizedPrediction(model, codec, random_quantize=0.0, features=config.transformer.features).eval()
    total, right, count = 0.0, 0.0, 0
    for start in range(0, len(images), 100):
        part = images[start : start + 100]
        example = objective.examples(part, holes[start : start + 100], torch.ones(len(part), *_grid(part, codec)))
        logits = model(example.embedded)
        wanted = ~example.known
        total += float(F.cross_entropy(logits[wanted], example.targets[wanted], reduction="sum"))
        right += float((logits.argmax(-1) == example.targets)[wanted].sum())
        count += int(wanted.sum())
    return total / count, right / count


@torch.no_grad()
def unigram_entropy(codec: PatchVQVAE, images: Tensor) -> float:
    """Nats of a patch's code when nothing but how often codes occur is known: what the cross-entropy must beat."""
    counts = torch.bincount(codec.encode(images)[0].flatten(), minlength=codec.vocab_size).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log()).sum())


def _grid(images: Tensor, codec: PatchVQVAE) -> tuple[int, int]:
    return images.shape[-2] // codec.patch, images.shape[-1] // codec.patch


@torch.no_grad()
def codec_numbers(codec: PatchVQVAE, images: Tensor, holes: Tensor) -> dict[str, Any]:
    """What the tokens alone keep, and what the decoder makes of them with the known pixels for reference."""
    usage, rebuilt, referred = CodeUsage(codec.vocab_size), [], []
    for start in range(0, len(images), 100):
        part, hole = images[start : start + 100], holes[start : start + 100]
        tokens = codec.encode(part)
        usage.update(tokens[0])
        rebuilt.append(codec.decode(tokens))
        referred.append(codec.fill(tokens[0].unflatten(1, _grid(part, codec)), part, ~hole[:, None], paste=False))
    alone, with_reference = torch.cat(rebuilt), torch.cat(referred)
    return reconstruction_numbers(images, alone, usage) | {
        "PSNR outside the hole, tokens alone (dB)": hole_psnr(alone, images, ~holes),
        "PSNR outside the hole, reference branch (dB)": hole_psnr(with_reference, images, ~holes),
        "PSNR in the hole, its true tokens (dB)": hole_psnr(with_reference, images, holes),
    }


def evaluate(config: PUTConfig, run: Run, data: str | None = None) -> dict[str, Any]:
    """All numbers of a run on held-out images or crops, or on other images."""
    codec, model = load_codec(run), load_transformer(run)
    images, holes = held_out(config, data)
    numbers: dict[str, Any] = {"held-out images": len(images), "share of the hole": float(holes.float().mean())}
    numbers |= codec_numbers(codec, images, holes)
    nats, right = token_numbers(model, codec, images, holes, config)
    numbers |= {
        "cross-entropy (nats a patch)": nats,
        "entropy of the codes by themselves (nats)": unigram_entropy(codec, images),
        "likeliest code is right": right,
    }
    started = time.perf_counter()
    made = complete(model, codec, images, holes, 0, config.filling)
    seconds = time.perf_counter() - started
    torch.manual_seed(config.seed + 1)
    fresh = complete(build_transformer(config, codec).eval(), codec, images, holes, 0, config.filling)
    numbers |= {
        "PSNR in the hole, one completion (dB)": hole_psnr(made, images, holes),
        "PSNR in the hole, untrained transformer (dB)": hole_psnr(fresh, images, holes),
        "PSNR in the hole, mean of the known (dB)": hole_psnr(mean_filled(images, holes), images, holes),
        "largest change of a known pixel": float(((made - images).abs() * ~holes[:, None]).max()),
        "passes for an image": fill_passes(model, codec, images[:1], holes[:1], config.filling),
        "milliseconds for an image": 1e3 * seconds / len(images),
    }
    numbers |= more_completions(config, codec, model, images[:REPEATED], holes[:REPEATED], made[:REPEATED])
    judge = Judge.of(config.data, run.stage_folder("judge"))
    if len(images) > 2:
        features = judge.features(images)
        for name, candidates in {
            "completions": made,
            "untrained transformer": fresh,
            "mean of the known": mean_filled(images, holes),
        }.items():
            numbers[f"Frechet distance, {name}"] = frechet_distance(features, judge.features(candidates))
    return rounded(numbers)


def more_completions(
    config: PUTConfig, codec: PatchVQVAE, model: UnquantizedTransformer, images: Tensor, holes: Tensor, made: Tensor
) -> dict[str, float]:
    """What other draws than the one in `made` give."""
    likeliest = complete(model, codec, images, holes, 0, replace(config.filling, keep=1, keep_kind="count"))
    versions = [complete(model, codec, images, holes, 2 + number, config.filling) for number in range(AVERAGED)]
    apart = (made - versions[0]).abs() * holes[:, None]
    return {
        f"PSNR in the hole, mean of {AVERAGED} completions (dB)": hole_psnr(torch.stack(versions).mean(0), images, holes),
        "PSNR in the hole, likeliest codes (dB)": hole_psnr(likeliest, images, holes),
        "mean difference of two completions in the hole": float(apart.sum() / (images.shape[1] * holes.sum())),
    }


def fill_passes(model: UnquantizedTransformer, codec: PatchVQVAE, images: Tensor, holes: Tensor, config: FillConfig) -> int:
    return fill_tokens(model, codec, images, ~holes[:, None], Draws.seeded(0, len(images)), config).passes


def write_report(config: PUTConfig, run: Run) -> Mapping[str, Any]:
    """The last stage: numbers and report.html, by the first process."""
    if not first_process():
        return {}
    numbers = evaluate(config, run)
    codec, model = load_codec(run), load_transformer(run)
    millions, minutes = run.result("transformer")["parameters"] / 1e6, sum(run.seconds.values()) / 60
    page = Report(
        "PUT: holes filled in several ways",
        f"{run.result('codec')['photos']} training images, a {millions:.1f} M transformer, {minutes:.1f} minutes",
    )
    page.figures(
        {
            "PSNR in the hole": f"{numbers['PSNR in the hole, one completion (dB)']:.1f} dB",
            "mean colour instead": f"{numbers['PSNR in the hole, mean of the known (dB)']:.1f} dB",
            "known pixels changed by": numbers["largest change of a known pixel"],
            "codes in use": f"{numbers['codes in use']:.0%}",
            "passes": numbers["passes for an image"],
            "ms per image": numbers["milliseconds for an image"],
        }
    )
    images, holes = held_out(config)
    chosen = torch.arange(min(SHOWN, len(images))) * len(images) // min(SHOWN, len(images))
    images, holes = images[chosen], holes[chosen]
    rows = {"with its hole": torch.where(holes[:, None], 0.5, images)}
    for number in range(COMPLETIONS):
        rows[f"completion {number + 1}"] = complete(model, codec, images, holes, 100 + number, config.filling)
    page.compare(
        "Three completions of held-out images",
        rows | {"truth": images},
        caption=f"Not selected, not trained on. {settings(config.filling)}",
    )
    if are_large(open_test(config.data, channels=config.channels), config.image_size):
        _photo(page, config, codec, model)
    _passes(page, config, codec, model, images, holes)
    tokens = codec.encode(images)
    known = ~holes[:, None]
    with torch.no_grad():
        page.compare(
            "What the codec keeps",
            {
                "truth": images,
                "from its tokens": codec.decode(tokens),
                "with reference": codec.fill(tokens[0].unflatten(1, _grid(images, codec)), images, known, paste=False),
            },
            caption="The decoder alone, nothing pasted: the reference branch brings the known pixels back.",
        )
    numbers_table(page, numbers)
    page.metrics("Training the codec", run.folder / "codec" / "metrics.jsonl", ["generator/l1", "generator/codes"], log_y=True)
    page.metrics("Training the transformer", run.folder / "transformer" / "metrics.jsonl", ["loss"])
    skipped_table(page, run.result("codec")["skipped"])
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


def _photo(page: Report, config: PUTConfig, codec: PatchVQVAE, model: UnquantizedTransformer) -> None:
    """A whole held-out photo, window by window."""
    test = open_test(config.data, channels=config.channels)
    photo = test.read(0)
    photo = to_float(resize_shorter(photo[None], min(PHOTO, *photo.shape[1:]))[0])
    height, width = photo.shape[-2:]
    shape = replace(config.holes, share=(0.1, 0.2), strokes=1.0, boxes=0.0, halves=0.0, drawn="hole", smallest=0.0)
    shape = replace(shape, width=(0.05, 0.12), length=0.3)
    hole = torch.from_numpy(draw_hole(height, width, shape, np.random.default_rng(5)))
    made = inpaint_photo(model, codec, photo, hole, Draws.seeded(7, 2), config.filling)
    masked = torch.where(hole, 0.5, photo)
    page.images(
        "A whole photo",
        torch.cat((photo[None], masked[None], made)),
        columns=2,
        labels=["photo", "with its hole", "completion 1", "completion 2"],
        caption=f"{width} x {height} pixels, in windows of {codec.image_size}, the best known first.",
    )


def _passes(
    page: Report, config: PUTConfig, codec: PatchVQVAE, model: UnquantizedTransformer, images: Tensor, holes: Tensor
) -> None:
    """The same draws with more patches a pass."""
    rows, table = {"truth": images}, []
    for per_pass in (1, 4, 16, -1):
        settings = replace(config.filling, per_pass=per_pass)
        started = time.perf_counter()
        rows["all at once" if per_pass == -1 else f"{per_pass} a pass"] = made = complete(
            model, codec, images, holes, 3, settings
        )
        milliseconds = 1e3 * (time.perf_counter() - started) / len(images)
        passes = fill_passes(model, codec, images, holes, settings)
        name = "all" if per_pass == -1 else per_pass
        table.append([name, passes, f"{milliseconds:.1f}", f"{hole_psnr(made, images, holes):.2f}"])
    page.compare("Patches drawn in a pass", rows, caption="The surest patches of each pass are drawn; the others wait.")
    page.table("Passes and time", ["patches a pass", "passes", "ms per image", "PSNR in the hole (dB)"], table)


def settings(config: FillConfig) -> str:
    each = "all patches at once" if config.per_pass == -1 else f"{config.per_pass} patches a pass"
    kept = f"the {config.keep:g} likeliest codes" if config.keep_kind == "count" else f"codes of at least {config.keep:g}"
    return f"{each.capitalize()}, {kept}, logits times {config.temperature:g}."
