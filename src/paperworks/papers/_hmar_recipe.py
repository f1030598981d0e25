"""HMAR end to end: VAR's tokenizer, next-scale training, masked training of the last blocks, a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.generators.draws import Draws
from paperworks.generators.masked_scale import MaskedScaleTransformer
from paperworks.generators.masked_scale_sampling import default_schedule, inpaint, sample
from paperworks.objectives.scale_training import MaskedScaleTraining, ScaleTraining
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.paper import Run, Stage
from paperworks.papers._generation import adamw, framed, load_part, open_test, save_part
from paperworks.papers._generation_report import spread_over
from paperworks.papers._token_recipe import Kit, TokenConfig, train_tokenizer, training_tokens, write_report
from paperworks.reporting import Report
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.training import Fitted, TrainConfig, fit


@dataclass(frozen=True)
class TokenizerConfig:
    patch_nums: tuple[int, ...] = (1, 2, 3, 4)
    vocab_size: int = 256
    z_channels: int = 16
    ch: int = 24
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    groups: int = 8
    patch: int = 2
    """squares of so many pixels become channels first, which makes the small network fast"""


@dataclass(frozen=True)
class GeneratorConfig:
    depth: int = 6
    embed_dim: int = 192
    num_heads: int = 3
    refine_layers: int = 2
    weights: Literal["lognorm", "equal", "uniform"] = "lognorm"
    drop_path_rate: float = 0.0


@dataclass(frozen=True)
class HMARConfig(TokenConfig):
    tokenizer: TokenizerConfig = TokenizerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    refining: TrainConfig = field(
        default_factory=lambda: TrainConfig(300, 64, optimizers={"main": adamw(1e-3)}, clip=2.0, ema=0.98)
    )
    schedule: tuple[tuple[int, ...], ...] = ()
    """per scale how many tokens become final in each step; the released default when empty"""


def build_tokenizer(config: HMARConfig) -> MultiScaleVQVAE:
    part = config.tokenizer
    return MultiScaleVQVAE(
        vocab_size=part.vocab_size,
        z_channels=part.z_channels,
        ch=part.ch,
        ch_mult=part.ch_mult,
        num_res_blocks=part.num_res_blocks,
        v_patch_nums=part.patch_nums,
        in_channels=config.channels,
        groups=part.groups,
        patch=part.patch,
    )


def build_generator(config: HMARConfig, classes: int) -> MaskedScaleTransformer:
    part = config.generator
    return MaskedScaleTransformer(
        classes,
        part.depth,
        part.embed_dim,
        part.num_heads,
        config.tokenizer.patch_nums,
        config.tokenizer.vocab_size,
        config.tokenizer.z_channels,
        refine_layers=part.refine_layers,
        drop_path_rate=part.drop_path_rate,
    )


def schedule_of(config: HMARConfig) -> list[list[int]]:
    return [list(counts) for counts in config.schedule] or default_schedule(config.tokenizer.patch_nums)


def sample_tokens(
    config: HMARConfig, model: MaskedScaleTransformer, tokenizer: MultiScaleVQVAE, labels: Tensor, draws: Draws
) -> Tensor:
    part = config.sampling
    settings: dict[str, Any] = {"guidance": part.guidance, "top_k": part.top_k, "top_p": part.top_p}
    found = sample(model, tokenizer.quantize, labels, draws, schedule=schedule_of(config), **settings)
    return torch.cat(found.indices, 1)


def passes(config: HMARConfig) -> int:
    return sum(len(counts) for counts in schedule_of(config))


# --- stages -----------------------------------------------------------------------------------------------------------


def train_next_scale(kit: Kit, config: HMARConfig, run: Run) -> Mapping[str, Any]:
    tokenizer = kit.tokenizer_of(run)
    torch.manual_seed(config.seed + 1)
    model = build_generator(config, len(run.result("tokenizer")["classes"]))
    objective = ScaleTraining(model, tokenizer.quantize, config.label_dropout, config.generator.weights)
    return _train(kit, objective, config, config.generator_training, run, "next_scale", tokenizer)


def train_masked(kit: Kit, config: HMARConfig, run: Run) -> Mapping[str, Any]:
    tokenizer = kit.tokenizer_of(run)
    model = load_part(MaskedScaleTransformer, run.folder / "next_scale").train()
    model.start_refining()
    objective = MaskedScaleTraining(model, tokenizer.quantize, config.label_dropout)
    return _train(kit, objective, config, config.refining, run, "generator", tokenizer)


def _train(
    kit: Kit, objective: ScaleTraining, config: HMARConfig, steps: TrainConfig, run: Run, stage: str, tokenizer: Any
) -> Mapping[str, Any]:
    data, folder = training_tokens(kit, config, run, tokenizer), run.stage_folder(stage)
    fitted: Fitted = fit(objective, data.at_least(steps.batch_size), steps, folder, label=stage.replace("_", " "))
    best = fitted.averaged
    assert isinstance(best, TokenPrediction)
    save_part(best.model, folder)
    trained = sum(p.numel() for p in objective.model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in objective.model.parameters())
    return {"seconds": round(fitted.seconds, 1), "parameters": count, "trained": trained}


class HMARKit(Kit):
    @property
    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("tokenizer", lambda config, run: train_tokenizer(self, config, run)),
            Stage("next_scale", lambda config, run: train_next_scale(self, config, run)),
            Stage("generator", lambda config, run: train_masked(self, config, run)),
            Stage("report", lambda config, run: write_report(self, config, run)),
        )


# --- the page ---------------------------------------------------------------------------------------------------------


def show_more(page: Report, config: HMARConfig, run: Run, tokenizer: Any, model: Any) -> None:
    """The same draws under three schedules, and pictures with a part made anew."""
    labels, side = torch.arange(min(model.num_classes, 10)), config.image_size
    part = config.sampling
    settings: dict[str, Any] = {"guidance": part.guidance, "top_k": part.top_k, "top_p": part.top_p}
    rows = {}
    for name, schedule in schedules(model.patch_nums).items():
        draws = Draws.seeded(config.seed, len(labels), 100_000)
        made = sample(model, tokenizer.quantize, labels, draws, schedule=schedule, **settings)
        rows[f"{name}: {made.passes} passes"] = tokenizer.decode_features(made.features)
    page.compare("One network, three schedules", rows, caption="How often a scale is refined is chosen at sampling time.")
    images = framed(spread_over(open_test(config.data, channels=config.channels), 10), side)
    centre, lower = torch.zeros(side, side), torch.zeros(side, side)
    centre[side // 4 : -side // 4, side // 4 : -side // 4] = 1
    lower[side // 2 :] = 1
    nobody = torch.full((len(images),), model.num_classes)
    edits = {"held-out image": images}
    for number, (name, hole) in enumerate({"centre made anew": centre, "lower half made anew": lower}.items()):
        draws = Draws.seeded(config.seed + 1 + number, len(images))
        edits[name] = inpaint(model, tokenizer, images, hole, nobody, draws, **settings)
    page.compare("Editing without retraining", edits, caption="Known pixels are put back exactly.")


def schedules(patch_nums: tuple[int, ...]) -> dict[str, list[list[int]]]:
    """No refinement, the released default, and every map in up to four steps."""
    more = []
    for side in patch_nums:
        size, steps = side * side, min(4, side * side)
        counts = [max(1, size * (step + 1) // 10) for step in range(steps - 1)]
        more.append([*counts, size - sum(counts)] if size > 1 else [1])
    return {"one step": [[side * side] for side in patch_nums], "default": default_schedule(patch_nums), "more": more}
