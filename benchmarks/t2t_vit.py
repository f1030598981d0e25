"""T2T-ViT-14 at 224 pixels against a literal form of the network: unfolded and transposed windows, attention written out.

Inference of one image and of eight, with the Performer and with softmax attention inside tokens-to-token, and a training step;
same weights and images on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, agree, compare, quietly
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create
from paperworks.backbones.t2t_vit import T2TViT
from paperworks.backbones.tokens_to_token import TokenPerformer, TokenStep, TokensToToken


def run() -> list[Row]:
    rows = []
    for name in ("t2t_vit_14", "t2t_vit_t_14"):
        torch.manual_seed(0)
        model = create(name).eval()
        assert isinstance(model, T2TViT)
        for batch in (1, 8):
            rows += inference(name, model, torch.rand(batch, 3, 224, 224))
    model = create("t2t_vit_14")
    assert isinstance(model, T2TViT)
    return [*rows, training(model, torch.rand(4, 3, 224, 224))]


def inference(name: str, model: T2TViT, images: Tensor) -> list[Row]:
    exact, fast = (prepare_for_inference(model, precision=precision, example=images) for precision in ("32", "bf16"))
    peer, ours = quietly(lambda x: literal(model, x), images), quietly(model, images)
    careful = quietly(lambda x: literal(model, x), images, bf16=True)
    for work, allowed in ((ours, 1e-4), (quietly(exact, images), 1e-4), (quietly(fast, images), 5e-2)):
        agree(work(), peer(), allowed)
    what = f"{name}, batch {len(images)}, inference"
    return [
        Row(what, "float32", "literal float32", compare(ours, peer, 9), target=1.0),
        Row(what, "prepared float32", "literal float32", compare(quietly(exact, images), peer, 9)),
        Row(what, "prepared bf16", "literal float32", compare(quietly(fast, images), peer, 9), note=str(fast.report)),
        Row(what, "prepared bf16", "literal, bf16 autocast", compare(quietly(fast, images), careful, 9)),
    ]


def training(model: T2TViT, images: Tensor) -> Row:
    """Forward and backward. Without dropout (`eval`), so that both sides compute the same."""
    model = model.eval()
    labels = torch.arange(len(images))

    def step(network: Callable[[Tensor], Tensor]) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        return loss.detach()

    def ours() -> Tensor:
        return step(model)

    def peer() -> Tensor:
        return step(lambda x: literal(model, x))

    agree(ours(), peer(), 1e-4)
    return Row(f"t2t_vit_14, batch {len(images)}, forward and backward", "float32", "literal float32", compare(ours, peer, 5))


# --- the network written out --------------------------------------------------------------------------------------------


def literal(model: T2TViT, x: Tensor) -> Tensor:
    tokenizer = model.tokens_to_token
    assert isinstance(tokenizer, TokensToToken)
    for step in (tokenizer.attention1, tokenizer.attention2):
        x = _step(step, _unfolded(x, step.kernel, step.stride, step.padding))
        side = math.isqrt(x.shape[1])
        x = x.transpose(1, 2).reshape(len(x), -1, side, side)
    last = tokenizer.project
    windows = _unfolded(x, last.kernel, last.stride, last.padding)
    x = F.linear(windows, last.weight, last.bias)
    x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), 1) + model.pos_embed
    for block in model.blocks:
        x = x + _attention(block.attn, block.norm1(x))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return model.head(model.norm(x)[:, 0])


def _unfolded(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)


def _step(step: TokenStep, windows: Tensor) -> Tensor:
    into, out, fc1, fc2 = step.products()
    first, second, v = into(step.norm1(windows)).chunk(3, -1)
    if isinstance(step, TokenPerformer):
        k, q = (_features(each, step.w) for each in (first, second))
        total = torch.einsum("blm,bm->bl", q, k.sum(1))
        values = torch.einsum("blc,blm->bcm", v.float(), k)
        mixed = torch.einsum("blm,bcm->blc", q, values) / (total[..., None] + 1e-8)
    else:
        mixed = (first @ second.transpose(1, 2) * windows.shape[-1] ** -0.5).softmax(-1) @ v
    tokens = v + out(mixed)
    return tokens + fc2(F.gelu(fc1(step.norm2(tokens))))


def _features(x: Tensor, w: Tensor) -> Tensor:
    length = x.square().sum(-1, keepdim=True) / 2
    return torch.exp(torch.einsum("blc,mc->blm", x.float(), w) - length) / math.sqrt(len(w))


def _attention(attn: Any, x: Tensor) -> Tensor:
    batch, length, dim = x.shape
    q, k, v = attn.qkv(x).reshape(batch, length, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) * attn.head_dim**-0.5).softmax(-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(batch, length, dim))
