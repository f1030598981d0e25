"""The selective scan against the loop over tokens that upstream falls back to on a processor, and GroupMamba-Tiny with each.

The literal network has the same weights, its four groups one after the other, and the loop for every scan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, agree, compare
from paperworks.backbones.groupmamba import GroupMambaLayer
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create
from paperworks.layers.cross_scan import DirectionalScan, as_map, as_sequence
from paperworks.layers.selective_scan import selective_scan


def run() -> list[Row]:
    torch.manual_seed(0)
    # the C library keeps freed memory once a large piece was freed, as in any process that has run a network; both sides gain
    torch.zeros(1 << 23)
    return [*scans(), *training(), *networks()]


def by_tokens(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """u, delta [batch, channels, length], A [channels, state], B and C [batch, state, length]: decays and inputs of the whole
    sequence, then one token at a time, as the public reference does it."""
    dt = F.softplus(delta)
    decay = torch.exp(dt[..., None] * A[:, None])
    added = (dt * u)[..., None] * B.transpose(1, 2)[:, None]
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + added[:, :, t]
        outputs.append((state @ C[:, :, t, None]).squeeze(-1))
    return torch.stack(outputs, 2)


def at_once(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(u, delta, A, B, C, delta_softplus=True)[0]


def given(length: int, channels: int, state: int) -> list[Tensor]:
    u, delta = torch.randn(1, channels, length), torch.randn(1, channels, length) - 3
    return [u, delta, -torch.rand(channels, state) - 0.1, torch.randn(1, state, length), torch.randn(1, state, length)]


def scans() -> list[Row]:
    rows = []
    sizes = ((784, 128, 1, 10.0), (3136, 64, 1, 10.0), (3136, 128, 1, 10.0), (784, 128, 16, None), (3136, 64, 16, None))
    for length, channels, state, target in sizes:
        inputs = given(length, channels, state)
        ours, loop = _quietly(partial(at_once, *inputs)), _quietly(partial(by_tokens, *inputs))
        agree(ours(), loop())
        what = f"scan of {length} tokens, {channels} channels, state {state}"
        rows.append(Row(what, "in lanes", "loop over tokens", compare(ours, loop, rounds=7, warmup=1), target=target))
    return rows


def training() -> list[Row]:
    """Forward and backward."""
    rows = []
    for length, channels, state, target in ((784, 128, 1, 10.0), (3136, 64, 1, 10.0), (784, 128, 16, None)):
        inputs = [value.requires_grad_() for value in given(length, channels, state)]

        def step(scan: Callable[..., Tensor], inputs: list[Tensor] = inputs) -> None:
            scan(*inputs).sum().backward()

        ratio = compare(partial(step, at_once), partial(step, by_tokens), rounds=3, warmup=1)
        what = f"scan of {length} tokens, {channels} channels, state {state}, forward and backward"
        rows.append(Row(what, "in lanes", "loop over tokens", ratio, target=target))
    return rows


class LiteralLayer(nn.Module):
    """The mixer as the paper writes it down."""

    def __init__(self, layer: GroupMambaLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        normed = layer.norm(x)
        affinity = torch.sigmoid(layer.fc2(F.relu(layer.fc1(normed.mean((1, 2))))))
        parts = normed.chunk(4, -1)
        results = [self.group(group, part, number) for number, (group, part) in enumerate(zip(layer.groups(), parts), start=1)]
        mixed = torch.cat(results, -1) * layer.skip_scale * normed * affinity[:, None, None]
        return layer.proj(layer.norm(mixed))

    @staticmethod
    def group(group: DirectionalScan, x: Tensor, direction: int) -> Tensor:
        height, width = x.shape[1:3]
        inner, gate = group.in_proj(x).chunk(2, -1)
        maps = F.silu(group.conv2d(inner.permute(0, 3, 1, 2).contiguous())).permute(0, 2, 3, 1)
        tokens = as_sequence(maps, direction).permute(1, 2, 0).contiguous()  # [batch, channels, length]
        rank = group.dt_projs_weight.shape[2]
        step, B, C = (group.x_proj_weight[0] @ tokens).split([rank, 1, 1], 1)
        delta = group.dt_projs_weight[0] @ step + group.dt_projs_bias[0][:, None]
        y = by_tokens(tokens, delta, -group.A_logs.exp(), B, C) + group.Ds[:, None] * tokens
        y = group.out_norm(as_map(y.permute(2, 0, 1), direction, height, width))
        return group.out_proj(y * F.silu(gate))


def literal(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if not isinstance(module, LiteralLayer) and isinstance(getattr(module, "attn", None), GroupMambaLayer):
            module.attn = LiteralLayer(module.attn)  # type: ignore[arg-type]
    return model


def networks() -> list[Row]:
    model = create("groupmamba_tiny").eval()
    peer, image = literal(model), torch.rand(1, 3, 224, 224)
    fast = prepare_for_inference(model, precision="32", example=image)
    plain, slow = _quietly(partial(model, image)), _quietly(partial(peer, image))
    agree(plain(), slow(), allowed=1e-4)
    what = "GroupMamba-Tiny, one image of 224 pixels"
    prepared = compare(partial(fast, image), slow, rounds=5, warmup=1)
    return [
        Row(what, "float32", "the literal network", compare(plain, slow, rounds=5, warmup=1), target=4.0),
        Row(what, "prepared float32", "the literal network", prepared, target=4.0, note=str(fast.report)),
    ]


def _quietly(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run_it() -> Tensor:
        with torch.inference_mode():
            return work()

    return run_it
