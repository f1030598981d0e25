"""ResFormer-S against a literal form of the network: an explicit softmax, a map per head, positions computed each time.

Inference at the training sizes and beyond, and a training step over three sizes; same weights and images on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, agree, compare, quietly
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create
from paperworks.backbones.resformer import LocalAttention, ResFormer, sine_map
from paperworks.objectives.multi_resolution import MultiResolution
from paperworks.training import Context

SIZES = (224, 160, 128)


def run() -> list[Row]:
    torch.manual_seed(0)
    model = create("resformer_small_patch16").eval()
    assert isinstance(model, ResFormer)
    for module in model.modules():
        if isinstance(module, LocalAttention):  # zero at the start, which would hide errors
            nn.init.normal_(module.get_v.weight, std=0.2)
    return [*inference(model), training(model)]


def inference(model: ResFormer) -> list[Row]:
    rows = []
    for size, batch in ((224, 8), (384, 4), (640, 1)):
        images = torch.rand(batch, 3, size, size)
        exact, fast = (prepare_for_inference(model, precision=precision, example=images) for precision in ("32", "bf16"))
        peer, ours = quietly(lambda x: literal(model, x), images), quietly(model, images)
        for work, allowed in ((ours, 1e-4), (quietly(exact, images), 1e-4), (quietly(fast, images), 5e-2)):
            agree(work(), peer(), allowed)
        what = f"S, {size} pixels, batch {batch}, inference"
        target = 1.5 if size >= 384 else None
        rows += [
            Row(what, "float32", "literal float32", compare(ours, peer), target=target),
            Row(what, "prepared float32", "literal float32", compare(quietly(exact, images), peer), target=target),
            Row(what, "prepared bf16", "literal float32", compare(quietly(fast, images), peer), note=str(fast.report)),
        ]
    return rows


def training(model: ResFormer) -> Row:
    """Forward and backward over three sizes with the consistency loss; the peer writes the loss out on the literal network."""
    model = model.train()
    objective = MultiResolution(model, SIZES, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = {size: torch.rand(2, 3, size, size) for size in SIZES}
    batch = {"image": images[224], "image160": images[160], "image128": images[128], "label": torch.arange(2)}

    def ours() -> Tensor:
        model.zero_grad()
        losses = objective.loss(batch, "main", Context(step=0, max_steps=1, seed=0))
        loss = losses.total / losses.count
        loss.backward()
        return loss.detach()

    def peer() -> Tensor:
        model.zero_grad()
        total, teacher = torch.zeros(()), None
        for size in SIZES:
            token = literal_token(model, images[size])
            total = total + F.cross_entropy(model.head(token), batch["label"])
            if teacher is not None:
                total = total + F.smooth_l1_loss(token, F.layer_norm(teacher, (teacher.shape[1],), eps=1e-6))
            teacher = token.detach()
        loss = total / len(SIZES)
        loss.backward()
        return loss.detach()

    agree(ours(), peer(), 1e-4)
    ratio = compare(ours, peer, rounds=9, warmup=1)
    return Row("S, 224 + 160 + 128 pixels, batch 2, training", "float32", "literal float32", ratio, target=1.0)


# --- the literal form -------------------------------------------------------------------------------------------------------


def literal(model: ResFormer, images: Tensor) -> Tensor:
    return model.head(literal_token(model, images))


def literal_token(model: ResFormer, images: Tensor) -> Tensor:
    """[N, 3, H, W] -> the class token after the last norm, formula by formula."""
    maps = model.patch_embed.proj(images)
    count, dim, height, width = maps.shape
    sines = sine_map((height, width), dim)[None].expand(count, -1, -1, -1)
    patches = maps.flatten(2).transpose(1, 2) + model.pos_embed.embed_layer(sines).flatten(2).transpose(1, 2)  # type: ignore[operator,union-attr]
    x = torch.cat((model.cls_token.expand(count, -1, -1), patches), 1)
    for block in model.blocks:
        x = x + _attention(block.attn, block.norm1(x), height, width)
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return model.norm(x)[:, 0]


def _attention(layer: Any, x: Tensor, height: int, width: int) -> Tensor:
    count, tokens, dim = x.shape
    heads, head_dim = layer.heads, layer.head_dim
    q, k, v = layer.qkv(x).reshape(count, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) * head_dim**-0.5).softmax(3)
    maps = v[:, :, 1:].transpose(2, 3).reshape(count * heads, head_dim, height, width)
    local = layer.get_v(maps).reshape(count, heads, head_dim, tokens - 1).transpose(2, 3)
    local = torch.cat((torch.zeros_like(local[:, :, :1]), local), 2)
    return layer.proj((weights @ v + local).transpose(1, 2).reshape(count, tokens, dim))
