"""Optimisers by name, and which parameter gets which learning rate and weight decay: ordered rules on parameter names,
layer decay, and no decay on vectors. `describe_groups` shows the outcome before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from paperworks.errors import InputError
from paperworks.training.config import OptimizerConfig, ParameterRule, TrainConfig
from paperworks.training.objective import Objective, Phase
from paperworks.training.schedules import rate, weight_decay_at

Named = Mapping[str, nn.Parameter]
ORDINARY = ParameterRule("")
HOW = ("fused", "foreach", "capturable", "differentiable")
"""options of torch's optimisers that say how an update is computed, not which"""
BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|stages)\.(\d+)\.")


def phase_parameters(objective: Objective, phase: Phase, config: OptimizerConfig) -> dict[str, nn.Parameter]:
    """What `phase` trains: parameters below its modules that the objective left trainable and no rule freezes."""
    below = {
        name: parameter
        for name, parameter in objective.named_parameters()
        if any(prefix == "" or name == prefix or name.startswith(prefix + ".") for prefix in phase.modules)
    }
    for prefix in phase.modules:
        if prefix and not any(name == prefix or name.startswith(prefix + ".") for name in below):
            raise InputError(f"phase {phase.name!r}: no parameter lies below module {prefix!r} of {type(objective).__name__}")
    for rule in config.rules:
        if not any(re.search(rule.pattern, name) for name in below):
            raise InputError(
                f"optimizers.{phase.optimizer}.rules: pattern {rule.pattern!r} matches no parameter of phase "
                f"{phase.name!r} (they are called like {', '.join(list(below)[:3])})"
            )
    chosen = {name: p for name, p in below.items() if p.requires_grad and not _rule(name, config).freeze}
    if not chosen:
        raise InputError(f"phase {phase.name!r} has no trainable parameter: all are frozen or its modules have none")
    return chosen


def parameter_groups(objective: Objective, named: Named, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups with equal settings, in the order of first appearance. `lr_scale` multiplies the learning rate; the weight
    decay of a group is moved by `weight_decay_end` only when no rule fixed it (`moves`)."""
    exempt = _undecayed_names(objective)
    depth_scale = layer_scales(objective, named, config.layer_decay) if config.layer_decay else {}
    groups: dict[tuple[float, float | None], dict[str, Any]] = {}
    for name, parameter in named.items():
        rule = _rule(name, config)
        lr_scale = rule.lr_scale * depth_scale.get(name, 1.0)
        if rule.weight_decay is not None:
            decay: float | None = rule.weight_decay
        elif parameter.ndim <= 1 or name in exempt:
            decay = 0.0
        else:
            decay = None  # follows the config
        group = groups.setdefault(
            (lr_scale, decay),
            {
                "params": [],
                "names": [],
                "lr": config.lr * lr_scale,
                "lr_scale": lr_scale,
                "weight_decay": config.weight_decay if decay is None else decay,
                "moves": decay is None,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def layer_scales(objective: Objective, named: Named, decay: float) -> dict[str, float]:
    """`decay ** (last layer - layer)` per parameter (BEiT): layers come from a module's `group_matcher` (timm's protocol)
    where there is one, else from the block index in the name, with what lies before the blocks as layer 0."""
    layers: dict[str, int] = {}
    for prefix, module in objective.named_modules():
        if hasattr(module, "group_matcher") and not any(name.startswith(prefix + ".") for name in layers):
            from timm.models import group_parameters

            found = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
            layers |= {f"{prefix}.{name}" if prefix else name: layer for name, layer in found.items()}
    if not layers:
        blocks = {name: int(match[1]) + 1 for name in named if (match := BLOCK.search(name))}
        if not blocks:
            raise InputError(
                "layer_decay: the model has neither a group_matcher nor parameters called blocks.N, layers.N, stages.N"
            )
        seen, last = False, max(blocks.values()) + 1
        for name in named:
            seen |= name in blocks
            layers[name] = blocks.get(name, last if seen else 0)
    last = max(layers.values())
    return {name: decay ** (last - layers.get(name, last)) for name in named}


def build(objective: Objective, named: Named, config: OptimizerConfig, *, sharded: bool = False) -> Optimizer:
    """The optimiser for `named`. torch's own are fused; LAMB, LARS, Adafactor, AdamP and TensorFlow's RMSProp come from
    timm."""
    groups = parameter_groups(objective, named, config)
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    speed: dict[str, Any] = {"foreach": True} if sharded else {"fused": True}
    if sharded and config.name not in ("adamw", "adam", "sgd"):
        raise InputError(f"optimizers: {config.name} does not go with parallel='shard'; adamw, adam and sgd do")
    match config.name:
        case "adamw":
            return torch.optim.AdamW(groups, **common, betas=config.betas, eps=config.eps, **speed)
        case "adam":
            return torch.optim.Adam(groups, **common, betas=config.betas, eps=config.eps, **speed)
        case "sgd":
            sgd = torch.optim.SGD(groups, **common, momentum=config.momentum, nesterov=config.nesterov, **speed)
            if config.momentum:  # the same as torch's lazy start, except that a held-back first update leaves no garbage
                for parameter in named.values():
                    sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return sgd
        case "adadelta":
            return torch.optim.Adadelta(groups, **common, rho=config.betas[0], eps=config.eps, foreach=True)

    from timm import optim

    for group in groups:  # layer-wise trust ratios for weights, also without weight decay; never for vectors
        if config.name in ("lamb", "lars"):
            group["always_adapt"] = group["moves"]
    match config.name:
        case "lamb":  # its own clipping is off: the loop clips
            return optim.Lamb(groups, **common, betas=config.betas, eps=config.eps, max_grad_norm=None)
        case "lars":
            return optim.Lars(groups, **common, momentum=config.momentum, nesterov=config.nesterov)
        case "adafactor":  # as in big_vision: no relative step, momentum kept in bfloat16
            return optim.AdafactorBigVision(groups, **common, momentum=config.momentum or None)
        case "adamp":
            return optim.AdamP(groups, **common, betas=config.betas, eps=config.eps, nesterov=config.nesterov)
        case "rmsprop":  # TensorFlow's: epsilon inside the root, the rate inside the momentum
            return optim.RMSpropTF(groups, **common, alpha=config.betas[0], eps=config.eps, momentum=config.momentum)
        case unknown:
            raise InputError(f"optimizers: there is no optimiser {unknown!r}")


def set_rates(optimizer: Optimizer, config: OptimizerConfig, step: int, total: int) -> None:
    """Set every group's learning rate and weight decay for `step`."""
    lr, decay = config.lr * rate(step, total, config.schedule), weight_decay_at(step, total, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if group["moves"]:
            group["weight_decay"] = decay


def describe_groups(objective: Objective, config: TrainConfig) -> list[dict[str, Any]]:
    """One row per parameter group and phase, and one for what nothing trains: a dry run of the rules."""
    rows: list[dict[str, Any]] = []
    trained: set[str] = set()
    for phase in objective.phases():
        optimizer = optimizer_config(config, phase)
        named = phase_parameters(objective, phase, optimizer)
        trained |= set(named)
        for group in parameter_groups(objective, named, optimizer):
            rows.append(
                {
                    "phase": phase.name,
                    "optimizer": optimizer.name,
                    "lr": group["lr"],
                    "weight_decay": group["weight_decay"],
                    **_contents({name: named[name] for name in group["names"]}),
                }
            )
    rest = {name: p for name, p in objective.named_parameters() if name not in trained}
    if rest:
        rows.append({"phase": "-", "optimizer": "frozen", "lr": 0.0, "weight_decay": 0.0, **_contents(rest)})
    return rows


def optimizer_config(config: TrainConfig, phase: Phase) -> OptimizerConfig:
    if phase.optimizer not in config.optimizers:
        raise InputError(
            f"phase {phase.name!r} asks for optimizers.{phase.optimizer}; there is {', '.join(config.optimizers) or 'none'}"
        )
    return config.optimizers[phase.optimizer]


# --- state by parameter name ----------------------------------------------------------------------------------------------


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's state keyed by parameter name, so that it does not depend on the order of parameters."""
    names = {id(p): name for group in optimizer.param_groups for p, name in zip(group["params"], group["names"])}
    return {
        "state": {names[id(p)]: dict(state) for p, state in optimizer.state.items()},
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
    }


def load_optimizer_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Back from `optimizer_state`. Raises InputError when the parameters are not the ones that were saved."""
    here = [group["names"] for group in optimizer.param_groups]
    then = [list(group["names"]) for group in saved["groups"]]
    if here != then:
        changed = sorted({n for names in here for n in names} ^ {n for names in then for n in names})
        raise InputError(f"the checkpoint's optimiser trained other parameters, first {changed[0] if changed else 'regrouped'}")
    order = [name for names in here for name in names]
    position = {name: index for index, name in enumerate(order)}
    groups: list[dict[str, Any]] = []
    start = 0
    for group in saved["groups"]:
        count = len(group["names"])
        present = {key: optimizer.param_groups[len(groups)][key] for key in HOW if key in optimizer.param_groups[0]}
        groups.append({**group, **present, "params": list(range(start, start + count))})
        start += count
    optimizer.load_state_dict(
        {"state": {position[name]: state for name, state in saved["state"].items()}, "param_groups": groups}
    )


# --- helpers --------------------------------------------------------------------------------------------------------------


def _rule(name: str, config: OptimizerConfig) -> ParameterRule:
    return next((rule for rule in config.rules if re.search(rule.pattern, name)), ORDINARY)


def _undecayed_names(objective: Objective) -> set[str]:
    """Names that a module's `no_weight_decay()` lists (timm's protocol)."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in objective.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }


def _contents(named: Named) -> dict[str, Any]:
    names: Sequence[str] = list(named)
    shown = ", ".join(names[:2]) + (f", ... {names[-1]}" if len(names) > 3 else "".join(f", {n}" for n in names[2:]))
    return {"tensors": len(names), "parameters": sum(p.numel() for p in named.values()), "names": shown}
