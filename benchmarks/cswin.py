"""CSWin-T at 224 pixels against the same network written down literally (timm has none): tokens in a list, queries, keys and
values reordered one by one for every branch, products and softmax apart. Same weights and images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, agree, compare, quietly
from paperworks.backbones.cswin import CrossShapedAttention, CSWin, CSWinBlock, StripeAttention
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create


class LiteralBlock(nn.Module):
    """[N, L, C] of a square map -> the same."""

    def __init__(self, block: CSWinBlock):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        side = round(x.shape[1] ** 0.5)
        attn = block.attn
        qkv = attn.qkv(block.norm1(x)).reshape(len(x), -1, 3, x.shape[2]).permute(2, 0, 1, 3)
        halves = qkv.chunk(len(attn.branches), -1)
        mixed = torch.cat([literal_branch(branch, half, side) for branch, half in zip(attn.branches, halves)], 2)
        x = x + attn.proj(mixed)
        mlp = block.mlp
        return x + mlp.fc2(F.gelu(mlp.fc1(block.norm2(x))))


def literal_branch(branch: nn.Module, qkv: Tensor, side: int) -> Tensor:
    """[3, N, L, C] -> [N, L, C]."""
    assert isinstance(branch, StripeAttention)
    high, wide = (given or side for given in branch.window())
    channels, heads = qkv.shape[-1], branch.heads

    def stripes(x: Tensor) -> Tensor:
        """[N, L, C] -> [M, C, h, w]."""
        image = x.transpose(1, 2).contiguous().view(len(x), channels, side // high, high, side // wide, wide)
        return image.permute(0, 2, 4, 1, 3, 5).contiguous().reshape(-1, channels, high, wide)

    def by_head(x: Tensor) -> Tensor:
        """[M, C, h, w] -> [M, heads, h w, C / heads]."""
        return x.reshape(-1, heads, channels // heads, high * wide).permute(0, 1, 3, 2).contiguous()

    q, k, v = (stripes(each) for each in qkv)
    scores = (by_head(q) * (channels // heads) ** -0.5) @ by_head(k).transpose(2, 3)
    seen = scores.softmax(-1) @ by_head(v) + by_head(branch.lepe(v))
    seen = seen.transpose(1, 2).reshape(-1, side // high, side // wide, high, wide, channels)
    return seen.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side * side, channels)


class LiteralCSWin(nn.Module):
    def __init__(self, model: CSWin):
        super().__init__()
        self.model = model
        self.blocks = nn.ModuleList(
            nn.ModuleList(LiteralBlock(block) for block in level if isinstance(block, CSWinBlock)) for level in model.levels()
        )

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        for index, blocks in enumerate(self.blocks):
            halve: Any = model.stem if index == 0 else model.levels()[index][0]
            x = halve.conv(x)
            side = x.shape[2]
            norm = halve.norm
            tokens = F.layer_norm(
                x.flatten(2).transpose(1, 2).contiguous(), norm.normalized_shape, norm.weight, norm.bias, norm.eps
            )
            for block in blocks:
                tokens = block(tokens)
            x = tokens.transpose(1, 2).contiguous().view(len(x), -1, side, side)
        norm = model.norm
        assert isinstance(norm, nn.LayerNorm)
        tokens = F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return model.head(tokens.mean(1))


def run() -> list[Row]:
    torch.manual_seed(0)
    rows = []
    model = create("cswin_tiny").eval()
    assert isinstance(model, CSWin)
    _liven(model)
    literal = LiteralCSWin(model).eval()
    for batch in (1, 8):
        images = torch.rand(batch, 3, 224, 224)
        fast, exact = (prepare_for_inference(model, precision=precision, example=images) for precision in ("bf16", "32"))
        plain = quietly(literal, images)
        for side, allowed in ((model, 1e-4), (exact, 1e-4), (fast, 5e-2)):
            agree(quietly(side, images)(), plain(), allowed)
        what = f"T, batch {batch}, inference"
        rows += [
            Row(what, "float32", "literal float32", compare(quietly(model, images), plain), target=1.1),
            Row(what, "prepared float32", "literal float32", compare(quietly(exact, images), plain)),
            Row(what, "prepared bf16", "literal autocast", compare(quietly(fast, images), quietly(literal, images, bf16=True))),
            Row(what, "prepared bf16", "literal float32", compare(quietly(fast, images), plain), note=str(fast.report)),
        ]
    images = torch.rand(4, 3, 224, 224)
    ratio = compare(_step(model, images), _step(literal, images), rounds=9, warmup=1)
    return [*rows, Row("T, batch 4, training step", "float32", "literal float32", ratio, target=1.0)]


def _step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.train().zero_grad(set_to_none=True)
        F.cross_entropy(model(images), torch.arange(len(images))).backward()

    return step


def _liven(model: nn.Module) -> None:
    """Weights with which attention shows in the output: those of a fresh network are nearly nothing."""
    for module in model.modules():
        if isinstance(module, CrossShapedAttention):
            nn.init.normal_(module.qkv.weight, std=0.08)
            nn.init.normal_(module.proj.weight, std=0.08)
