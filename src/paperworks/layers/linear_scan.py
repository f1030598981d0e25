"""h_t = a_t h_(t-1) + b_t for all t at once: the recurrence inside state-space layers, forward and backward.

A loop over time makes one small operation per step, and on a processor the calls cost more than the arithmetic. Here time is
cut into lanes that run side by side; what the lanes hand on to one another is the same recurrence over fewer steps, so the
function calls itself. Nothing is divided and nothing grows, whatever the length, as long as |a| <= 1.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paperworks.errors import InputError
from paperworks.layers.windows import exporting

STEPS = 8
"""of a lane, looped over; the lanes are the steps of the next round"""
SHORT = 12
"""lengths up to this are looped over"""
WIDE = 1024
"""numbers in a step from which its arithmetic outweighs the call: looped over too, which moves less memory"""

EXPORTED = 16
"""rounds of doubling in exported graphs, which take any length: 65,536 steps"""


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """All states [L, ...] of h_t = a_t h_(t-1) + b_t. Time comes first, so that a step reads memory in a row.

    a, b: [L, ...]; a may have dimensions of size 1 where b has more. The state before the first step is zero; to start from
    another one, add a_0 times it to b_0.
    """
    if a.ndim != b.ndim or a.ndim < 2 or a.shape[0] != b.shape[0]:
        raise InputError(f"linear_scan takes a and b as [L, ...] of equal length, not {list(a.shape)} and {list(b.shape)}")
    if not exporting() and len(b) == 0:
        raise InputError("linear_scan: the sequence is empty (L = 0)")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _doubling(a, b)
    if b.is_meta:  # somebody counts; there is nothing to compute
        return a * b
    return _LinearScan.apply(a, b)


def in_float32(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast: states over thousands of tokens need float32."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class _LinearScan(torch.autograd.Function):
    """The gradient g_t with respect to b_t is the same recurrence backwards: g_t = dh_t + a_(t+1) g_(t+1); that with respect to
    a_t is g_t h_(t-1)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _lanes(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        a, h = ctx.saved_tensors
        g = _lanes(a, grad.contiguous(), reverse=True)
        if not ctx.needs_input_grad[0]:
            return None, g
        grad_a = torch.empty_like(g)
        grad_a[0] = 0
        torch.mul(g[1:], h[:-1], out=grad_a[1:])
        return grad_a.sum_to_size(a.shape), g


def _lanes(a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """The scan in [lanes, steps] form. reverse: h_t = a_(t+1) h_(t+1) + b_t, from the end."""
    length = len(b)
    if length <= SHORT or b.numel() >= length * WIDE:
        h = b.clone(memory_format=torch.contiguous_format)
        _loop(a, h, 1, reverse)
        return h
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    lanes, steps = length // STEPS, STEPS
    whole = lanes * steps
    # a remainder that fills no lane comes last in the order of the scan
    first = slice(length - whole, length) if reverse else slice(0, whole)
    held, given = h[first].unflatten(0, (lanes, steps)), b[first].unflatten(0, (lanes, steps))
    decay = _shifted(a)[first] if reverse else a[first]
    decay = decay.unflatten(0, (lanes, steps))
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    kept = torch.empty_like(decay, memory_format=torch.contiguous_format)
    before = order[0]
    held[:, before], kept[:, before] = given[:, before], decay[:, before]
    for now in order[1:]:
        torch.addcmul(given[:, now], decay[:, now], held[:, before], out=held[:, now])
        torch.mul(kept[:, before], decay[:, now], out=kept[:, now])
        before = now
    # state at the end of every lane, handed on: lanes are the steps of a shorter scan
    ends, through = held[:, before], kept[:, before]
    if reverse:
        carried = _lanes(through.flip(0), ends.flip(0)).flip(0)
        held[:-1].addcmul_(kept[:-1], carried[1:, None])
    else:
        carried = _lanes(through, ends)
        held[1:].addcmul_(kept[1:], carried[:-1, None])
    if whole < length:
        rest = slice(0, length - whole) if reverse else slice(whole, length)
        h[rest] = b[rest]
        _loop(a, h, whole, reverse)
    return h


def _shifted(a: Tensor) -> Tensor:
    """a_(t+1) at t; the last has none and reads whatever (it meets no state)."""
    return torch.cat((a[1:], a[:1]))


def _loop(a: Tensor, h: Tensor, known: int, reverse: bool) -> None:
    """In place, step by step, what lies behind the `known` states (reverse: before them); h holds b there."""
    decays, states = a.unbind(0), h.unbind(0)
    if reverse:
        for now in range(len(states) - known - 1, -1, -1):
            states[now].addcmul_(decays[now + 1], states[now + 1])
    else:
        for now in range(known, len(states)):
            states[now].addcmul_(decays[now], states[now - 1])


def _doubling(a: Tensor, b: Tensor) -> Tensor:
    """The same by doubling: after round k every step has seen the 2^k before it. A graph of few operations, for compilers."""
    if torch.jit.is_tracing() or not isinstance(b.shape[0], int):
        return _doubling_any(a, b)
    reach = 1
    while reach < len(b):
        earlier = torch.cat((torch.zeros_like(b[:reach]), b[:-reach]))
        b = torch.addcmul(b, a, earlier)
        a = a * torch.cat((torch.zeros_like(a[:reach]), a[:-reach]))
        reach *= 2
    return b


def _doubling_any(a: Tensor, b: Tensor) -> Tensor:
    """Doubling whose number of rounds does not depend on the length: exact for up to 2^EXPORTED steps."""
    steps = torch.arange(b.shape[0], device=b.device)
    for number in range(EXPORTED):
        source = steps - 2**number
        a_before, b_before = (each[source.clamp(min=0)] for each in (a, b))
        some = (source >= 0).to(b.dtype).view(-1, *[1] * (b.ndim - 1))
        b = b + a * b_before * some
        a = a * a_before * some
    return b
