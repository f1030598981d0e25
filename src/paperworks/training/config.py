"""How a training run goes: plain frozen dataclasses, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps: linear warm-up from `warmup_start` x peak, then a decay to `end` x peak."""

    kind: Literal["constant", "cosine", "linear", "flat_linear", "flat_cosine", "step", "polynomial", "one_cycle", "wsd"] = (
        "cosine"
    )
    warmup: float = 0.0
    """steps if >= 1, else a share of all steps"""
    warmup_start: float = 0.0
    end: float = 0.0
    milestones: tuple[float, ...] = ()
    """for "step": shares of all steps at which the rate is multiplied by `gamma`"""
    gamma: float = 0.1
    flat: float = 0.05
    """for "flat_linear" (VAR's lin0), "flat_cosine" (xAR) and "wsd": share of the steps after warm-up that stay at the peak
    before the decay begins"""
    power: float = 1.0


@dataclass(frozen=True)
class ParameterRule:
    """The first rule whose `pattern` (regular expression, searched in the parameter's name) matches, applies."""

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    freeze: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "adam", "sgd", "lamb", "lars", "adafactor", "adamp", "adadelta", "rmsprop"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    """the first is also AdaDelta's rho and RMSProp's decay"""
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    """not applied to vectors (biases, norms) unless a rule says so"""
    weight_decay_end: float | None = None
    """cosine-moved to this value over training when given"""
    schedule: ScheduleConfig = ScheduleConfig()
    rules: tuple[ParameterRule, ...] = ()
    layer_decay: float | None = None


@dataclass(frozen=True)
class TrainConfig:
    steps: int
    batch_size: int
    """samples per step over all processes and accumulation"""
    micro_batch: int | None = None
    """samples per process and backward pass; default: the whole share of the process"""
    optimizers: dict[str, OptimizerConfig] = field(default_factory=lambda: {"main": OptimizerConfig()})
    clip: float | None = None
    """largest gradient norm per phase"""
    ema: float | None = None
    """decay of the exponential moving average of all weights; None for none"""
    ema_warmup: bool = True
    """use min(decay, (1 + n) / (10 + n)) after n updates, so that a short run's average forgets the initial weights"""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """"auto": bf16 autocast where the processor computes in it, else float32"""
    channels_last: bool = False
    compile: bool = False
    non_finite: Literal["skip", "stop"] = "skip"
    """what to do with a step whose loss or gradient is not finite: never update, then go on or stop"""
    max_skipped: int = 100
    """consecutive skipped steps after which training stops with an error"""
    seed: int = 0
    workers: int = 0
    log_every: int = 20
    eval_every: int | None = None
    checkpoint_every: int = 200
    keep: int = 1
    """checkpoints kept besides the best one"""
    parallel: Literal["auto", "ddp", "shard"] = "auto"
    """"auto": DDP when started by torchrun with more than one process; "shard": fully_shard"""
