"""`prepare_for_inference`: the same network, computed faster, with a description of what was done and how far outputs moved.

    fast = prepare_for_inference(timm.create_model("inceptionnext_tiny"), example=images)
    print(fast.report)

What it does to any network: batch norms are folded into the convolutions beside them, numbers become bfloat16 where the
processor multiplies those in hardware, tensors lie channels-last. A module that knows a faster equal form of itself says so
with a method `for_inference(plan) -> nn.Module`; MetaNeXt and ConvNeXt blocks do (see `fused.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paperworks.backbones.fused import Plan
from paperworks.backbones.protocol import Backbone
from paperworks.errors import InputError
from paperworks.layers.folding import fold_after, fold_before
from paperworks.layers.processor import bf16_is_fast

Precision = Literal["auto", "32", "bf16"]

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""largest difference of the outputs allowed, as a share of the largest output"""


@runtime_checkable
class Preparable(Protocol):
    def for_inference(self, plan: Plan) -> nn.Module:
        """A module with the same outputs in evaluation that need not be trainable."""
        ...


@dataclass(frozen=True)
class Report:
    """What was done. `difference` is the largest change of an output on the example as a share of the largest output."""

    steps: tuple[str, ...]
    precision: str
    difference: float | None
    tolerance: float

    def __str__(self) -> str:
        lines = [f"prepared for inference in {self.precision}:", *(f"  - {step}" for step in self.steps)]
        if self.difference is None:
            lines.append("  - outputs were not compared (no example was given)")
        else:
            lines.append(f"  - outputs moved by at most {self.difference:.2g} of the largest one (allowed {self.tolerance:g})")
        return "\n".join(lines)


class Prepared(nn.Module):
    """A network for inference only: takes float32 images in any memory layout, returns float32, keeps no graph.

    The maps of `forward_features` and `forward_intermediates` are float32 as well.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.report: Report | None = None

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return _to_float(self.network(self._enter(x)))

    @torch.inference_mode()
    def forward_features(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _to_float(self._backbone().forward_features(self._enter(x)))

    @torch.inference_mode()
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _to_float(self._backbone().forward_head(x.to(self.dtype), pre_logits))

    @torch.inference_mode()
    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return _to_float(self._backbone().forward_intermediates(self._enter(x), *args, **kwargs))

    def train(self, mode: bool = True) -> Prepared:
        if mode:
            raise InputError("a network prepared for inference cannot be trained; train the one it was made from")
        return super().train(False)

    def _enter(self, x: Tensor) -> Tensor:
        # in two steps: casting and reordering at once is slower than one after the other
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.to(self.dtype)

    def _backbone(self) -> Backbone:
        if not isinstance(self.network, Backbone):
            raise InputError(f"{type(self.network).__name__} has no feature maps of timm's protocol")
        return self.network


def prepare_for_inference(
    model: nn.Module, *, precision: Precision = "auto", example: Tensor | None = None, tolerance: float | None = None
) -> Prepared:
    """A faster copy of `model` for inference; the model itself stays as it is.

    precision: "bf16", "32", or "auto": bfloat16 where the processor computes in it.
    example: images [N, C, H, W]; outputs before and after are compared on them, and a difference beyond `tolerance` (a share of
    the largest output; 1e-3 in float32 and 5e-2 in bfloat16 by default) raises InputError.
    """
    if precision not in ("auto", "32", "bf16"):
        raise InputError(f"precision {precision!r}: there are 'auto', '32' and 'bf16'")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    bf16 = precision == "bf16" or (precision == "auto" and bf16_is_fast(str(device)))
    plan = Plan(torch.bfloat16 if bf16 else torch.float32)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        network = _improve(network, plan)
        network.to(plan.dtype).to(memory_format=torch.channels_last)
    prepared = Prepared(network, plan.dtype).eval()
    steps = [f"{what} ({count}x)" for what, count in plan.notes.items()]
    steps += ["weights and maps in bfloat16" if bf16 else "weights and maps in float32", "memory layout channels-last"]
    allowed = TOLERANCE[plan.dtype] if tolerance is None else tolerance
    difference = None if example is None else _difference(model, prepared, example)
    prepared.report = Report(tuple(steps), "bfloat16" if bf16 else "float32", difference, allowed)
    if difference is not None and not difference <= allowed:
        raise InputError(
            f"prepared outputs differ by {difference:.3g} of the largest one, more than {allowed:g}; try precision='32'"
        )
    return prepared


def _improve(module: nn.Module, plan: Plan) -> nn.Module:
    """Replace what has a faster form, depth first; fold norms in what stays a plain sequence."""
    if isinstance(module, Preparable):
        return module.for_inference(plan)
    for name, child in module.named_children():
        setattr(module, name, _improve(child, plan))
    if isinstance(module, nn.Sequential):
        _fold_in_sequence(module, plan)
    for first, second in getattr(module, "norm_pairs", ()):
        if _fold(module.get_submodule(first), module.get_submodule(second), plan):
            setattr(module, second, nn.Identity())
    return module


def _fold_in_sequence(sequence: nn.Sequential, plan: Plan) -> None:
    """conv, norm -> conv and norm, conv -> conv; the norm's place is taken by an identity, so that indices stay."""
    for index in range(len(sequence) - 1):
        first, second = sequence[index], sequence[index + 1]
        if _fold(first, second, plan):
            sequence[index + 1] = nn.Identity()
        elif isinstance(first, nn.BatchNorm2d) and isinstance(second, nn.Conv2d) and fold_before(first, second):
            sequence[index] = nn.Identity()
            plan.note("batch norm folded into the convolution after it")


def _fold(first: nn.Module, second: nn.Module, plan: Plan) -> bool:
    if not isinstance(first, nn.Conv2d | nn.Linear) or not isinstance(second, nn.BatchNorm2d | nn.BatchNorm1d):
        return False
    if folded := fold_after(first, second):
        plan.note("batch norm folded into the convolution before it")
    return folded


def _difference(model: nn.Module, prepared: Prepared, example: Tensor) -> float:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pairs = list(zip(_tensors(model(example)), _tensors(prepared(example)), strict=True))
    finally:
        model.train(training)
    return max(float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)) for theirs, ours in pairs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.float()
    elif isinstance(value, Sequence):
        for item in value:
            yield from _tensors(item)


def _to_float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_to_float(item) for item in value)
    return value
