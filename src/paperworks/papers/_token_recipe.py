"""Recipes of two stages, a tokenizer and a generator of its tokens, with a page at the end: what such papers share.

A paper says in a `Kit` how its parts are built and sampled; stages and verbs here do the rest for any tokenizer that
`objectives.tokenizer_training` can train and any class-conditional generator of its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.generators.draws import Draws
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Paper, Run, Stage, first_process
from paperworks.papers._generation import (
    MNIST,
    Perceptual,
    TensorSet,
    adamw,
    class_names,
    framed,
    framed_at_random,
    kept_tensors,
    labels_of,
    load_part,
    open_split,
    open_test,
    perceptual_loss,
    save_part,
    skipped_images,
    tokenizer_training,
    training_images,
)
from paperworks.papers._generation_report import (
    Judge,
    chosen_labels,
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
from paperworks.reporting import Report, save_grid
from paperworks.tokenizers.protocol import reconstruct
from paperworks.training import TrainConfig, fit


@dataclass(frozen=True)
class JudgeConfig:
    """What the tokenizer's reconstructions are trained against besides pixels."""

    perceptual: Perceptual = "pyramid"
    perceptual_weight: float = 1.0
    l1_weight: float = 0.0
    l2_weight: float = 1.0
    codebook_weight: float = 1.0
    adversarial_weight: float = 0.5
    """0 for no discriminator"""
    adversarial_start: float = 0.5
    """share of the training after which the discriminator joins"""
    adversarial: Adversarial = field(default_factory=Adversarial)
    discriminator_width: int = 16
    discriminator_layers: int = 2


@dataclass(frozen=True)
class SampleConfig:
    guidance: float = 1.0
    top_k: int = 0
    top_p: float = 0.96
    temperature: float = 1.0
    images: int = 1000
    """made for the Frechet distance"""


@dataclass(frozen=True)
class TokenConfig:
    """A paper's own configuration derives from this and adds `tokenizer` and `generator`."""

    data: str = "default"
    image_size: int = 32
    channels: int = 1
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    copies: int = 8
    """how often each training image is tokenized, each time framed differently"""
    seed: int = 0
    judge: JudgeConfig = JudgeConfig()
    tokenizer_training: TrainConfig = field(default_factory=lambda: tokenizer_training(900, 32, 2e-3))
    generator_training: TrainConfig = field(
        default_factory=lambda: TrainConfig(900, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.995)
    )
    label_dropout: float = 0.1
    sampling: SampleConfig = SampleConfig()


@torch.inference_mode()
def tokenize(tokenizer: Any, images: Tensor, labels: Tensor, batch_size: int = 200) -> TensorSet:
    """Images [N, C, H, W] in [0, 1] as sequences of all their tokens."""
    tokens = torch.cat([torch.cat(tokenizer.encode(batch), 1) for batch in images.split(batch_size)])
    return TensorSet(tokens=tokens, label=labels)


@dataclass(frozen=True)
class Kit:
    """How a paper's two networks are built and used. All functions take the configuration first."""

    title: str
    tokenizer_kind: type
    generator_kind: type | tuple[type, ...]
    """all that build_generator may return"""
    build_tokenizer: Callable[[Any], nn.Module]
    build_generator: Callable[[Any, int], nn.Module]
    """(config, classes)"""
    sample: Callable[[Any, Any, Any, Tensor, Draws], Tensor]
    """(config, generator, tokenizer, labels, draws) -> tokens int64 [B, L]"""
    passes: Callable[[Any], int]
    """sequential passes of the generator for an image"""
    objective: Callable[[Any, Any, Any, TensorSet], TokenPrediction] = lambda config, model, tokenizer, data: TokenPrediction(
        model, config.label_dropout
    )
    """(config, generator, tokenizer, all training tokens)"""
    discriminator: Callable[[Any], nn.Module] = lambda config: PatchDiscriminator(
        config.channels, config.judge.discriminator_width, config.judge.discriminator_layers
    )
    prepare: Callable[[Any, Any, Run], None] = lambda config, tokenizer, run: None
    """before the tokenizer is trained, for instance to fill a frozen code book"""
    learner: type[TokenizerTraining] = TokenizerTraining
    learner_options: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    """how the tokenizer is trained, and with what beside the judge's weights"""
    columns: Callable[[Any, Any, Tensor, Tensor], TensorSet] = lambda config, tokenizer, *given: tokenize(tokenizer, *given)
    """(config, tokenizer, images, labels) -> what the generator is trained on"""
    generator_stage: str = "generator"
    """the stage that leaves the finished generator"""
    settings: Callable[[Any], str] = lambda config: settings(config)
    """how samples were drawn, for the page"""
    more: Callable[[Report, Any, Run, Any, Any], None] = lambda page, config, run, tokenizer, model: None
    """further sections of the page"""

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("tokenizer", lambda config, run: train_tokenizer(self, config, run)),
            Stage("generator", lambda config, run: train_generator(self, config, run)),
            Stage("report", lambda config, run: write_report(self, config, run)),
        )

    def tokenizer_of(self, run: Run) -> Any:
        return load_part(self.tokenizer_kind, run.folder / "tokenizer")

    def generator_of(self, run: Run) -> Any:
        kinds = self.generator_kind if isinstance(self.generator_kind, tuple) else (self.generator_kind,)
        wanted = run.result(self.generator_stage).get("kind", kinds[0].__name__)
        kind = next(kind for kind in kinds if kind.__name__ == wanted)
        return load_part(kind, run.folder / self.generator_stage)


# --- stages -----------------------------------------------------------------------------------------------------------


def tokenizer_objective(kit: Kit, config: Any) -> TokenizerTraining:
    judge = config.judge
    torch.manual_seed(config.seed)  # initial weights; everything later draws from named generators
    tokenizer = kit.build_tokenizer(config)
    return kit.learner(
        tokenizer,
        **kit.learner_options(config),
        perceptual=perceptual_loss(judge.perceptual),
        discriminator=kit.discriminator(config) if judge.adversarial_weight else None,
        adversarial=judge.adversarial,
        l2_weight=judge.l2_weight,
        l1_weight=judge.l1_weight,
        perceptual_weight=judge.perceptual_weight,
        codebook_weight=judge.codebook_weight,
        adversarial_weight=judge.adversarial_weight,
        adversarial_start=round(judge.adversarial_start * config.tokenizer_training.steps),
    )


def train_tokenizer(kit: Kit, config: Any, run: Run) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps = run.stage_folder("tokenizer"), config.tokenizer_training
    objective = tokenizer_objective(kit, config)
    kit.prepare(config, objective.tokenizer, run)
    data = training_images(source, config.image_size, config.seed, steps.batch_size)
    fitted = fit(objective, data, steps, folder, label="tokenizer")
    save_part(objective.tokenizer, folder)
    return {
        "images": len(source),
        "classes": class_names(source),
        "skipped": skipped_images(source),
        "seconds": round(fitted.seconds, 1),
    }


def training_tokens(kit: Kit, config: Any, run: Run, tokenizer: Any) -> TensorSet:
    """Every training image `copies` times; kept in a file, so a resumed run reads it."""

    def make() -> dict[str, Tensor]:
        source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
        copies = [framed_at_random(source, config.image_size, config.seed + 1 + copy) for copy in range(config.copies)]
        return kit.columns(config, tokenizer, torch.cat(copies), labels_of(source).repeat(config.copies)).columns

    return kept_tensors(run.stage_folder("generator") / "tokens.safetensors", make)


def train_generator(kit: Kit, config: Any, run: Run) -> Mapping[str, Any]:
    tokenizer = kit.tokenizer_of(run)
    data = training_tokens(kit, config, run, tokenizer)
    torch.manual_seed(config.seed + 1)
    model = kit.build_generator(config, len(run.result("tokenizer")["classes"]))
    folder, steps = run.stage_folder("generator"), config.generator_training
    fitted = fit(
        kit.objective(config, model, tokenizer, data), data.at_least(steps.batch_size), steps, folder, label="generator"
    )
    best = fitted.averaged
    assert isinstance(best, TokenPrediction)
    save_part(best.model, folder)
    count = sum(p.numel() for p in model.parameters())
    return {"seconds": round(fitted.seconds, 1), "parameters": count, "kind": type(model).__name__}


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
    """All numbers of a run on held-out images."""
    tokenizer, model = kit.tokenizer_of(run), kit.generator_of(run)
    judge = Judge.of(config.data, run.stage_folder("judge"))
    images, truth = framed(test, config.image_size, judge.limit), labels_of(test)[: judge.limit]
    rebuilt, usage = reconstruct(tokenizer, images)
    classes = len(run.result("tokenizer")["classes"])
    count = min(config.sampling.images, judge.limit)
    labels = torch.arange(count) % classes
    started = time.perf_counter()
    made = make_images(kit, config, model, tokenizer, labels, config.seed)
    seconds = time.perf_counter() - started
    torch.manual_seed(config.seed + 1)
    fresh = kit.build_generator(config, classes).eval()
    untrained = make_images(kit, config, fresh, tokenizer, labels, config.seed)
    numbers = reconstruction_numbers(images, rebuilt, usage)
    numbers |= {
        "tokens an image": tokenizer.spec.tokens,
        "milliseconds per sampled image": 1e3 * seconds / count,
        "sequential passes": kit.passes(config),
    }
    numbers |= sample_numbers(judge, images, truth, made, labels, untrained=untrained, rebuilt=rebuilt)
    return rounded(numbers)


def write_report(kit: Kit, config: Any, run: Run) -> Mapping[str, Any]:
    """The last stage: numbers and report.html, by the first process."""
    if not first_process():
        return {}
    test = open_test(config.data, channels=config.channels, strict=config.strict)
    train = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    numbers = evaluate(kit, config, run, test)
    tokenizer, model = kit.tokenizer_of(run), kit.generator_of(run)
    names = run.result("tokenizer")["classes"]
    seconds = sum(run.seconds.values())
    millions = run.result(kit.generator_stage)["parameters"] / 1e6
    page = Report(
        f"{kit.title} on handwritten digits" if config.data in MNIST else f"{kit.title} on your images",
        f"{run.result('tokenizer')['images']} training images, a {millions:.1f} M generator, {seconds / 60:.1f} minutes",
    )
    page.figures(headline(numbers))
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
    show_neighbours(page, made[:columns], train, config.image_size)
    some = framed(spread_over(test, 12), config.image_size)
    rebuilt, _ = reconstruct(tokenizer, some)
    page.compare(
        "What the tokenizer keeps",
        {"held-out image": some, "from its tokens": rebuilt},
        caption=f"{tokenizer.spec.tokens} tokens an image; {numbers['codes in use']:.0%} of {tokenizer.vocab_size} codes occur "
        "on the held-out images.",
    )
    kit.more(page, config, run, tokenizer, model)
    numbers_table(page, numbers)
    page.metrics("Training the tokenizer", run.folder / "tokenizer" / "metrics.jsonl", ["generator/mse", "generator/codes"])
    page.metrics("Training the generator", run.folder / "generator" / "metrics.jsonl", ["loss", "accuracy"])
    skipped_table(page, run.result("tokenizer")["skipped"])
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    return numbers


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
