"""`paperworks compare --task generation`: every tokenizer with every generator, on the same images and the same time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.metrics import frechet_distance
from paperworks.errors import InputError, nearest
from paperworks.generators.draws import Draws
from paperworks.generators.gpt import GPT
from paperworks.generators.gpt import sample_tokens as sample_gpt
from paperworks.generators.group_parallel import GroupParallelTransformer
from paperworks.generators.group_parallel import sample_tokens as sample_groups
from paperworks.generators.masked import MaskedTransformer
from paperworks.generators.masked_sampling import MaskedSampling
from paperworks.generators.masked_sampling import sample as sample_masked
from paperworks.generators.random_order import RandomOrderTransformer
from paperworks.generators.random_order import sample_tokens as sample_in_order
from paperworks.objectives.detail_training import GroupPrediction
from paperworks.objectives.masked_prediction import MaskedPrediction, RandomOrderPrediction
from paperworks.objectives.token_prediction import TokenPrediction, negative_log_likelihood
from paperworks.paper import Paper, Recipe, Run, Stage, first_process
from paperworks.papers import detailflow, titok, vit_vqgan, vqgan_lc
from paperworks.papers._generation import (
    MNIST,
    TensorSet,
    adamw,
    default_channels,
    framed,
    framed_copies,
    kept_tensors,
    labels_of,
    load_part,
    open_split,
    open_test,
    save_part,
)
from paperworks.papers._generation_report import Judge, in_batches, reconstruction_numbers, rounded, sample_numbers
from paperworks.papers._titok_recipe import TiTokConfig, build_proxy
from paperworks.papers._token_recipe import Kit, tokenize
from paperworks.reporting import Report
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN
from paperworks.tokenizers.protocol import reconstruct
from paperworks.training import TrainConfig, fit


@dataclass(frozen=True)
class CompareTokensConfig:
    data: str = "default"
    budget: float = 60.0
    """seconds that each generator may train"""
    tokenizer_share: float = 4.0
    """times the budget for a tokenizer: every generator rests on it"""
    tokenizers: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    """all when empty"""
    image_size: int = 32
    channels: int = 1
    copies: int = 4
    images: int = 300
    """made per pair"""
    seed: int = 0


# --- tokenizers: each paper's own training, its steps cut to the budget -----------------------------------------------


def _vit(config: Any) -> Any:
    return replace(config, tokenizer=replace(config.tokenizer, patch_size=8))  # 16 tokens, as many as the others


def _grid(config: TiTokConfig) -> MaskGITVQGAN:
    return build_proxy(replace(config, proxy=replace(config.proxy, vocab_size=config.tokenizer.vocab_size)))


GRID = Kit(
    "MaskGIT-VQGAN",
    MaskGITVQGAN,
    titok.KIT.generator_kind,
    _grid,
    titok.KIT.build_generator,
    titok.KIT.sample,
    titok.KIT.passes,
)
"""TiTok's 2-D proxy by itself, with as many codes as TiTok"""


def _judged_codes(config: Any) -> Any:
    """TiTok's own configuration trains with frozen codes; by itself the proxy trains them."""
    return replace(config, judge=replace(config.judge, codebook_weight=1.0, adversarial_start=0.7))


@dataclass(frozen=True)
class Candidate:
    paper: Paper
    kit: Kit
    trainings: tuple[str, ...] = ("tokenizer_training",)
    """that share the budget in the paper's proportions"""
    change: Callable[[Any], Any] = lambda config: config
    """of the paper's laptop configuration"""


TOKENIZERS = {
    "ViT-VQGAN": Candidate(vit_vqgan.paper, vit_vqgan.KIT, change=_vit),
    "VQGAN-LC": Candidate(vqgan_lc.paper, vqgan_lc.KIT),
    "MaskGIT-VQGAN": Candidate(titok.paper, GRID, change=_judged_codes),
    "TiTok": Candidate(titok.paper, titok.KIT, ("proxy_training", "latents_training", "tokenizer_training")),
    "DetailFlow": Candidate(detailflow.paper, detailflow.KIT),
}


def train_tokenizer(config: CompareTokensConfig, run: Run, name: str) -> Mapping[str, Any]:
    part = TOKENIZERS[name]
    kit, trainings = part.kit, part.trainings
    own = part.change(part.paper.recipes["laptop"](data=config.data, seed=config.seed).config)
    own = replace(own, image_size=config.image_size, channels=config.channels)
    stages = [stage for stage in kit.stages if stage.name not in ("generator", "report")]
    folder = run.stage_folder(f"tokenizer {name}")
    pace = _pace(kit, own, folder / "pace", trainings, stages)
    share = config.tokenizer_share * config.budget / pace
    own = replace(own, **{each: _shortened(getattr(own, each), share) for each in trainings})
    slug = part.paper.slug
    mine = Run.open(folder / "run", slug=slug, recipe="compare", arguments={}, config=own, command="paperworks compare")
    table = folder / "pace" / "run" / "tokenizer" / "table.safetensors"
    if table.is_file():  # a code book of features, which need not be computed twice
        shutil.copy(table, mine.stage_folder("tokenizer"))
    started = time.perf_counter()
    mine.execute(Recipe(own, stages), say=lambda _: None)
    steps = {each: getattr(own, each).steps for each in trainings}
    return {"seconds": round(time.perf_counter() - started, 1), "steps": steps, "classes": mine.result("tokenizer")["classes"]}


def _shortened(part: TrainConfig, share: float) -> TrainConfig:
    return replace(part, steps=max(10, round(part.steps * share)))


def _pace(kit: Kit, config: Any, folder: Any, trainings: tuple[str, ...], stages: list[Stage]) -> float:
    """Seconds that all steps of the configuration would take, from a few of them; kept, so that a resumed run has the same."""
    path = folder / "seconds.safetensors"

    def measure() -> dict[str, Tensor]:
        short = replace(
            config, **{part: replace(getattr(config, part), steps=12, checkpoint_every=10**9) for part in trainings}
        )
        probe = Run.open(folder / "run", slug="compare", recipe="pace", arguments={}, config=short, command="")
        probe.execute(Recipe(short, stages), say=lambda _: None)
        seconds = [probe.result(stage.name)["seconds"] / 12 for stage in stages]
        whole = sum(each * getattr(config, part).steps for each, part in zip(seconds, trainings))
        return {"seconds": torch.tensor([whole])}

    return float(kept_tensors(path, measure).columns["seconds"])


def tokenizer_of(run: Run, name: str) -> Any:
    return load_part(TOKENIZERS[name].kit.tokenizer_kind, run.folder / f"tokenizer {name}" / "run" / "tokenizer")


# --- generators: one width and depth for all --------------------------------------------------------------------------

DIM, DEPTH, HEADS = 192, 6, 6
Sampler = Callable[[Any, Tensor, Draws], Tensor]


@dataclass(frozen=True)
class Generator:
    kind: type
    build: Callable[[int, int, int], nn.Module]
    """(classes, tokens, codes)"""
    objective: Callable[[Any], TokenPrediction]
    sample: Sampler
    passes: Callable[[int], int]


def _rar(classes: int, tokens: int, codes: int) -> nn.Module:
    return RandomOrderTransformer(classes, tokens, codes, DIM, DEPTH, HEADS, dropout=0.0)


GENERATORS: dict[str, Generator] = {
    "GPT": Generator(
        GPT,
        lambda classes, tokens, codes: GPT(classes, tokens, codes, DIM, DEPTH, HEADS, null_class=True),
        lambda model: TokenPrediction(model),
        lambda model, labels, draws: sample_gpt(model, labels, draws, guidance=0.5, top_p=0.96),
        lambda tokens: tokens,
    ),
    "RAR": Generator(
        RandomOrderTransformer,
        _rar,
        lambda model: RandomOrderPrediction(model),
        lambda model, labels, draws: sample_in_order(model, labels, draws, guidance=2.0, top_p=0.96),
        lambda tokens: tokens,
    ),
    "MaskGIT": Generator(
        MaskedTransformer,
        lambda classes, tokens, codes: MaskedTransformer(classes, tokens, codes, DIM, DEPTH, HEADS, dropout=0.0),
        lambda model: MaskedPrediction(model),
        lambda model, labels, draws: sample_masked(model, labels, draws, MaskedSampling(8, 1.5, noise=2.0)),
        lambda tokens: 8,
    ),
    "U-ViT": Generator(
        MaskedTransformer,
        lambda classes, tokens, codes: MaskedTransformer(classes, tokens, codes, DIM, DEPTH, HEADS, form="uvit", dropout=0.0),
        lambda model: MaskedPrediction(model),
        lambda model, labels, draws: sample_masked(model, labels, draws, MaskedSampling(8, 1.5, noise=2.0)),
        lambda tokens: 8,
    ),
    "groups of 4": Generator(
        GroupParallelTransformer,
        lambda classes, tokens, codes: GroupParallelTransformer(
            classes, tokens, codes, DIM, DEPTH, HEADS, group=4, multiple_of=64, dropout=0.0
        ),
        lambda model: GroupPrediction(model, correction=0.0),
        lambda model, labels, draws: sample_groups(model, labels, draws, guidance=1.5, top_p=0.96),
        lambda tokens: 4 + (tokens - 4) // 4,
    ),
}


def train_pair(config: CompareTokensConfig, run: Run, tokens_from: str, name: str) -> Mapping[str, Any]:
    tokenizer, part = tokenizer_of(run, tokens_from), GENERATORS[name]
    data, folder = token_set(config, run, tokens_from, tokenizer), run.stage_folder(f"{tokens_from} + {name}")
    classes = len(run.result(f"tokenizer {tokens_from}")["classes"])

    def learner() -> TokenPrediction:
        torch.manual_seed(config.seed + 1)
        return part.objective(part.build(classes, tokenizer.spec.tokens, tokenizer.spec.vocab_size))

    base = TrainConfig(12, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, checkpoint_every=10**9, seed=config.seed)

    def measure() -> dict[str, Tensor]:
        return {"seconds": torch.tensor([fit(learner(), data.at_least(64), base, folder / "pace" / "run").seconds / 12])}

    pace = float(kept_tensors(folder / "pace" / "seconds.safetensors", measure).columns["seconds"])
    steps = replace(base, steps=max(10, round(config.budget / pace)), ema=0.99, checkpoint_every=200)
    fitted = fit(learner(), data.at_least(64), steps, folder, label=f"{tokens_from} + {name}")
    best = fitted.averaged
    assert isinstance(best, TokenPrediction)
    save_part(best.model, folder)
    return {"seconds": round(fitted.seconds, 1), "steps": steps.steps, "parameters": sum(p.numel() for p in best.parameters())}


def token_set(config: CompareTokensConfig, run: Run, name: str, tokenizer: Any) -> TensorSet:
    def make() -> dict[str, Tensor]:
        source = open_split(config.data, "train", channels=config.channels)
        images = framed_copies(source, config.image_size, config.copies, config.seed)
        return tokenize(tokenizer, images, images.labels).columns

    return kept_tensors(run.stage_folder(f"tokenizer {name}") / "tokens.safetensors", make)


# --- the table --------------------------------------------------------------------------------------------------------


def stages_of(config: CompareTokensConfig) -> tuple[Stage, ...]:
    """A stage per tokenizer and per pair, so that a killed comparison goes on with the next one."""
    tokenizers, generators = chosen(config)
    first = [Stage(f"tokenizer {name}", partial(_tokenizer_stage, name)) for name in tokenizers]
    pairs = [Stage(f"{name} + {other}", partial(_pair_stage, name, other)) for name in tokenizers for other in generators]
    return (*first, *pairs, Stage("report", write_report))


def _tokenizer_stage(name: str, config: CompareTokensConfig, run: Run) -> Mapping[str, Any]:
    return train_tokenizer(config, run, name)


def _pair_stage(name: str, other: str, config: CompareTokensConfig, run: Run) -> Mapping[str, Any]:
    return train_pair(config, run, name, other)


def chosen(config: CompareTokensConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for given, known, what in ((config.tokenizers, TOKENIZERS, "tokenizer"), (config.generators, GENERATORS, "generator")):
        for name in given:
            if name not in known:
                raise InputError(f"no {what} {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return config.tokenizers or tuple(TOKENIZERS), config.generators or tuple(GENERATORS)


@torch.inference_mode()
def _make(part: Generator, model: Any, tokenizer: Any, labels: Tensor, seed: int, first: int = 0) -> Tensor:
    def make(wanted: Tensor, start: int) -> Tensor:
        tokens = part.sample(model, wanted, Draws.seeded(seed, len(wanted), first + start))
        return tokenizer.decode([tokens])

    return in_batches(make, labels)


def write_report(config: CompareTokensConfig, run: Run) -> Mapping[str, Any]:
    if not first_process():
        return {}
    tokenizers, generators = chosen(config)
    judge = Judge.of(config.data, run.stage_folder("judge"))
    test = open_test(config.data, channels=config.channels)
    images, truth = framed(test, config.image_size)[: judge.limit], labels_of(test)[: judge.limit]
    classes = run.result(f"tokenizer {tokenizers[0]}")["classes"]
    count = min(config.images, judge.limit)
    labels = torch.arange(count) % len(classes)
    columns = torch.arange(min(10, len(classes)))
    kept: list[list[Any]] = []
    pairs: dict[str, dict[str, Any]] = {}
    some = torch.linspace(0, len(images) - 1, min(10, len(images))).round().long()  # of all classes, in whatever order
    rebuilt_rows = {"held-out image": images[some]}
    pictures: dict[str, dict[str, Tensor]] = {}
    for name in tokenizers:
        tokenizer = tokenizer_of(run, name)
        rebuilt, usage = reconstruct(tokenizer, images)
        rebuilt_rows[name] = rebuilt[some]
        numbers = reconstruction_numbers(images, rebuilt, usage)
        spec = tokenizer.spec
        kept.append(
            [
                name,
                spec.tokens,
                spec.vocab_size,
                f"{numbers['reconstruction PSNR (dB)']:.1f}",
                f"{judge_distance(judge, images, rebuilt):.2f}",
                f"{usage.usage:.0%}",
                run.result(f"tokenizer {name}")["seconds"],
            ]
        )
        held_out = tokenize(tokenizer, images, truth)
        pictures[name] = {}
        for other in generators:
            part = GENERATORS[other]
            model: Any = load_part(part.kind, run.folder / f"{name} + {other}")
            started = time.perf_counter()
            made = _make(part, model, tokenizer, labels, config.seed)
            seconds = time.perf_counter() - started
            torch.manual_seed(0)
            fresh = part.build(len(classes), spec.tokens, spec.vocab_size).eval()
            untrained = _make(part, fresh, tokenizer, labels, config.seed)
            found = sample_numbers(judge, images, truth, made, labels, untrained=untrained)
            found["ms an image"] = 1e3 * seconds / count
            found["passes"] = part.passes(spec.tokens)
            if part.kind is GPT or part.kind is RandomOrderTransformer or part.kind is GroupParallelTransformer:
                found["nats a token"] = negative_log_likelihood(model, [held_out.columns])
            pairs[f"{name} + {other}"] = rounded(found)
            pictures[name][other] = _make(part, model, tokenizer, columns, config.seed, first=50_000)
    _page(config, run, kept, pairs, rebuilt_rows, pictures)
    return {"tokenizers": [[str(cell) for cell in row] for row in kept], "pairs": pairs}


def judge_distance(judge: Judge, real: Tensor, made: Tensor) -> float:
    return frechet_distance(judge.features(real), judge.features(made))


KEPT = ["tokenizer", "tokens", "codes", "PSNR (dB)", "Frechet distance", "codes in use", "seconds"]


def _page(
    config: CompareTokensConfig,
    run: Run,
    kept: list[list[Any]],
    pairs: dict[str, dict[str, Any]],
    rebuilt: dict[str, Tensor],
    pictures: dict[str, dict[str, Tensor]],
) -> None:
    where = "handwritten digits" if config.data in MNIST else "your images"
    page = Report(
        f"{len(kept)} tokenizers x {len(next(iter(pictures.values())))} generators on {where}",
        f"{config.tokenizer_share * config.budget:g} seconds of training for each tokenizer, "
        f"{config.budget:g} for each generator ({DEPTH} blocks of {DIM})",
    )
    page.table("What the tokenizers keep of held-out images", KEPT, kept)
    page.compare("Reconstructions", rebuilt)
    for title, key, form in (
        ("Frechet distance of samples (smaller is better)", "Frechet distance of samples", "{:.2f}"),
        ("Samples recognised as their class", "samples recognised as their class", "{:.0%}"),
        ("Precision", "precision", "{:.0%}"),
        ("Recall", "recall", "{:.0%}"),
        ("Held-out nats a token, where there is a likelihood", "nats a token", "{:.2f}"),
        ("Milliseconds an image", "ms an image", "{:.1f}"),
        ("Sequential passes", "passes", "{}"),
        ("Frechet distance before training", "Frechet distance before training", "{:.1f}"),
    ):
        columns, rows = matrix(pairs, pictures, key, form)
        if rows:
            page.table(title, columns, rows)
    for name, made in pictures.items():
        page.compare(f"Samples of {name}'s tokens", made, caption="A column per class, not selected.")
    page.recipe(config, run.record["command"])
    page.save(run.folder / "report.html")
    (run.folder / "table.md").write_text(markdown(config, kept, pairs, pictures))


def matrix(
    pairs: Mapping[str, Any], shape: Mapping[str, Mapping[str, Any]], key: str, form: str
) -> tuple[list[str], list[Any]]:
    """Rows of tokenizers, columns of generators; nothing where no pair has the number."""
    generators = list(next(iter(shape.values())))
    rows = [
        [name, *(form.format(found[key]) if key in (found := pairs[f"{name} + {other}"]) else "-" for other in generators)]
        for name in shape
    ]
    empty = all(cell == "-" for row in rows for cell in row[1:])
    return ["tokenizer", *generators], [] if empty else rows


def markdown(config: CompareTokensConfig, kept: list[list[Any]], pairs: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    """The same tables for a document."""
    parts = [_markdown_table(KEPT, kept)]
    for title, key, form in (
        ("Frechet distance of samples / before training", "Frechet distance of samples", "{:.2f}"),
        ("Samples recognised as their class", "samples recognised as their class", "{:.0%}"),
        ("Milliseconds an image", "ms an image", "{:.1f}"),
    ):
        columns, rows = matrix(pairs, shape, key, form)
        if key == "Frechet distance of samples":
            _, before = matrix(pairs, shape, "Frechet distance before training", "{:.0f}")
            rows = [[a[0], *(f"{x} / {y}" for x, y in zip(a[1:], b[1:]))] for a, b in zip(rows, before)]
        if rows:
            parts.append(f"{title}:\n\n{_markdown_table(columns, rows)}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def compare(data: str, budget: float, tokenizers: tuple[str, ...], generators: tuple[str, ...], seed: int) -> Recipe:
    config = CompareTokensConfig(
        data, budget, tokenizers=tokenizers, generators=generators, channels=default_channels(data), seed=seed
    )
    return Recipe(config, stages_of(config))
