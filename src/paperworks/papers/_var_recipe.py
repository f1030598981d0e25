"""VAR end to end: train the multi-scale tokenizer, train the next-scale transformer on its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from paperworks.data import ImageSource, Transformed, open_images
from paperworks.data.transforms import Drawn, eval_crop, eval_shift, to_float, train_crop, train_shift
from paperworks.errors import InputError
from paperworks.generators.next_scale import NextScaleTransformer
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.objectives.perceptual import FeaturePerceptual, LPIPSLoss, PyramidLoss
from paperworks.objectives.token_prediction import TokenPrediction
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Run, first_process
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.training import Fitted, OptimizerConfig, ScheduleConfig, TrainConfig, fit


@dataclass(frozen=True)
class TokenizerConfig:
    """The autoencoder and what it is trained for."""

    patch_nums: tuple[int, ...] = (1, 2, 3, 4)
    """sides of the token maps; the last one times 2^(len(ch_mult) - 1) is the image's side"""
    vocab_size: int = 256
    z_channels: int = 16
    ch: int = 16
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 1
    groups: int = 8
    perceptual: Literal["pyramid", "lite0", "lpips", "none"] = "pyramid"
    """"lite0": features of the embedded ImageNet classifier; "lpips": fetches LPIPS's weights"""
    adversarial_weight: float = 0.5
    """0 for no discriminator"""
    adversarial_start: float = 0.5
    """share of the training after which the discriminator joins"""
    discriminator_width: int = 16
    discriminator_layers: int = 2


@dataclass(frozen=True)
class TransformerConfig:
    depth: int = 6
    embed_dim: int = 192
    num_heads: int = 3
    drop_path_rate: float = 0.0
    shared_aln: bool = False
    label_dropout: float = 0.1


@dataclass(frozen=True)
class SamplingConfig:
    guidance: float = 1.0
    top_k: int = 0
    top_p: float = 0.96
    images: int = 1000
    """made for the Frechet distance"""


def adamw(lr: float, decay: float = 0.05, end: float = 0.1) -> OptimizerConfig:
    """The paper's optimiser: AdamW (0.9, 0.95), a short warm-up, a flat start and a linear decay."""
    schedule = ScheduleConfig("flat_linear", warmup=0.02, warmup_start=0.005, end=end)
    return OptimizerConfig("adamw", lr=lr, betas=(0.9, 0.95), weight_decay=decay, schedule=schedule)


def tokenizer_training(steps: int, batch_size: int, lr: float) -> TrainConfig:
    schedule = ScheduleConfig("cosine", warmup=0.03, end=0.05)
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        optimizers={
            "main": OptimizerConfig(lr=lr, betas=(0.9, 0.99), schedule=schedule),
            "discriminator": OptimizerConfig(lr=lr / 2, betas=(0.5, 0.9), schedule=schedule),
        },
        clip=1.0,
        channels_last=True,
    )


@dataclass(frozen=True)
class VARConfig:
    data: str = "default"
    image_size: int = 32
    channels: int = 1
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    copies: int = 4
    """how often each training image is tokenized, each time with another random crop"""
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TrainConfig = field(default_factory=lambda: tokenizer_training(900, 32, 2e-3))
    transformer: TransformerConfig = TransformerConfig()
    transformer_training: TrainConfig = field(
        default_factory=lambda: TrainConfig(900, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.995)
    )
    sampling: SamplingConfig = SamplingConfig()


# --- images -----------------------------------------------------------------------------------------------------------


def open_split(config: VARConfig, split: Literal["train", "test"]) -> ImageSource:
    """The user's images: class folders give labels, a flat folder is one class. Folders have no test split of their own,
    so a tenth of the images is set aside."""
    return open_images(config.data, split=split, strict=config.strict, channels=config.channels)


def class_names(source: ImageSource) -> list[str]:
    return source.classes or ["image"]


def labels_of(source: ImageSource) -> Tensor:
    return source.labels if source.labels is not None else torch.zeros(len(source), dtype=torch.int64)


def framing(source: ImageSource, size: int, *, random: bool) -> Drawn:
    """Small pictures are shifted on a black margin, larger ones resized and cropped."""
    height, width = source[0]["image"].shape[-2:]
    if max(height, width) <= size:
        return train_shift(size, pad=2) if random else eval_shift(size)
    return train_crop(size) if random else eval_crop(size, margin=1.0)


def framed(source: ImageSource, size: int, limit: int | None = None) -> Tensor:
    """Images [N, C, size, size] in [0, 1], without randomness."""
    data = Transformed(source, framing(source, size, random=False), seed=0)
    return torch.stack([to_float(data[i]["image"].as_subclass(Tensor)) for i in range(min(len(source), limit or len(source)))])


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def build_tokenizer(config: VARConfig) -> MultiScaleVQVAE:
    part = config.tokenizer
    tokenizer = MultiScaleVQVAE(
        vocab_size=part.vocab_size,
        z_channels=part.z_channels,
        ch=part.ch,
        ch_mult=part.ch_mult,
        num_res_blocks=part.num_res_blocks,
        v_patch_nums=part.patch_nums,
        in_channels=config.channels,
        groups=part.groups,
    )
    if config.image_size != tokenizer.image_size:
        raise InputError(
            f"image_size={config.image_size}, but {len(part.ch_mult) - 1} halvings down to a map of {part.patch_nums[-1]} x "
            f"{part.patch_nums[-1]} need {tokenizer.image_size}: change image_size, tokenizer.ch_mult or tokenizer.patch_nums"
        )
    return tokenizer


def tokenizer_objective(config: VARConfig) -> TokenizerTraining:
    part = config.tokenizer
    torch.manual_seed(config.seed)  # initial weights; everything later draws from named generators
    tokenizer = build_tokenizer(config)
    judge = PatchDiscriminator(config.channels, part.discriminator_width, part.discriminator_layers)
    return TokenizerTraining(
        tokenizer,
        perceptual=_perceptual(part.perceptual),
        discriminator=judge if part.adversarial_weight else None,
        adversarial_weight=part.adversarial_weight,
        adversarial_start=round(part.adversarial_start * config.tokenizer_training.steps),
    )


def train_tokenizer(config: VARConfig, run: Run) -> Mapping[str, Any]:
    source = open_split(config, "train")
    folder = run.stage_folder("tokenizer")
    steps = config.tokenizer_training
    data = Transformed(
        source,
        framing(source, config.image_size, random=True),
        seed=config.seed,
        size=max(len(source), steps.batch_size),
    )
    objective = tokenizer_objective(config)
    fitted = fit(objective, data, steps, folder, label="tokenizer")
    by_first_process(lambda: objective.tokenizer.save_pretrained(folder / "model"))
    skipped = [list(entry) for entry in source.skipped]
    return {"images": len(source), "classes": class_names(source), "skipped": skipped, "seconds": round(fitted.seconds, 1)}


def _perceptual(name: str) -> nn.Module | None:
    if name == "lite0":
        from paperworks.analysis.features import lite0

        return FeaturePerceptual(lite0())
    if name == "none":
        return None
    return LPIPSLoss() if name == "lpips" else PyramidLoss()


# --- stage 2 ----------------------------------------------------------------------------------------------------------


class TokenSet(Dataset[dict[str, Tensor]]):
    """Token maps of images, flattened over scales, with the transformer's teacher-forcing inputs."""

    def __init__(self, tokens: Tensor, inputs: Tensor, labels: Tensor):
        self.tokens, self.inputs, self.labels = tokens, inputs, labels

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens[index], "inputs": self.inputs[index], "label": self.labels[index]}

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch in one indexing operation."""
        chosen = torch.as_tensor(indices)
        return {"tokens": self.tokens[chosen], "inputs": self.inputs[chosen], "label": self.labels[chosen]}


@torch.inference_mode()
def tokenize(tokenizer: MultiScaleVQVAE, images: Tensor, labels: Tensor, batch_size: int = 200) -> TokenSet:
    """Images [N, C, H, W] in [0, 1] as token maps."""
    tokens, inputs = [], []
    for batch in images.split(batch_size):
        indices = tokenizer.encode(batch)
        tokens.append(torch.cat(indices, 1))
        inputs.append(tokenizer.quantize.next_inputs(indices))
    return TokenSet(torch.cat(tokens), torch.cat(inputs), labels)


def training_tokens(config: VARConfig, run: Run, tokenizer: MultiScaleVQVAE) -> TokenSet:
    """Every training image `copies` times, each time framed differently; kept in a file, so a resumed run reads it."""
    path = run.stage_folder("transformer") / "tokens.safetensors"

    def write() -> None:
        if path.is_file():
            return
        source = open_split(config, "train")
        frame, labels = framing(source, config.image_size, random=True), labels_of(source)
        images = []
        for copy in range(config.copies):
            data = Transformed(source, frame, seed=config.seed + 1 + copy)
            images.append(torch.stack([to_float(data[i]["image"].as_subclass(Tensor)) for i in range(len(source))]))
        found = tokenize(tokenizer, torch.cat(images), labels.repeat(config.copies))
        aside = path.with_suffix(".part")
        save_file({"tokens": found.tokens, "inputs": found.inputs, "labels": found.labels}, aside)
        aside.rename(path)

    by_first_process(write)
    stored = load_file(path)
    return TokenSet(stored["tokens"], stored["inputs"], stored["labels"])


def build_transformer(config: VARConfig, classes: int) -> NextScaleTransformer:
    part = config.transformer
    torch.manual_seed(config.seed + 1)
    return NextScaleTransformer(
        num_classes=classes,
        depth=part.depth,
        embed_dim=part.embed_dim,
        num_heads=part.num_heads,
        patch_nums=config.tokenizer.patch_nums,
        vocab_size=config.tokenizer.vocab_size,
        code_channels=config.tokenizer.z_channels,
        drop_path_rate=part.drop_path_rate,
        shared_aln=part.shared_aln,
    )


def train_transformer(config: VARConfig, run: Run) -> Mapping[str, Any]:
    tokenizer = load_tokenizer(run)
    data = training_tokens(config, run, tokenizer)
    model = build_transformer(config, len(run.result("tokenizer")["classes"]))
    folder = run.stage_folder("transformer")
    steps = config.transformer_training
    if len(data) < steps.batch_size:  # a handful of images: let each appear several times in a batch
        repeats = -(-steps.batch_size // len(data))
        data = TokenSet(data.tokens.repeat(repeats, 1), data.inputs.repeat(repeats, 1, 1), data.labels.repeat(repeats))
    fitted = fit(TokenPrediction(model, config.transformer.label_dropout), data, steps, folder, label="transformer")
    best = averaged_model(fitted)
    assert isinstance(best, NextScaleTransformer)
    by_first_process(lambda: best.save_pretrained(folder / "model"))
    return {"seconds": round(fitted.seconds, 1), "parameters": sum(p.numel() for p in model.parameters())}


def by_first_process(work: Callable[[], Any]) -> None:
    """Under torchrun one process writes and the others wait for the file."""
    if first_process():
        work()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def averaged_model(fitted: Fitted) -> nn.Module:
    objective = fitted.averaged
    assert isinstance(objective, TokenPrediction)
    return objective.model


# --- what a run made --------------------------------------------------------------------------------------------------


def load_tokenizer(run: Run) -> MultiScaleVQVAE:
    return _load(MultiScaleVQVAE, run.folder / "tokenizer" / "model")


def load_transformer(run: Run) -> NextScaleTransformer:
    return _load(NextScaleTransformer, run.folder / "transformer" / "model")


def _load(kind: Any, folder: Path) -> Any:
    if not folder.is_dir():
        raise InputError(
            f"{folder.parent.parent} has no trained {folder.parent.name} yet; run the same command again to resume"
        )
    return kind.from_pretrained(folder).eval()
