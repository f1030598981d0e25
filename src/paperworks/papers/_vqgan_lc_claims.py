"""What VQGAN-LC's claims are measured on: quantisers in one small autoencoder of photo patches, and counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from paperworks.analysis.features import extract, lite0
from paperworks.data import open_images
from paperworks.data.photos import random_crops
from paperworks.layers.vector_quantization import CHUNK, nearest_code
from paperworks.paper import Bench, Measured
from paperworks.papers._code_bench import usage_and_error
from paperworks.papers._generation import framed
from paperworks.tokenizers.projected_quantizer import ProjectedQuantizer
from paperworks.tokenizers.quantizers import VectorQuantizer

CHANNELS, SIZES = 8, (256, 1024, 4096)


@cache
def photo_features() -> Tensor:
    """EfficientNet-Lite0's features of 4,096 crops of the embedded photos, [4096, 1280]."""
    crops = random_crops(open_images("photos", labels="none", channels=3), 64, max(SIZES), seed=0)
    return extract(lite0(), framed(crops, 64))


def _build(kind: str, codes: int) -> Callable[[], Any]:
    weights: dict[str, Any] = {"beta": 1.0, "codebook_weight": 0.33}
    if kind == "LC":
        return lambda: ProjectedQuantizer(photo_features()[:codes], CHANNELS)
    if kind == "EMA":
        return partial(VectorQuantizer, codes, CHANNELS, beta=1.0, ema=0.99)
    return partial(VectorQuantizer, codes, CHANNELS, **weights)


def _measured(bench: Bench, kind: str, codes: int, seed: int) -> dict[str, float]:
    return usage_and_error(bench, f"{kind}-{codes}", seed, _build(kind, codes), CHANNELS, steps=400, lr=5e-4)


def _scale(bench: Bench) -> str:
    return f"8 x 8 patches of the embedded photos, the same MLP autoencoder, 8 dimensions, 400 steps, {len(bench.seeds)} seeds"


def usage_of(bench: Bench, kind: str, codes: int) -> Measured:
    shares = [100 * _measured(bench, kind, codes, seed)["usage"] for seed in bench.seeds]
    return Measured(mean(shares), _scale(bench), f"{codes} codes, all patches counted", shares, list(bench.seeds))


def _fall(bench: Bench, kind: str, seed: int) -> float:
    """Usage with the most codes over usage with the fewest."""
    return _measured(bench, kind, SIZES[-1], seed)["usage"] / _measured(bench, kind, SIZES[0], seed)["usage"]


def _usages(bench: Bench, *kinds: str) -> str:
    parts = []
    for kind in kinds:
        shares = [mean(100 * _measured(bench, kind, codes, seed)["usage"] for seed in bench.seeds) for codes in SIZES]
        parts.append(f"{kind} " + " / ".join(f"{share:.1f} %" for share in shares))
    return f"in use with {' / '.join(map(str, SIZES))} codes: " + ", ".join(parts)


def falling(bench: Bench, kind: str) -> Measured:
    falls = [_fall(bench, kind, seed) for seed in bench.seeds]
    return Measured(mean(falls), _scale(bench), _usages(bench, kind), falls, list(bench.seeds), unit="x usage")


def flattest(bench: Bench) -> Measured:
    """How much less the projected code book's usage falls than the better baseline's."""
    leads = [_fall(bench, "LC", seed) / max(_fall(bench, "FC", seed), _fall(bench, "EMA", seed)) for seed in bench.seeds]
    return Measured(mean(leads), _scale(bench), _usages(bench, "LC", "FC", "EMA"), leads, list(bench.seeds), unit="x")


def error_ratio(bench: Bench) -> Measured:
    pairs = [(_measured(bench, "LC", 1024, seed)["error"], _measured(bench, "FC", 1024, seed)["error"]) for seed in bench.seeds]
    ratios = [ours / theirs for ours, theirs in pairs]
    detail = f"squared error {mean(a for a, _ in pairs):.4f} against {mean(b for _, b in pairs):.4f} with 1,024 codes"
    return Measured(mean(ratios), _scale(bench), detail, ratios, list(bench.seeds), unit="x error")


# --- counted ----------------------------------------------------------------------------------------------------------


def projector_only() -> Measured:
    quantizer = ProjectedQuantizer((100_000, 768), 8, start="paper")
    trained = sum(p.numel() for p in quantizer.parameters() if p.requires_grad)
    frozen = not quantizer.tok_embeddings.weight.requires_grad
    free = sum(p.numel() for p in VectorQuantizer(100_000, 8).parameters())
    return Measured(
        trained if frozen else 0,
        "any",
        f"{free:,} values with free codes",
        numbers={"free codes": free, "table frozen": frozen},
    )


def hundred_thousand() -> Measured:
    """One step on 1,024 vectors, and a search that must agree with the distances computed one vector at a time."""
    generator = torch.Generator().manual_seed(0)
    quantizer = ProjectedQuantizer(torch.randn(100_000, 768, generator=generator), 8).train()
    features = torch.randn(1, 1024, 8, generator=generator, requires_grad=True)
    quantizer.seed_codes(features.detach(), generator)
    found = quantizer(features)
    found.loss.backward()
    projection = quantizer.codebook_projection
    moved = all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in projection.parameters())
    quantizer.eval()
    with torch.no_grad():
        codes = quantizer.codes()
        exact = [int((codes - vector).square().sum(1).argmin()) for vector in features.detach()[0, :64]]
        agree = torch.equal(quantizer.encode(features.detach())[0, :64], torch.tensor(exact))
        agree = agree and torch.equal(nearest_code(features.detach()[0, :64], codes), torch.tensor(exact))
    held = (CHUNK * 4 + quantizer.tok_embeddings.weight.numel() * 4 * 2) / 1e9  # scores of a chunk, the table and its step
    works = moved and agree and held < 2
    detail = f"one step on 1,024 vectors moves the projector; search exact; about {held:.2f} GB held"
    return Measured(100_000 if works else 0, "random table of 768 numbers", detail, numbers={"gigabytes": held})


def from_features() -> Measured:
    features = photo_features()
    quantizer = ProjectedQuantizer(features, 8)
    different = len(quantizer.tok_embeddings.weight.unique(dim=0))
    return Measured(different, "EfficientNet-Lite0's features of 4,096 crops of the embedded photos", "rows that differ")
