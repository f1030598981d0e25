"""Maps scanned as sequences in four directions, and the mixers made of that: one direction per group of channels (GroupMamba,
2407.13772, section 3.2), or all four for every channel (VMamba's SS2D, 2401.10166).

Maps are [N, H, W, C]. Sequences are [H * W, N, ..., C]: time first, as `scan_tokens` takes them. Parameters are named as in the
released files; tensors of the scan have a leading dimension for the directions they serve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.selective_scan import scan_tokens
from paperworks.layers.softplus import softplus

DIRECTIONS = {1: "row by row", 2: "column by column", 3: "row by row from the end", 4: "column by column from the end"}


def as_sequence(x: Tensor, direction: int) -> Tensor:
    """[N, H, W, C] -> [H * W, N, C] in one of DIRECTIONS."""
    x = x.permute(1, 2, 0, 3) if direction % 2 else x.permute(2, 1, 0, 3)
    x = x.flatten(0, 1)
    return x.flip(0) if direction > 2 else x


def as_map(x: Tensor, direction: int, height: int, width: int) -> Tensor:
    """The inverse: [H * W, N, C] -> [N, H, W, C]."""
    x = x.flip(0) if direction > 2 else x
    return (
        x.unflatten(0, (height, width)).permute(2, 0, 1, 3)
        if direction % 2
        else x.unflatten(0, (width, height)).permute(2, 1, 0, 3)
    )


def check_directions(directions: Sequence[int]) -> tuple[int, ...]:
    if len(directions) != 4 or not set(directions) <= DIRECTIONS.keys():
        words = ", ".join(f"{number} {name}" for number, name in DIRECTIONS.items())
        raise InputError(f"directions {tuple(directions)}: one for each of four groups, of {words}")
    return tuple(directions)


class ScanParameters(nn.Module):
    """What a scan of `count` directions learns: how step, input and output depend on a token, decays, and what passes
    through."""

    def __init__(self, dim: int, count: int = 1, state: int = 1):
        super().__init__()
        rank = math.ceil(dim / 16)
        self.x_proj_weight = nn.Parameter(torch.empty(count, rank + 2 * state, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.dt_projs_weight = nn.Parameter(torch.empty(count, dim, rank).uniform_(-(rank**-0.5), rank**-0.5))
        # steps start between 1e-3 and 1e-1, evenly in their logarithm; the bias is what softplus maps onto them
        step = torch.exp(torch.rand(count, dim) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp(min=1e-4)
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_logs = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(count * dim, 1))
        self.Ds = nn.Parameter(torch.ones(count * dim))


class DirectionalScan(ScanParameters):
    """VSSS: the parameters of one group. Computed for all four groups at once by `GroupScan`."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)


class ScanWeights(NamedTuple):
    """The scan parameters of several directions (or groups) of d channels side by side."""

    token: Tensor
    """[G, d, rank + 2 state]: makes step, input and output of a token"""
    step: Tensor
    """[G, rank, d]"""
    step_bias: Tensor
    """[G, d]"""
    decay: Tensor
    """[G, d, state]: A"""
    passing: Tensor
    """[G, d]: D"""


class GroupWeights(NamedTuple):
    """The parameters of four groups of d channels side by side."""

    into: Tensor
    """[4, d, 2d]: x and gate"""
    kernel: Tensor
    """[4d, 1, 3, 3]"""
    kernel_bias: Tensor
    gain: Tensor
    """[4, d], of the norm after the scan"""
    shift: Tensor
    out: Tensor
    """[4, d, d]"""
    scan: ScanWeights


def group_weights(groups: Sequence[DirectionalScan]) -> GroupWeights:
    scan = ScanWeights(
        torch.cat([each.x_proj_weight for each in groups]).mT,
        torch.cat([each.dt_projs_weight for each in groups]).mT,
        torch.cat([each.dt_projs_bias for each in groups]),
        -torch.exp(torch.stack([each.A_logs for each in groups]).float()),
        torch.stack([each.Ds for each in groups]),
    )
    return GroupWeights(
        torch.stack([each.in_proj.weight for each in groups]).mT,
        torch.cat([each.conv2d.weight for each in groups]),
        torch.cat([each.conv2d.bias for each in groups]),  # type: ignore[misc]
        torch.stack([each.out_norm.weight for each in groups]),
        torch.stack([each.out_norm.bias for each in groups]),
        torch.stack([each.out_proj.weight for each in groups]).mT,
        scan,
    )


def group_scan(x: Tensor, weights: GroupWeights, directions: Sequence[int]) -> Tensor:
    """[N, H, W, 4d] -> the same: every quarter of the channels scanned in its direction (figure 3b), in float32.

    The four have weights of their own but equal shapes, so that every step is one operation for all of them.
    """
    height, width, dim = x.shape[1], x.shape[2], x.shape[3] // 4
    rows = x.reshape(-1, 4, dim).transpose(0, 1)
    inner, gate = (rows @ weights.into).chunk(2, -1)  # [4, N * H * W, d] each
    maps = inner.transpose(0, 1).reshape(x.shape).permute(0, 3, 1, 2)
    maps = F.conv2d(maps, weights.kernel, weights.kernel_bias, padding=1, groups=len(weights.kernel))
    maps = F.silu(maps, inplace=not torch.is_grad_enabled()).permute(0, 2, 3, 1).unflatten(3, (4, dim))
    ordered = [as_sequence(maps[:, :, :, group], direction) for group, direction in enumerate(directions)]
    tokens = torch.stack(ordered, 2)  # [H * W, N, 4, d]

    y = _scan(tokens, weights.scan)

    back = [as_map(y[:, :, group], direction, height, width) for group, direction in enumerate(directions)]
    y = torch.stack(back, 3).flatten(0, 2)  # [N * H * W, 4, d]
    y = torch.addcmul(weights.shift, F.layer_norm(y, (dim,)), weights.gain).to(x.dtype)
    y = y.transpose(0, 1) * F.silu(gate)
    return (y @ weights.out).transpose(0, 1).reshape(x.shape)


def _scan(tokens: Tensor, weights: ScanWeights) -> Tensor:
    """[L, N, G, d] -> C h + D x of every group."""
    length, count = tokens.shape[:2]
    rank = weights.step.shape[1]
    state = (weights.token.shape[2] - rank) // 2
    about = tokens.flatten(0, 1).transpose(0, 1) @ weights.token
    # token by token from here on: [L, N, G, ...]
    step = (about[..., :rank] @ weights.step).transpose(0, 1).unflatten(0, (length, count))
    step = softplus(step.float() + weights.step_bias.float())
    B, C = about[..., rank:].float().transpose(0, 1).unflatten(0, (length, count)).split(state, -1)
    u = tokens.float()
    y, _ = scan_tokens(u, step.contiguous(), weights.decay.float(), B.contiguous(), C.contiguous())
    return torch.addcmul(y, u, weights.passing.float())


class GroupScan(nn.Module):
    """[N, H, W, dim] -> the same: four `DirectionalScan`s of a quarter of the channels each. directions: see DIRECTIONS."""

    def __init__(self, dim: int, directions: Sequence[int] = (1, 2, 3, 4)):
        super().__init__()
        if dim % 4:
            raise InputError(f"{dim} channels do not divide into four groups")
        self.directions = check_directions(directions)
        for number in range(1, 5):
            self.add_module(f"mamba_g{number}", DirectionalScan(dim // 4))

    def groups(self) -> list[DirectionalScan]:
        found = [self.get_submodule(f"mamba_g{number}") for number in range(1, 5)]
        return [each for each in found if isinstance(each, DirectionalScan)]

    def forward(self, x: Tensor) -> Tensor:
        return group_scan(x, group_weights(self.groups()), self.directions)


class CrossScan(ScanParameters):
    """[N, H, W, dim] -> the same: all channels in all four directions, whose results are added (SS2D with one number of
    state)."""

    def __init__(self, dim: int):
        super().__init__(dim, count=4)
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1:]
        inner, gate = self.in_proj(x).chunk(2, -1)
        maps = F.silu(self.conv2d(inner.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        tokens = torch.stack([as_sequence(maps, direction) for direction in DIRECTIONS], 2)
        weights = ScanWeights(
            self.x_proj_weight.mT,
            self.dt_projs_weight.mT,
            self.dt_projs_bias,
            -torch.exp(self.A_logs.float()).unflatten(0, (4, dim)),
            self.Ds.unflatten(0, (4, dim)),
        )
        y = _scan(tokens, weights)
        y = sum(as_map(y[:, :, number - 1], number, height, width) for number in DIRECTIONS)  # type: ignore[assignment]
        return self.out_proj(self.out_norm(y).to(x.dtype) * F.silu(gate))
