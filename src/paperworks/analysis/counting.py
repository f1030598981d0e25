"""How big and how expensive a network is: parameters, and multiply-accumulates by kind of operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from paperworks.errors import InputError

Kind = Literal["depthwise", "pointwise", "grouped", "dense", "linear", "attention"]
"""Convolutions: one filter per input channel; 1 x 1 over all channels; several groups; all others. Matrix products: of a weight
with activations; of activations with one another."""

aten = torch.ops.aten


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Numbers in the parameters; shared ones count once, buffers (such as batch norm's statistics) not at all."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def count_macs(module: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of convolutions and matrix products (attention's too) in one forward pass on `inputs`, exact.

    For the whole batch: give a batch of 1 for the cost of an image. Nothing is computed when module and inputs are on the
    meta device. Norms, activations, pooling and additions are not counted, as is usual in papers.
    """
    return sum(macs_by_kind(module, *inputs).values())


def macs_by_kind(module: nn.Module, *inputs: Any) -> dict[Kind, int]:
    """`count_macs` split by kind of operation; kinds that do not occur are 0."""
    if not any(isinstance(given, Tensor) for given in inputs):
        raise InputError("counting needs an input to run the module on, such as torch.zeros(1, 3, 224, 224, device='meta')")
    with _evaluating(module), torch.no_grad(), _Tally() as tally:
        module(*inputs)
    return tally.macs


class _Tally(TorchDispatchMode):
    """Sees every operator that is executed, below modules and functionals."""

    def __init__(self) -> None:
        super().__init__()
        self.macs: dict[Kind, int] = dict.fromkeys(get_args(Kind), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in flop_registry and packet not in PROCESSOR_ATTENTION:
            with self:  # inference tensors come with whole operators, such as linear, that have formulas for their parts only
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        if packet in PROCESSOR_ATTENTION:
            self.macs["attention"] += sdpa_flop_count(*(each.shape for each in args[:3])) // 2
        else:
            self.macs[_kind(packet, args)] += flop_registry[packet](*args, **kwargs, out_val=out) // 2
        return out


PROCESSOR_ATTENTION = (aten._scaled_dot_product_flash_attention_for_cpu,)
"""which torch's own table of formulas leaves out"""


def _kind(packet: Any, args: Any) -> Kind:
    if "convolution" not in str(packet):
        return "linear" if packet in (aten.mm, aten.addmm, aten._scaled_mm) else "attention"
    images, weight, transposed, groups = args[0], args[1], args[6], args[8]
    if groups > 1:
        return "depthwise" if groups == images.shape[1] else "grouped"
    return "pointwise" if all(side == 1 for side in weight.shape[2:]) and not transposed else "dense"


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, and attention layers taken apart into countable operators; everything is put back after."""
    flags = [(each, each.training) for each in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for each, training in flags:
            each.training = training
