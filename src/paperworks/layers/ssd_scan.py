"""The scan of Mamba-2 (2405.21060, section 6): one decay per head and token, so that a chunk of tokens is a matrix product.

    H_t = exp(dt_t A) H_(t-1) + dt_t B_t x_t^T        y_t = C_t H_t + D x_t        H_t [state, headdim] per head

Within a chunk y = (L * (C B^T)) (dt x), L the decays between its tokens (lower triangle); what came before enters as one state
per chunk. Linear in the number of tokens and made of products; chunks of 32 to 64 tokens are quickest on a processor (256 on a
GPU).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.linear_scan import in_float32, linear_scan
from paperworks.layers.softplus import softplus
from paperworks.layers.windows import exporting

CHUNK = 32
"""tokens; any gives the same result"""
AT_ONCE = 1 << 16
"""entries of the decays between tokens held at a time in inference: a long sequence goes through in stretches"""


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk: int = CHUNK,
) -> Tensor:
    """y [batch, length, heads, headdim] in x's type; computed in float32.

    x: [batch, length, heads, headdim]. dt: [batch, length, heads]. A: [heads], not positive. B, C: [batch, length, groups,
    state], heads split evenly over the groups. D: [heads] or [heads, headdim]. dt_bias: [heads].
    """
    return ssd_scan_from(None, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk)[0]


def ssd_scan_from(
    state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` that goes on from the state an earlier call left (None: from nothing): y, and the state after the last token.

    state: [batch, groups, state, heads of a group, headdim].
    """
    if x.ndim != 4 or dt.shape != x.shape[:3] or B.ndim != 4 or B.shape != C.shape or B.shape[:2] != x.shape[:2]:
        raise InputError(
            "ssd_scan takes x [batch, length, heads, headdim], dt [batch, length, heads], "
            "B and C [batch, length, groups, state], "
            f"not {list(x.shape)}, {list(dt.shape)}, {list(B.shape)}, {list(C.shape)}"
        )
    length, heads, groups = x.shape[1], x.shape[2], B.shape[2]
    if not exporting() and length == 0:
        raise InputError("ssd_scan: the sequence is empty (length 0)")
    if heads % groups or A.shape != (heads,):
        raise InputError(f"{heads} heads need A [{heads}] and a number of groups that divides them, not {groups}")
    with in_float32(x):
        y, state = _scan(state, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk)
        return y.to(x.dtype), state


def _scan(
    state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    length, heads = x.shape[1:3]
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = softplus(step) if dt_softplus else step
    given = (x.float(), step, step * A.float(), B.float(), C.float())
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        y, state = _chunks(*given, state, chunk)
    elif torch.is_grad_enabled():
        y, state = _chunks(*given, state, min(chunk, length))
    else:
        at_once = max(1, AT_ONCE // (x.shape[0] * heads * chunk * chunk)) * chunk
        y = torch.empty_like(given[0])
        for start in range(0, length, at_once):
            part = slice(start, start + at_once)
            cut = [each[:, part] for each in given]
            y[:, part], state = _chunks(cut[0], cut[1], cut[2], cut[3], cut[4], state, chunk)
    if D is not None:
        y = torch.addcmul(y, given[0], D.float().view(heads, -1))
    assert state is not None
    return y, state


def _chunks(
    x: Tensor, dt: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """C_t H_t and the last state [batch, groups, state, heads of a group, headdim], from a given state."""
    batch, length, heads, dim = x.shape
    groups = B.shape[2]
    missing = -length % chunk
    if exporting() or missing:  # tokens that neither add to the state nor let it decay
        x, B, C = (F.pad(each, (0, 0, 0, 0, 0, missing)) for each in (x, B, C))
        dt, log_decay = (F.pad(each, (0, 0, 0, missing)) for each in (dt, log_decay))
    shape, per_group = (-1, chunk), (groups, heads // groups)
    inputs = (x * dt[..., None]).unflatten(1, shape)  # [batch, chunks, chunk, heads, headdim]
    keys, queries = (each.unflatten(1, shape).transpose(2, 3) for each in (B, C))  # [batch, chunks, groups, chunk, state]
    total = log_decay.unflatten(1, shape).transpose(2, 3).cumsum(-1)  # [batch, chunks, heads, chunk]
    end = total[..., -1:]

    # within chunks: a matrix of tokens per head
    allowed = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    between = (total[..., :, None] - total[..., None, :]).masked_fill(~allowed, -torch.inf).exp()
    scores = queries @ keys.transpose(-1, -2)
    weights = (between.unflatten(2, per_group) * scores[:, :, :, None]).flatten(2, 3)
    y = (weights @ inputs.transpose(2, 3)).transpose(2, 3)

    # between chunks: what each adds to the state by its end, for all heads of a group in one product
    to_end = inputs * (end - total).exp().transpose(2, 3)[..., None]
    to_end = to_end.unflatten(3, per_group).flatten(4).transpose(2, 3)  # [batch, chunks, groups, chunk, heads x headdim]
    added = (keys.transpose(-1, -2) @ to_end).unflatten(-1, (-1, dim)).transpose(0, 1)
    decay = end.exp().unflatten(2, per_group).transpose(0, 1)[:, :, :, None]
    if state is not None:
        added[0].addcmul_(decay[0], state)
    states = linear_scan(decay, added)
    first = torch.zeros_like(states[:1]) if state is None else state[None]
    before = torch.cat((first, states[:-1])).flatten(4).transpose(0, 1)
    carried = (queries @ before).transpose(2, 3).unflatten(4, (-1, dim)).flatten(3, 4)
    y = torch.addcmul(y, carried, total.exp().transpose(2, 3)[..., None])
    return y.reshape(batch, -1, heads, dim)[:, :length], states[-1]
