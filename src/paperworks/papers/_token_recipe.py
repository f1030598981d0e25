"""Recipes of two stages, a tokenizer and a generator of its tokens, with a page at the end: what such papers share.

A paper says in a `Kit` how its parts are built and sampled; stages and verbs here do the rest for any tokenizer that
`objectives.tokenizer_training` can train and any class-conditional generator of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.data import ImageSource, Transformed
from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.layers.vector_quantization import CodeUsage
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Run, Stage
from paperworks.papers._generation import (
    FramedImages,
    Mirrored,
    Perceptual,
    TensorSet,
    adamw,
    class_names,
    framing,
    kept_tensors,
    load_part,
    open_split,
    perceptual_loss,
    save_part,
    skipped_images,
    tokenizer_training,
    training_images,
)
from paperworks.papers._token_report import add_verbs, as_maps, evaluate, make_images, settings, write_report
from paperworks.reporting import Report
from paperworks.tokenizers.protocol import reconstruct
from paperworks.training import Fitted, TrainConfig, fit

__all__ = [
    "JudgeConfig",
    "Kit",
    "SampleConfig",
    "TokenConfig",
    "add_verbs",
    "as_maps",
    "evaluate",
    "make_images",
    "settings",
    "tokenize",
    "train_generator",
    "train_tokenizer",
    "training_tokens",
    "write_report",
]


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
    images: int = 0
    """made, and held-out ones looked at, for the Frechet distance; 0 for what takes a laptop a minute (see `Judge.of`)"""


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
    flip: bool = False
    """mirror half of the training images: of photos, never of digits or writing"""
    margin: float = 1.125
    """the shorter side of a photo, over image_size, when it is cropped at random"""
    crop_tokens: bool = True
    """crop at random what the generator is trained on, too; else its centre, every second copy mirrored with `flip`"""
    seed: int = 0
    judge: JudgeConfig = JudgeConfig()
    tokenizer_training: TrainConfig = field(default_factory=lambda: tokenizer_training(900, 32, 2e-3))
    generator_training: TrainConfig = field(
        default_factory=lambda: TrainConfig(900, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.995)
    )
    label_dropout: float = 0.1
    sampling: SampleConfig = SampleConfig()


@torch.inference_mode()
def tokenize(tokenizer: Any, images: Tensor | FramedImages, labels: Tensor, batch_size: int = 200) -> TensorSet:
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
    columns: Callable[[Any, Any, Any, Tensor], TensorSet] = lambda config, tokenizer, *given: tokenize(tokenizer, *given)
    """(config, tokenizer, images, labels) -> what the generator is trained on; images come as `FramedImages`, to be split"""
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

    def generates(self, config: Any) -> bool:
        """Whether a generator follows; where it cannot, the tokenizer alone is trained and judged."""
        return True

    def rebuild(self, tokenizer: Any, images: Tensor) -> tuple[Tensor, CodeUsage | None]:
        """What is left of images [N, C, H, W], and the codes they used where there are codes."""
        return reconstruct(tokenizer, images)

    def tokenizer_of(self, run: Run) -> Any:
        return load_part(self.tokenizer_kind, run.folder / "tokenizer")

    def generator_of(self, run: Run) -> Any:
        kinds = self.generator_kind if isinstance(self.generator_kind, tuple) else (self.generator_kind,)
        made = run.result(self.generator_stage)
        if not made:
            raise InputError(f"{run.folder} holds a tokenizer alone: there is no generator to sample from")
        wanted = made.get("kind", kinds[0].__name__)
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


def averaged_tokenizer(fitted: Fitted) -> Any:
    """The tokenizer with averaged weights where its training keeps an average, else with those of the last step."""
    learner = fitted.averaged
    assert isinstance(learner, TokenizerTraining)
    return learner.tokenizer


def train_tokenizer(kit: Kit, config: Any, run: Run) -> Mapping[str, Any]:
    source = open_split(config.data, "train", channels=config.channels, strict=config.strict)
    folder, steps = run.stage_folder("tokenizer"), config.tokenizer_training
    objective = tokenizer_objective(kit, config)
    kit.prepare(config, objective.tokenizer, run)
    framed_as = {"flip": config.flip, "margin": config.margin}
    data = training_images(source, config.image_size, config.seed, steps.batch_size, **framed_as)
    fitted = fit(objective, data, steps, folder, label="tokenizer")
    save_part(averaged_tokenizer(fitted), folder)
    return {
        "images": len(source),
        "classes": class_names(source),
        "skipped": skipped_images(source),
        "seconds": round(fitted.seconds, 1),
    }


def token_images(config: Any, source: ImageSource) -> FramedImages:
    """Every training image `copies` times, each time framed differently."""
    copies = []
    for copy in range(config.copies):
        mirrored = config.flip and config.crop_tokens
        frame = framing(source, config.image_size, random=config.crop_tokens, flip=mirrored, margin=config.margin)
        if config.flip and not config.crop_tokens and copy % 2:
            frame = Mirrored(frame)  # as often as drawing it would, and both ways of every image
        copies.append(Transformed(source, frame, seed=config.seed + 1 + copy))
    return FramedImages(*copies, workers=config.generator_training.workers)


def training_tokens(kit: Kit, config: Any, run: Run, tokenizer: Any) -> TensorSet:
    """Tokens of `token_images`; kept in a file, so a resumed run reads them."""

    def make() -> dict[str, Tensor]:
        images = token_images(config, open_split(config.data, "train", channels=config.channels, strict=config.strict))
        return kit.columns(config, tokenizer, images, images.labels).columns

    return kept_tensors(run.stage_folder("generator") / "tokens.safetensors", make)


def train_generator(kit: Kit, config: Any, run: Run) -> Mapping[str, Any]:
    if not kit.generates(config):
        return {}
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
