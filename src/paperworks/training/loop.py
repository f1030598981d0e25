"""The one training loop. A method brings an `Objective`; how long, how fast and in what precision is a `TrainConfig`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paperworks.config import to_plain
from paperworks.errors import InputError
from paperworks.training import checkpoint
from paperworks.training.batches import BatchTransform, check_batch, check_split, micro_batches, prepare
from paperworks.training.checkpoint import Checkpoint
from paperworks.training.config import TrainConfig
from paperworks.training.ema import Average
from paperworks.training.guard import Guard
from paperworks.training.interrupts import Interrupts
from paperworks.training.metrics import FILE, MetricsFile, Running
from paperworks.training.objective import Context, Objective
from paperworks.training.optimizers import optimizer_config, phase_parameters
from paperworks.training.precision import LossScale, autocast, resolve
from paperworks.training.processes import Processes, first_to_be_started
from paperworks.training.progress import TrainingProgress
from paperworks.training.schedules import check as check_schedule
from paperworks.training.seeds import mixed_seed, seed_global, untouched_randomness
from paperworks.training.state import RunState, load_weights
from paperworks.training.turn import Gear, Turn
from paperworks.training.two_pass import TwoPass

Evaluate = Callable[[Objective, Context], dict[str, float]]


@dataclass
class Fitted:
    """What a run leaves behind. Both objectives are in eval mode."""

    objective: Objective
    """with the weights of the last step (the object that was given to `fit`)"""
    averaged: Objective
    """a copy with the averaged weights; `objective` itself when the run keeps no average"""
    step: int
    seconds: float
    """spent training, over all resumptions"""
    metrics: Path
    """metrics.jsonl; `read_metrics` reads it"""
    checkpoint: Path
    """folder with weights.safetensors and, with an average, ema.safetensors"""
    skipped: int = 0
    """updates held back because a loss or gradient was not finite"""
    best: tuple[float, int] | None = None
    """(value, step) of the best evaluation, when `fit` was told what is best"""


def fit(
    objective: Objective,
    train_data: Any,
    config: TrainConfig,
    folder: str | Path,
    *,
    batch_transform: BatchTransform | None = None,
    evaluate: Evaluate | None = None,
    best: str | None = None,
    label: str = "training",
) -> Fitted:
    """Train `objective` in place on `train_data` and leave checkpoints and metrics in `folder`.

    train_data: a map-style dataset of dicts of tensors. uint8 entries called image... reach the objective as floats in [0, 1].
    batch_transform: (batch, generator) -> batch, on the process's whole share of the batch (mixup, masks).
    evaluate: (objective in eval mode holding the averaged weights, context) -> numbers, every `eval_every` steps and at the
        end. Under several processes all of them call it and the first one's numbers count.
    best: key of evaluate's numbers by which the best checkpoint is kept besides the last ones; "-name" when less is better.
    label: shown in front of progress; "" is silent.

    Continues from the newest checkpoint in `folder` as if it had never been stopped, and returns at once when that one is
    the last step. Raises InputError before the first step when data, batch, phases or the folder do not fit, DivergedError
    when `config.non_finite` says to give up, KeyboardInterrupt after Ctrl-C (with everything saved).
    """
    from paperworks.data import Loader  # late, like Fabric: reading images needs torchvision

    # --- does the folder already hold this run, or another one?
    folder = Path(folder)
    samples = _checked(objective, train_data, config)
    identity = {"objective": type(objective).__qualname__, "samples": samples, **to_plain(config)}
    say = TrainingProgress(label, config.steps, 0, shown=first_to_be_started()).say
    saved = checkpoint.latest(folder, say)
    if saved:
        checkpoint.check_identity(folder, identity)
        if saved.step >= config.steps:
            return _fitted(objective, saved, folder)

    # --- who takes part, and in which number format
    processes = Processes(config.parallel)
    device, world = processes.device, processes.world
    check_split(config, samples, world)
    _check_whole_batch(objective, config, processes)
    share = config.batch_size // world
    computed_in = checkpoint.read_identity(folder).get("computed_in") if saved else None
    precision = computed_in or resolve(config.precision, device)
    if processes.first:
        checkpoint.write_identity(folder, {**identity, "computed_in": precision})
    processes.wait()

    # whoever calls this to measure something may have turned gradients off
    with torch.inference_mode(False), torch.enable_grad(), untouched_randomness(device), _restored_flags(objective):
        # --- what learns: freeze what no phase trains, wrap, build optimisers
        # A sharded module cannot be put together again in place, so sharding works on a copy.
        learner = copy.deepcopy(objective) if processes.sharded else objective
        if config.channels_last:
            learner.to(memory_format=torch.channels_last)
        phases = [(phase, phase_parameters(learner, phase, optimizer_config(config, phase))) for phase in learner.phases()]
        trained = {name for _, named in phases for name in named}
        for name, parameter in learner.named_parameters():
            parameter.requires_grad_(name in trained)
            parameter.grad = None
        learner.train()
        seed_global(mixed_seed(config.seed, "set-up"), device)
        module = processes.wrap(learner)
        if config.compile:
            for part in learner.compiled_modules():
                part.compile()

        gear = Gear(
            objective=learner,
            module=module,
            config=config,
            processes=processes,
            precision=precision,
            scale=LossScale(device, active=precision == "16"),
            guard=Guard(learner, config, device),
            running=Running(),
        )
        parameters = dict(learner.named_parameters())  # sharding has replaced them
        turns = [
            Turn(
                phase,
                {name: parameters[name] for name in named},
                [parameters[name] for name in trained if name not in named],
                gear,
            )
            for phase, named in phases
        ]
        # --- what else has a state: average, data order; then back to where a stopped run was
        average = Average(learner, trained, config.ema, config.ema_warmup) if config.ema is not None else None
        loader = Loader(
            train_data, config.batch_size, seed=config.seed, workers=config.workers, rank=processes.rank, world=world
        )
        run = RunState(turns, average, loader, gear)
        if saved:
            run.load(saved)
        first_step, scalars = run.step, learner.schedules()
        batches = loader.forever()
        metrics = MetricsFile(folder, first_step) if processes.first else None
        newest: Checkpoint | None = saved

        with (
            TrainingProgress(label, config.steps, first_step, shown=processes.first) as progress,
            Interrupts(progress.say) as stop,
        ):
            if saved:
                progress.say(f"continuing from step {first_step}")
            stretch, stretch_steps = 0.0, 0  # seconds and steps since the last row of metrics

            for step in range(first_step, config.steps):
                started = time.perf_counter()
                ctx = Context(step, config.steps, config.seed, processes.rank, world, device)
                ctx.values = {name: schedule(step, config.steps) for name, schedule in scalars.items()}
                seed_global(mixed_seed(config.seed, "step", step, processes.rank), device)

                batch = prepare(next(batches), ctx, batch_transform, config.channels_last)
                if step == first_step:
                    check_batch(batch, learner, share)
                micros = micro_batches(batch, config.micro_batch or share, share)

                gear.guard.begin_step()
                for turn in turns:
                    if turn.phase.has_turn(step):
                        turn.take(micros, ctx)
                with torch.no_grad():
                    learner.after_step(ctx)
                gear.guard.end_step()
                if average:
                    average.update()

                # --- the step is done; the rest is for people and for the day the power fails
                done = run.step = step + 1
                stretch, stretch_steps = stretch + time.perf_counter() - started, stretch_steps + 1
                run.seconds += time.perf_counter() - started
                ending = done == config.steps
                leaving = processes.agree(stop.wanted is not None, look=device.type == "cpu" or _due(done, config.log_every))

                if _due(done, config.log_every) or ending:
                    for turn in turns:
                        gear.guard.check(turn.phase.name, step)
                    gear.guard.check_buffers()
                    row = _row(done, run, turns, gear, config.batch_size * stretch_steps / stretch)
                    stretch, stretch_steps = 0.0, 0
                    progress.losses(row)
                    if metrics:
                        metrics.append(row)
                progress.advance(done)

                improved = False
                if evaluate and (ending or _due(done, config.eval_every)):
                    numbers = _evaluated(evaluate, learner, average, gear, ctx)
                    improved = run.note_best(best, numbers)
                    if metrics:
                        metrics.append({"step": done, **{f"eval/{name}": value for name, value in numbers.items()}})
                if ending or leaving or improved or _due(done, config.checkpoint_every):
                    newest = run.save(folder, config.keep)
                if leaving:
                    progress.say(f"saved at step {done} of {config.steps} in {folder}; the same command continues")
                    processes.wait()
                    stop.leave()

    assert newest is not None
    return _fitted(objective, newest, folder)


# --- pieces ---------------------------------------------------------------------------------------------------------------


def _checked(objective: Objective, train_data: Any, config: TrainConfig) -> int:
    """What can be known to be wrong before any process is set up; returns the number of samples."""
    if not hasattr(train_data, "__len__"):
        raise InputError(f"train_data must know its length, but {type(train_data).__name__} has none")
    check_split(config, len(train_data), 1)
    if not objective.phases():
        raise InputError(f"{type(objective).__name__} has no phases: there is nothing to train")
    for phase in objective.phases():
        optimizer = optimizer_config(config, phase)
        check_schedule(optimizer.schedule, f"optimizers.{phase.optimizer}.schedule", config.steps)
        phase_parameters(objective, phase, optimizer)
    return len(train_data)


def _check_whole_batch(objective: Objective, config: TrainConfig, processes: Processes) -> None:
    if isinstance(objective, TwoPass):
        if processes.sharded:
            raise InputError("parallel='shard' does not go with losses over the whole batch (TwoPass); use parallel='ddp'")
    elif objective.needs_full_batch and (config.micro_batch is not None or processes.world > 1):
        cut = "micro_batch" if config.micro_batch is not None else f"{processes.world} processes"
        name = type(objective).__name__
        raise InputError(f"{cut}: {name} compares samples of the whole batch; it must derive from TwoPass to be cut up")


@contextmanager
def _restored_flags(objective: Objective) -> Iterator[None]:
    """Afterwards parameters are trainable or frozen as before, and nothing stays compiled."""
    flags = [(parameter, parameter.requires_grad) for parameter in objective.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module in objective.modules():
            module._compiled_call_impl = None


def _evaluated(evaluate: Evaluate, objective: Objective, average: Average | None, gear: Gear, ctx: Context) -> dict[str, float]:
    """Evaluate's numbers. Training notices nothing: modes, weights and global random numbers are as before."""
    modes = [(module, module.training) for module in objective.modules()]
    objective.eval()
    try:
        with untouched_randomness(ctx.device), average.applied() if average else nullcontext():
            seed_global(mixed_seed(ctx.seed, "evaluate", ctx.step), ctx.device)
            with torch.no_grad(), autocast(gear.precision, ctx.device), gear.processes.usable(objective):
                numbers = {name: float(value) for name, value in evaluate(objective, ctx).items()}
        return gear.processes.share(numbers)
    finally:
        for module, mode in modes:
            module.training = mode


def _row(done: int, run: RunState, turns: list[Turn], gear: Gear, images_per_second: float) -> dict[str, Any]:
    """One line of metrics.jsonl, over all processes."""
    means = gear.processes.means(gear.running.take())
    row: dict[str, Any] = {"step": done, **means}
    row |= {f"{turn.prefix}lr": turn.learning_rate(done - 1, gear.config.steps) for turn in turns}
    row |= {"images_per_second": round(images_per_second, 2), "seconds": round(run.seconds, 3)}
    return row | {"skipped": int(gear.guard.skipped)}


def _due(done: int, every: int | None) -> bool:
    return every is not None and every > 0 and done % every == 0


def _fitted(objective: Objective, newest: Checkpoint, folder: Path) -> Fitted:
    load_weights(objective.eval(), newest.weights())
    averaged, weights = objective, newest.averaged()
    if weights is not None:
        averaged = copy.deepcopy(objective)
        load_weights(averaged, weights)
    summary = newest.summary()
    return Fitted(
        objective=objective,
        averaged=averaged,
        step=newest.step,
        seconds=summary["seconds"],
        metrics=folder / FILE,
        checkpoint=newest.path,
        skipped=summary["skipped"],
        best=tuple(summary["best"]) if summary["best"] else None,
    )
