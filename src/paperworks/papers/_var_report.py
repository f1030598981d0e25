"""What a VAR run is worth: reconstructions, samples, edits, distances, and the page that shows them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.data import ImageSource
from paperworks.generators.draws import Draws
from paperworks.generators.next_scale import NextScaleTransformer
from paperworks.generators.next_scale_sampling import inpaint, sample
from paperworks.objectives.token_prediction import negative_log_likelihood
from paperworks.paper import Run, first_process
from paperworks.papers._generation import MNIST, framed, labels_of, open_split, open_test
from paperworks.papers._generation_report import (
    Judge,
    headline,
    in_batches,
    numbers_table,
    reconstruction_numbers,
    rounded,
    sample_numbers,
    show_neighbours,
    skipped_table,
    spread_over,
)
from paperworks.papers._var_recipe import VARConfig, build_transformer, load_tokenizer, load_transformer, tokenize
from paperworks.reporting import Report
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.tokenizers.protocol import reconstruct


def make_images(
    config: VARConfig,
    model: NextScaleTransformer,
    tokenizer: MultiScaleVQVAE,
    labels: Tensor,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 250,
) -> Tensor:
    """Samples [N, C, H, W] in [0, 1]; image i depends on (seed, first + i) and its label alone."""
    part = config.sampling

    def make(wanted: Tensor, start: int) -> Tensor:
        draws = Draws.seeded(seed, len(wanted), first + start)
        drawn = sample(model, tokenizer, wanted, draws, guidance=part.guidance, top_k=part.top_k, top_p=part.top_p)
        with torch.inference_mode():
            return tokenizer.decode_features(drawn.features)

    return in_batches(make, labels, batch_size)


def evaluate(config: VARConfig, run: Run, test: ImageSource) -> dict[str, Any]:
    """All numbers of a run on held-out images."""
    tokenizer, model = load_tokenizer(run), load_transformer(run)
    judge = Judge.of(config.data, run.stage_folder("judge"))
    images, truth = framed(test, config.image_size, judge.limit), labels_of(test)[: judge.limit]
    rebuilt, usage = reconstruct(tokenizer, images)
    count = min(config.sampling.images, judge.limit)
    labels = torch.arange(count) % model.num_classes
    started = time.perf_counter()
    made = make_images(config, model, tokenizer, labels, config.seed)
    seconds = time.perf_counter() - started
    untrained = make_images(config, build_transformer(config, model.num_classes).eval(), tokenizer, labels, config.seed)
    held_out = tokenize(tokenizer, images, truth)
    numbers = reconstruction_numbers(images, rebuilt, usage)
    numbers |= {
        "held-out nats per token": negative_log_likelihood(model, [held_out.batch(list(range(len(held_out))))]),
        "milliseconds per sampled image": 1e3 * seconds / count,
        "sequential passes": len(model.patch_nums),
    }
    numbers |= sample_numbers(judge, images, truth, made, labels, untrained=untrained, rebuilt=rebuilt)
    return rounded(numbers)


def write_report(config: VARConfig, run: Run) -> Mapping[str, Any]:
    """Stage 3: numbers and report.html, by the first process."""
    if not first_process():
        return {}
    test = open_test(config.data, channels=config.channels, strict=config.strict)
    train = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    numbers = evaluate(config, run, test)
    tokenizer, model = load_tokenizer(run), load_transformer(run)
    names = run.result("tokenizer")["classes"]
    page = Report("VAR on your images" if config.data not in MNIST else "VAR on handwritten digits", _subtitle(run, model))
    page.figures(headline(numbers))

    columns = min(model.num_classes, 10)
    labels = torch.arange(columns).repeat(10)
    made = make_images(config, model, tokenizer, labels, config.seed, first=100_000)
    page.images("Samples, a column per class", made, columns=columns, labels=names[:columns], caption=_sampling_words(config))
    show_neighbours(page, made[:columns], train, config.image_size)
    _show_scales(page, config, tokenizer, model, columns)
    some = spread_over(test, 12)
    images, truth = framed(some, config.image_size), labels_of(some)
    rebuilt, _ = reconstruct(tokenizer, images)
    page.compare(
        "What the tokenizer keeps",
        {"held-out image": images, "from its tokens": rebuilt},
        caption=f"{sum(model.sizes)} tokens an image; "
        f"{numbers['codes in use']:.0%} of {tokenizer.vocab_size} codes occur on the held-out images.",
    )
    _show_edits(page, config, model, tokenizer, images[:10], truth[:10])
    numbers_table(page, numbers)
    for stage in ("tokenizer", "transformer"):
        page.metrics(f"Training the {stage}", run.folder / stage / "metrics.jsonl", _curves(stage))
    skipped_table(page, run.result("tokenizer")["skipped"])
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


# --- parts of the page ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _show_scales(
    page: Report, config: VARConfig, tokenizer: MultiScaleVQVAE, model: NextScaleTransformer, columns: int
) -> None:
    part = config.sampling
    draws = Draws.seeded(config.seed, columns, 100_000)
    drawn = sample(model, tokenizer, torch.arange(columns), draws, guidance=part.guidance, top_k=part.top_k, top_p=part.top_p)
    totals = tokenizer.quantize.features_of(drawn.indices)
    rows = {f"after {side} x {side}": tokenizer.decode_features(total) for side, total in zip(model.patch_nums, totals)}
    page.compare(
        "The first row of samples, scale by scale", rows, caption="Each row adds one token map, predicted in one pass."
    )


def _show_edits(
    page: Report, config: VARConfig, model: NextScaleTransformer, tokenizer: MultiScaleVQVAE, images: Tensor, truth: Tensor
) -> None:
    side, part = config.image_size, config.sampling
    nobody, other = torch.full_like(truth, model.num_classes), (truth + 1) % model.num_classes
    centre = torch.zeros(side, side)
    centre[side // 4 : -side // 4, side // 4 : -side // 4] = 1
    lower = torch.zeros(side, side)
    lower[side // 2 :] = 1
    settings: dict[str, Any] = {"guidance": part.guidance, "top_k": part.top_k, "top_p": part.top_p}
    rows = {"held-out image": images}
    jobs = {
        "centre made anew": (centre, nobody),
        "lower half made anew": (lower, nobody),
        "surroundings made anew": (1 - centre, nobody),
        "centre as the next class": (centre, other),
    }
    for number, (name, (hole, labels)) in enumerate(jobs.items()):
        draws = Draws.seeded(config.seed + 1 + number, len(images))
        rows[name] = inpaint(model, tokenizer, images, hole, labels, draws, paste=number != 3, **settings)
    page.compare(
        "Editing without retraining",
        rows,
        caption="In-painting, out-painting and class-conditional editing; known pixels are put back exactly, "
        "except in the last row, where they pass through the tokenizer.",
    )


def _subtitle(run: Run, model: nn.Module) -> str:
    seconds = sum(run.seconds.values())
    count = sum(p.numel() for p in model.parameters()) / 1e6
    images = run.result("tokenizer")["images"]
    return f"{images} training images, a {count:.1f} M transformer, {seconds / 60:.1f} minutes of training"


def _sampling_words(config: VARConfig) -> str:
    part = config.sampling
    return f"Not selected. Guidance {part.guidance:g}, top-p {part.top_p:g}" + (f", top-k {part.top_k}." if part.top_k else ".")


def _curves(stage: str) -> list[str]:
    if stage == "transformer":
        return ["loss", "accuracy"]
    return ["generator/mse", "generator/perceptual", "generator/codes"]
