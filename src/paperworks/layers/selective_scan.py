"""The selective scan of Mamba (2312.00752, algorithm 2): per channel a state whose step, input and output depend on the token.

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t        y_t = C_t h_t + D u_t        (equations 1 and 2, discretised)

`selective_scan` takes tensors in the order of state-spaces/mamba, [batch, channels, length]; `scan_tokens` takes time first,
[length, batch, groups, channels], which is what networks here use, because it needs no transposition. Computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paperworks.errors import InputError
from paperworks.layers.linear_scan import in_float32, linear_scan
from paperworks.layers.softplus import softplus
from paperworks.layers.windows import exporting

AT_ONCE = 1 << 18
"""states (tokens x channels) held at a time, a quarter of it where they have several numbers: what fits a processor's cache"""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """y [batch, channels, length] in u's type, and the last state [batch, channels, state] in float32.

    u, delta, z: [batch, channels, length]. A: [channels, state], not positive. B, C: [batch, groups, state, length] (or without
    groups), channels split evenly over the groups. D, delta_bias: [channels]. y is multiplied with silu(z) where z is given.
    """
    if u.ndim != 3 or delta.shape != u.shape:
        raise InputError(f"u and delta are [batch, channels, length] alike, not {list(u.shape)} and {list(delta.shape)}")
    batch, channels, length = u.shape
    B, C = (each[:, None] if each.ndim == 3 else each for each in (B, C))
    groups, state = B.shape[1:3] if B.ndim == 4 else (0, 0)
    if B.shape != (batch, groups, state, length) or C.shape != B.shape or A.shape != (channels, state):
        raise InputError(
            f"A is [channels, state], B and C are [batch, groups, state, length] for u {list(u.shape)}, "
            f"not {list(A.shape)}, {list(B.shape)}, {list(C.shape)}"
        )
    if channels % groups:
        raise InputError(f"{channels} channels do not divide into {groups} groups of B and C")
    check_decay(A)

    def tokens(x: Tensor) -> Tensor:
        return x.float().permute(2, 0, 1).unflatten(2, (groups, -1)).contiguous()

    def steps(part: slice) -> Tensor:
        dt = delta[..., part].float() if delta_bias is None else delta[..., part].float() + delta_bias.float()[:, None]
        return softplus(dt) if delta_softplus else dt

    def turned(x: Tensor) -> Tensor:
        return x.float().permute(3, 0, 1, 2).contiguous()

    def scanned(part: slice, last: Tensor | None) -> tuple[Tensor, Tensor]:
        given = tokens(u[..., part]), tokens(steps(part)), by_group, turned(B[..., part]), turned(C[..., part])
        y, last = scan_tokens(*given, last)
        y = y.flatten(2).permute(1, 2, 0)
        if D is not None:
            y = torch.addcmul(y, u[..., part].float(), D.float()[:, None])
        return y if z is None else y * F.silu(z[..., part].float()), last

    by_group = A.float().unflatten(0, (groups, -1))
    if length == 0 or _whole(u):
        y, last = scanned(slice(None), None)
        return y.to(u.dtype), last.flatten(1, 2)
    out, end = torch.empty_like(u, memory_format=torch.contiguous_format), None
    stretch = _tokens_at_once(batch * channels, state)
    for start in range(0, length, stretch):
        part = slice(start, start + stretch)
        out[..., part], end = scanned(part, end)
    assert end is not None
    return out, end.flatten(1, 2)


def _whole(u: Tensor) -> bool:
    """Whether a sequence has to go through in one piece: where gradients or graphs are made."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or u.is_meta


def _tokens_at_once(channels: int, state: int) -> int:
    return max(64, AT_ONCE // channels if state == 1 else AT_ONCE // (4 * channels * state))


def scan_tokens(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """C_t h_t [length, batch, groups, channels] and the last state [batch, groups, channels, state].

    u, dt: [length, batch, groups, channels] float32, dt after softplus. A: [groups, channels, state]. B, C: [length, batch,
    groups, state]. state: before the first token, zeros by default.
    """
    if not exporting() and len(u) == 0:
        raise InputError("selective scan: the sequence is empty (length 0)")
    rows = A.transpose(1, 2)  # [groups, state, channels]: channels lie together
    last = None if state is None else state.transpose(2, 3)
    many = rows.shape[1] > 1
    with in_float32(u):
        if _whole(u) and not (many and torch.is_grad_enabled() and not u.is_meta):
            y, end = _stretch(u, dt, rows, B, C, last)
            return y, end.transpose(2, 3)
        outputs: list[Tensor] = []
        step = _tokens_at_once(u[0].numel(), rows.shape[1])
        for start in range(0, len(u), step):
            part = slice(start, start + step)
            given = (u[part], dt[part], rows, B[part], C[part], last)
            # states of a whole sequence are `state` times its size: in training they are computed again, a stretch at a time
            y, last = checkpoint(_stretch, *given, use_reentrant=False) if torch.is_grad_enabled() else _stretch(*given)
            outputs.append(y)
    assert last is not None
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), last.transpose(2, 3)


def _stretch(u: Tensor, dt: Tensor, rows: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Part of a sequence from a given state [batch, groups, state, channels]."""
    if rows.shape[1] == 1:  # nothing is larger than the input
        if _whole(u):
            decay, added = torch.exp(dt * rows[:, 0]), dt * u * B
        else:  # memory asked for anew costs more than the arithmetic
            decay, added = (dt * rows[:, 0]).exp_(), (dt * u).mul_(B)
        if state is not None:
            added[0].addcmul_(decay[0], state[:, :, 0])
        h = linear_scan(decay, added)
        end = h[-1][:, :, None]
        return (h * C, end) if _whole(u) else (torch.mul(h, C, out=added), end.clone())
    decay = torch.exp(dt[..., None, :] * rows)
    added = (dt * u)[..., None, :] * B[..., None]
    if state is not None:
        added[0].addcmul_(decay[0], state)
    h = linear_scan(decay, added)
    return (C[..., None, :] @ h).squeeze(-2), h[-1]


def check_decay(A: Tensor) -> None:
    """A state that grows overflows: A is not positive."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or A.is_meta:
        return
    if bool((A > 0).any()):
        raise InputError("A is positive: the state would grow without bound; A = -exp(A_log) is meant")
