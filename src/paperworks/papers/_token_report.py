"""What comes after training in recipes of two stages, tokenizer and generator: samples, numbers, the page and the verbs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paperworks.analysis.metrics import frechet_distance
from paperworks.generators.draws import Draws
from paperworks.layers.vector_quantization import CodeUsage
from paperworks.paper import Paper, Run, first_process
from paperworks.papers._generation import MNIST, framed, framed_batches, open_split, open_test
from paperworks.papers._generation_report import (
    HELD,
    Judge,
    Seen,
    chosen_labels,
    evenly,
    headline,
    in_batches,
    mean_over_images,
    numbers_table,
    reconstruction_numbers,
    rounded,
    sample_numbers,
    show_neighbours,
    shown,
    skipped_table,
    spread_over,
)
from paperworks.reporting import Report, save_grid

if TYPE_CHECKING:
    from paperworks.papers._token_recipe import Kit

# --- images from tokens -----------------------------------------------------------------------------------------------


def as_maps(tokenizer: Any, tokens: Tensor) -> list[Tensor]:
    """A sequence of all tokens cut into the tokenizer's maps."""
    return list(tokens.split([torch.Size(shape).numel() for shape in tokenizer.spec.shapes], 1))


def make_images(kit: Kit, config: Any, model: Any, tokenizer: Any, labels: Tensor, seed: int = 0, first: int = 0) -> Tensor:
    """Samples [N, C, H, W] in [0, 1]; image i depends on (seed, first + i) and its label alone."""

    def make(wanted: Tensor, start: int) -> Tensor:
        tokens = kit.sample(config, model, tokenizer, wanted, Draws.seeded(seed, len(wanted), first + start))
        with torch.inference_mode():
            return tokenizer.decode(as_maps(tokenizer, tokens))

    return in_batches(make, labels)


def evaluate(kit: Kit, config: Any, run: Run, test: Any) -> dict[str, Any]:
    """All numbers of a run on held-out images, of which a batch at a time is in memory."""
    tokenizer = kit.tokenizer_of(run)
    judge = Judge.of(config.data, run.stage_folder("judge"), config.sampling.images)
    images = framed_batches(evenly(test, judge.limit), config.image_size)
    real, rebuilt = Seen(judge), Seen(judge)
    batches: list[tuple[int, dict[str, Any]]] = []
    usage: CodeUsage | None = None
    for batch, truth in zip(images.split(HELD), images.labels.split(HELD)):
        made, codes = kit.rebuild(tokenizer, batch)
        batches.append((len(batch), reconstruction_numbers(batch, made)))
        real.add(batch, truth)
        rebuilt.add(made)
        if usage is not None and codes is not None:
            usage.counts = usage.counts + codes.counts
        usage = usage or codes
    numbers = mean_over_images(batches)
    if usage is not None:
        numbers |= {"codes in use": usage.usage, "code perplexity": usage.perplexity}
    if kit.generates(config):
        numbers |= _sampled(kit, config, run, tokenizer, real, images.labels, rebuilt)
    else:
        numbers |= {"judged by": judge.name, "held-out images": len(real)}
        if len(real) > 2:
            numbers["Frechet distance of reconstructions"] = frechet_distance(real.features, rebuilt.features)
    return rounded(numbers)


def _sampled(kit: Kit, config: Any, run: Run, tokenizer: Any, real: Seen, truth: Tensor, rebuilt: Seen) -> dict[str, Any]:
    """What the generator's images are like, before and after its training."""
    judge, model = real.judge, kit.generator_of(run)
    classes = len(run.result("tokenizer")["classes"])
    count = min(config.sampling.images or judge.limit, judge.limit)
    labels = torch.arange(count) % classes

    def seen(network: Any) -> tuple[Seen, float]:
        """Its images, and the seconds they took."""
        found, seconds = Seen(judge), 0.0
        for first, wanted in zip(range(0, count, HELD), labels.split(HELD)):
            started = time.perf_counter()
            made = make_images(kit, config, network, tokenizer, wanted, config.seed, first)
            seconds += time.perf_counter() - started
            found.add(made, wanted)
        return found, seconds

    made, seconds = seen(model)
    torch.manual_seed(config.seed + 1)
    untrained, _ = seen(kit.build_generator(config, classes).eval())
    numbers: dict[str, Any] = {
        "tokens an image": tokenizer.spec.tokens,
        "milliseconds per sampled image": 1e3 * seconds / count,
        "sequential passes": kit.passes(config),
    }
    return numbers | sample_numbers(judge, real, truth, made, labels, untrained=untrained, rebuilt=rebuilt)


def write_report(kit: Kit, config: Any, run: Run) -> Mapping[str, Any]:
    """The last stage: numbers and report.html, by the first process."""
    if not first_process():
        return {}
    test = open_test(config.data, channels=config.channels, strict=config.strict)
    numbers, tokenizer = evaluate(kit, config, run, test), kit.tokenizer_of(run)
    generates = kit.generates(config)
    model = kit.generator_of(run) if generates else None
    network = "a tokenizer alone"
    if generates:
        network = f"a {run.result(kit.generator_stage)['parameters'] / 1e6:.1f} M generator"
    page = Report(
        f"{kit.title} on handwritten digits" if config.data in MNIST else f"{kit.title} on your images",
        f"{run.result('tokenizer')['images']} training images, {network}, {sum(run.seconds.values()) / 60:.1f} minutes",
    )
    page.figures(headline(numbers) if generates else {"PSNR (dB)": shown(numbers["reconstruction PSNR (dB)"])})
    if generates:
        _show_samples(page, kit, config, run, tokenizer, model)
    some = framed(spread_over(test, 12), config.image_size)
    rebuilt, usage = kit.rebuild(tokenizer, some)
    caption = ""
    if usage is not None:
        caption = (
            f"{tokenizer.spec.tokens} tokens an image; {numbers['codes in use']:.0%} of {tokenizer.vocab_size} codes occur "
            "on the held-out images."
        )
    page.compare("What the tokenizer keeps", {"held-out image": some, "from its tokens": rebuilt}, caption=caption)
    kit.more(page, config, run, tokenizer, model)
    numbers_table(page, numbers)
    page.metrics("Training the tokenizer", run.folder / "tokenizer" / "metrics.jsonl", ["generator/mse", "generator/codes"])
    if generates:
        page.metrics("Training the generator", run.folder / "generator" / "metrics.jsonl", ["loss", "accuracy"])
    skipped_table(page, run.result("tokenizer")["skipped"])
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


def _show_samples(page: Report, kit: Kit, config: Any, run: Run, tokenizer: Any, model: Any) -> None:
    names = run.result("tokenizer")["classes"]
    columns = min(len(names), 10)
    labels = torch.arange(columns).repeat(10)
    made = make_images(kit, config, model, tokenizer, labels, config.seed, first=100_000)
    page.images(
        "Samples, a column per class",
        made,
        columns=columns,
        labels=names[:columns],
        caption=f"Not selected. {kit.settings(config)}",
    )
    train = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    show_neighbours(page, made[:columns], train, config.image_size)


def settings(config: Any) -> str:
    part = config.sampling
    words = f"Guidance {part.guidance:g}, top-p {part.top_p:g}, temperature {part.temperature:g}"
    return words + (f", top-k {part.top_k}." if part.top_k else ".")


# --- verbs ------------------------------------------------------------------------------------------------------------


def add_verbs(paper: Paper, kit: Kit, config_kind: type) -> None:
    """`sample` and `evaluate` for runs of the paper."""

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
        config = run.config(config_kind)
        wanted = chosen_labels(run.result("tokenizer")["classes"], classes).repeat_interleave(count)
        made = make_images(kit, config, kit.generator_of(run), kit.tokenizer_of(run), wanted, seed)
        path = save_grid(made, out or run.folder / "samples.png", count)
        return {"images": len(made), "file": str(path)}

    @paper.verb("evaluate")
    def evaluate_run(run: Run, *, data: str | None = None) -> dict[str, Any]:
        """Measures a run again, on its own held-out images or on others.

        Args:
            data: other images of the same classes
        """
        config = run.config(config_kind)
        return evaluate(kit, config, run, open_test(data or config.data, channels=config.channels))
