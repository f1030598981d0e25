"""A bench for code books: a small autoencoder of photo patches around any quantiser, equal in everything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.data import open_images
from paperworks.layers.vector_quantization import CodeUsage
from paperworks.paper import Bench, write_json

SIDE = 8
"""of a patch"""


def photo_patches() -> Tensor:
    """All 8 x 8 patches of the embedded photos, [N, 192] in [-0.5, 0.5]."""
    source, parts = open_images("photos", labels="none", channels=3), []
    for number in range(len(source)):
        image = source[number]["image"].as_subclass(Tensor).float() / 255 - 0.5
        height, width = (side - side % SIDE for side in image.shape[1:])
        cut = image[:, :height, :width].unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)
        parts.append(cut.permute(1, 2, 0, 3, 4).reshape(-1, 3 * SIDE * SIDE))
    return torch.cat(parts)


def usage_and_error(
    bench: Bench,
    name: str,
    seed: int,
    build: Callable[[], Any],
    channels: int,
    *,
    steps: int = 500,
    lr: float = 1e-3,
    batch: int = 512,
    seeded: bool = True,
) -> dict[str, float]:
    """Share of codes that occur among all patches and mean squared error, after training 192-256-256-channels and back.

    seeded: codes start as the quantiser's own `seed_codes` has it, from the features of as many patches as there are codes and
    at least a batch, as in `objectives.tokenizer_training`; else as they were initialised.
    """
    path = bench.folder / f"codes-{name}-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    patches = photo_patches()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder, quantizer = _mlp(192, channels), _mlp(channels, 192), build()
    parameters = [p for part in (encoder, decoder, quantizer) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    if seeded:
        seeding = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(patches), generator=seeding)[: max(batch, quantizer.vocab_size)]
        with torch.no_grad():
            quantizer.seed_codes(encoder(patches[some])[:, None], seeding)
    for _ in range(steps):
        given = patches[torch.randint(len(patches), (batch,), generator=generator)]
        features = encoder(given)[:, None]
        quantized = quantizer(features)
        loss = F.mse_loss(decoder(quantized.features[:, 0]), given) + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    usage, error = CodeUsage(quantizer.vocab_size), 0.0
    quantizer.eval()
    with torch.no_grad():
        for part in patches.split(4096):
            indices = quantizer.encode(encoder(part)[:, None])
            usage.update(indices)
            error += float((decoder(quantizer.lookup(indices)[:, 0]) - part).square().mean(1).sum())
    found = {"usage": usage.usage, "error": error / len(patches), "perplexity": usage.perplexity}
    bench.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    bench.say(f"  {name}, seed {seed}: {100 * found['usage']:.2f} % of the codes in use, error {found['error']:.4f}")
    return found


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, outputs))
