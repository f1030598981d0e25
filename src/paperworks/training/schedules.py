"""Schedules: how a scalar moves over training. Every one is a pure function of (step, total steps), so a resumed run
continues on the same curve. The last step (`total - 1`) is the one that runs at the end value."""

from __future__ import annotations

import math

from paperworks.errors import InputError
from paperworks.training.config import OptimizerConfig, ScheduleConfig
from paperworks.training.objective import Schedule


def rate(step: int, total: int, config: ScheduleConfig) -> float:
    """The factor on the peak learning rate at `step` of `total`: warm-up, then the decay that `config.kind` names."""
    up = warmup_steps(total, config)
    start, end = config.warmup_start, config.end
    if config.kind == "one_cycle":
        up = up or round(0.3 * total)
        if step < up:  # one-cycle rises on a cosine, the other kinds on a line
            return start + (1 - start) * _half_cosine(1 - step / up)
    elif step < up:
        return start + (1 - start) * step / up

    progress = min(1.0, (step - up) / max(1, total - 1 - up))
    match config.kind:
        case "constant":
            return 1.0
        case "cosine" | "one_cycle":
            return end + (1 - end) * _half_cosine(progress)
        case "linear":
            return end + (1 - end) * (1 - progress)
        case "polynomial":
            return end + (1 - end) * (1 - progress) ** config.power
        case "flat_linear":
            return 1.0 if progress < config.flat else end + (1 - end) * (1 - progress) / (1 - config.flat)
        case "flat_cosine":
            return end + (1 - end) * _half_cosine(max(0.0, progress - config.flat) / (1 - config.flat))
        case "wsd":  # warm-up, stable, decay with the 1 - sqrt cool-down (Haegele et al. 2024)
            if progress < config.flat:
                return 1.0
            return end + (1 - end) * (1 - math.sqrt((progress - config.flat) / (1 - config.flat)))
        case "step":
            return config.gamma ** sum(step >= round(share * total) for share in config.milestones)
        case unknown:
            raise InputError(f"schedule.kind: there is no schedule {unknown!r}")


def warmup_steps(total: int, config: ScheduleConfig) -> int:
    """`config.warmup` as a number of steps."""
    return round(config.warmup if config.warmup >= 1 else config.warmup * total)


def weight_decay_at(step: int, total: int, config: OptimizerConfig) -> float:
    """Weight decay at `step`: constant, or moved on a half cosine to `weight_decay_end` (from step 0, warm-up included)."""
    if config.weight_decay_end is None:
        return config.weight_decay
    return cosine(config.weight_decay, config.weight_decay_end)(step, total)


def check(config: ScheduleConfig, where: str, steps: int) -> None:
    """Raises InputError naming the field when the numbers cannot make a schedule over `steps`."""
    if config.warmup < 0 or warmup_steps(steps, config) > steps:
        raise InputError(f"{where}.warmup={config.warmup} does not fit into steps={steps}; give steps, or a share below 1")
    if config.kind in ("flat_linear", "flat_cosine", "wsd") and not 0 <= config.flat < 1:
        raise InputError(f"{where}.flat={config.flat}: the share of steps at the peak must lie in [0, 1)")
    if any(not 0 <= share <= 1 for share in config.milestones):
        raise InputError(f"{where}.milestones={config.milestones}: they are shares of all steps, each in [0, 1]")


# --- schedules for any other scalar (teacher temperature, EMA momentum, guidance ...) ------------------------------------


def constant(value: float) -> Schedule:
    return lambda step, total: value


def linear(start: float, end: float) -> Schedule:
    return lambda step, total: start + (end - start) * _share(step, total)


def cosine(start: float, end: float) -> Schedule:
    """Half a cosine from `start` at the first step to `end` at the last."""
    return lambda step, total: end + (start - end) * _half_cosine(_share(step, total))


def scaled(peak: float, config: ScheduleConfig) -> Schedule:
    """Any scalar on a learning-rate shape: `peak * rate(...)`."""
    return lambda step, total: peak * rate(step, total, config)


def switched(before: float, after: float, at: float) -> Schedule:
    """`before` until the share `at` of all steps, then `after`."""
    return lambda step, total: after if step >= round(at * total) else before


def _share(step: int, total: int) -> float:
    return min(1.0, step / max(1, total - 1))


def _half_cosine(progress: float) -> float:
    """1 at progress 0, falling to 0 at progress 1."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)
