"""What a VAR run is worth: reconstructions, samples, edits, distances, and the page that shows them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.digits import digit_classifier
from paperworks.analysis.features import extract, lite0
from paperworks.analysis.metrics import frechet_distance, precision_recall, psnr, ssim
from paperworks.data import ImageSource
from paperworks.generators.draws import Draws
from paperworks.generators.next_scale import NextScaleTransformer
from paperworks.generators.next_scale_sampling import inpaint, sample
from paperworks.layers.vector_quantization import CodeUsage
from paperworks.objectives.token_prediction import negative_log_likelihood
from paperworks.paper import Run, first_process
from paperworks.papers._var_recipe import (
    VARConfig,
    build_transformer,
    framed,
    labels_of,
    load_tokenizer,
    load_transformer,
    open_split,
    tokenize,
)
from paperworks.reporting import Report
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE

DIGITS = ("default", "mnist5k")


@dataclass
class Judge:
    """The network whose features the distances are taken in."""

    network: Any
    name: str
    limit: int
    """images to judge at most: a large network on two cores takes its time"""
    knows_classes: bool

    @classmethod
    def of(cls, config: VARConfig, run: Run) -> Judge:
        if config.data in DIGITS:
            return cls(digit_classifier(run.stage_folder("judge")), "a digit classifier trained here", 1000, True)
        return cls(lite0(), "EfficientNet-Lite0 (ImageNet)", 200, False)

    def features(self, images: Tensor) -> Tensor:
        return extract(self.network, images[: self.limit])

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images the classifier takes for their label."""
        with torch.inference_mode():
            return float((self.network.logits(images).argmax(1) == labels).float().mean())


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
    part, made = config.sampling, []
    for start in range(0, len(labels), batch_size):
        wanted = labels[start : start + batch_size]
        draws = Draws.seeded(seed, len(wanted), first + start)
        drawn = sample(model, tokenizer, wanted, draws, guidance=part.guidance, top_k=part.top_k, top_p=part.top_p)
        with torch.inference_mode():
            made.append(tokenizer.decode_features(drawn.features))
    return torch.cat(made)


@torch.inference_mode()
def reconstruct(tokenizer: MultiScaleVQVAE, images: Tensor, batch_size: int = 200) -> tuple[Tensor, CodeUsage]:
    usage, made = CodeUsage(tokenizer.vocab_size), []
    for batch in images.split(batch_size):
        indices = tokenizer.encode(batch)
        for found in indices:
            usage.update(found)
        made.append(tokenizer.decode(indices))
    return torch.cat(made), usage


def evaluate(config: VARConfig, run: Run, test: ImageSource) -> dict[str, Any]:
    """All numbers of a run on held-out images."""
    tokenizer, model, judge = load_tokenizer(run), load_transformer(run), Judge.of(config, run)
    images, truth = framed(test, config.image_size, judge.limit), labels_of(test)[: judge.limit]
    rebuilt, usage = reconstruct(tokenizer, images)
    count = min(config.sampling.images, judge.limit)
    labels = torch.arange(count) % model.num_classes
    started = time.perf_counter()
    made = make_images(config, model, tokenizer, labels, config.seed)
    seconds = time.perf_counter() - started
    untrained = make_images(config, build_transformer(config, model.num_classes).eval(), tokenizer, labels, config.seed)
    held_out = tokenize(tokenizer, images, truth)
    nll = negative_log_likelihood(model, [held_out.batch(list(range(len(held_out))))])
    numbers: dict[str, Any] = {
        "reconstruction PSNR (dB)": psnr(rebuilt, images),
        "reconstruction SSIM": ssim(rebuilt, images),
        "codes in use": usage.usage,
        "code perplexity": usage.perplexity,
        "held-out nats per token": nll,
        "milliseconds per sampled image": 1e3 * seconds / count,
        "sequential passes": len(model.patch_nums),
        "judged by": judge.name,
        "held-out images": len(images),
    }
    if len(images) > 2:
        real, fake = judge.features(images), judge.features(made)
        precision, recall = precision_recall(real, fake) if len(images) > 4 else (float("nan"),) * 2
        numbers |= {
            "Frechet distance of samples": frechet_distance(real, fake),
            "Frechet distance of reconstructions": frechet_distance(real, judge.features(rebuilt)),
            "Frechet distance before training": frechet_distance(real, judge.features(untrained)),
            "precision": precision,
            "recall": recall,
        }
    if judge.knows_classes:
        numbers["samples recognised as their class"] = judge.accuracy(made, labels)
        numbers["test images recognised"] = judge.accuracy(images, truth)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in numbers.items()}


def write_report(config: VARConfig, run: Run) -> Mapping[str, Any]:
    """Stage 3: numbers and report.html, by the first process."""
    if not first_process():
        return {}
    test, train = open_split(config, "test"), open_split(config, "train")
    if not len(test):
        test = train
    numbers = evaluate(config, run, test)
    tokenizer, model = load_tokenizer(run), load_transformer(run)
    names = run.result("tokenizer")["classes"]
    page = Report("VAR on your images" if config.data not in DIGITS else "VAR on handwritten digits", _subtitle(run, model))
    page.figures(_headline(numbers))

    columns = min(model.num_classes, 10)
    labels = torch.arange(columns).repeat(10)
    made = make_images(config, model, tokenizer, labels, config.seed, first=100_000)
    page.images("Samples, a column per class", made, columns=columns, labels=names[:columns], caption=_sampling_words(config))
    _show_neighbours(page, config, made[:columns], train)
    _show_scales(page, config, tokenizer, model, columns)
    some = test.subset(range(0, len(test), -(-len(test) // 12)))  # spread over the classes
    images, truth = framed(some, config.image_size), labels_of(some)
    rebuilt, _ = reconstruct(tokenizer, images)
    page.compare(
        "What the tokenizer keeps",
        {"held-out image": images, "from its tokens": rebuilt},
        caption=f"{sum(model.sizes)} tokens an image; "
        f"{numbers['codes in use']:.0%} of {tokenizer.vocab_size} codes occur on the held-out images.",
    )
    _show_edits(page, config, model, tokenizer, images[:10], truth[:10])
    page.table("Numbers", ["measured on held-out images", "value"], [[name, _shown(value)] for name, value in numbers.items()])
    for stage in ("tokenizer", "transformer"):
        page.metrics(f"Training the {stage}", run.folder / stage / "metrics.jsonl", _curves(stage))
    skipped = run.result("tokenizer")["skipped"]
    if skipped:
        page.table("Images left out", ["file", "why"], skipped, note=f"{len(skipped)} unreadable files were skipped.")
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


# --- parts of the page ------------------------------------------------------------------------------------------------


def _show_neighbours(page: Report, config: VARConfig, made: Tensor, train: ImageSource) -> None:
    """A generator that only remembers would show here."""
    known = framed(train, config.image_size, 5000)
    nearest = torch.cdist(made.flatten(1), known.flatten(1)).argmin(1)
    page.compare(
        "Made, and the nearest training image",
        {"sample": made, "nearest training image": known[nearest]},
        caption="Nearest by pixel distance.",
    )


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


def _headline(numbers: Mapping[str, Any]) -> dict[str, str]:
    wanted = {
        "Frechet distance": "Frechet distance of samples",
        "before training": "Frechet distance before training",
        "recognised": "samples recognised as their class",
        "codes in use": "codes in use",
        "ms per image": "milliseconds per sampled image",
        "passes": "sequential passes",
    }
    shares = ("recognised", "codes in use")
    return {
        title: f"{numbers[name]:.0%}" if title in shares else _shown(numbers[name])
        for title, name in wanted.items()
        if name in numbers
    }


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sampling_words(config: VARConfig) -> str:
    part = config.sampling
    return f"Not selected. Guidance {part.guidance:g}, top-p {part.top_p:g}" + (f", top-k {part.top_k}." if part.top_k else ".")


def _curves(stage: str) -> list[str]:
    if stage == "transformer":
        return ["loss", "accuracy"]
    return ["generator/mse", "generator/perceptual", "generator/codes"]
