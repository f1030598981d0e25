"""What VQGAN-LC's claims are measured on: quantisers in one small autoencoder of photo patches, and counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from paperworks.analysis.features import extract, lite0
from paperworks.analysis.live_memory import peak_memory
from paperworks.data import open_images
from paperworks.data.photos import random_crops
from paperworks.layers.vector_quantization import nearest_code
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


AS_PUBLISHED = "FC as published"
"""free codes that start at U(-1/N, 1/N), as the authors' baseline does; "FC", "EMA" and "LC" start from features of patches"""


def _measured(bench: Bench, kind: str, codes: int, seed: int) -> dict[str, float]:
    seeded = kind != AS_PUBLISHED
    name = f"{kind.replace(' ', '-')}-{'seeded-' if seeded else ''}{codes}"
    return usage_and_error(bench, name, seed, _build(kind, codes), CHANNELS, steps=400, lr=5e-4, seeded=seeded)


def _scale(bench: Bench, *kinds: str) -> str:
    start = "codes start at U(-1/N, 1/N)" if AS_PUBLISHED in kinds else "all codes start from features of patches"
    return (
        f"8 x 8 patches of the embedded photos, the same MLP autoencoder, 8 dimensions, 400 steps, {len(bench.seeds)} seeds; "
        f"{start}"
    )


def usage_of(bench: Bench, kind: str, codes: int) -> Measured:
    shares = [100 * _measured(bench, kind, codes, seed)["usage"] for seed in bench.seeds]
    return Measured(mean(shares), _scale(bench, kind), f"{codes} codes, all patches counted", shares, list(bench.seeds))


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
    return Measured(mean(falls), _scale(bench, kind), _usages(bench, kind), falls, list(bench.seeds), unit="x usage")


def flattest(bench: Bench) -> Measured:
    """How much less the projected code book's usage falls than the better baseline's; all start from data."""
    leads = [_fall(bench, "LC", seed) / max(_fall(bench, "FC", seed), _fall(bench, "EMA", seed)) for seed in bench.seeds]
    words = _usages(bench, "LC", "FC", "EMA", AS_PUBLISHED)
    return Measured(mean(leads), _scale(bench), words, leads, list(bench.seeds), unit="x")


def error_ratio(bench: Bench) -> Measured:
    """Against free codes that start from data, too; those that do not stand beside."""
    errors = {
        kind: [_measured(bench, kind, 1024, seed)["error"] for seed in bench.seeds] for kind in ("LC", "FC", AS_PUBLISHED)
    }
    ratios = [ours / theirs for ours, theirs in zip(errors["LC"], errors["FC"])]
    detail = "squared error with 1,024 codes: " + ", ".join(f"{kind} {mean(values):.4f}" for kind, values in errors.items())
    return Measured(mean(ratios), _scale(bench), detail, ratios, list(bench.seeds), errors, "x error")


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
    """A step of Adam on 1,024 vectors, after which the projector is another and the table the same; a search that must agree
    with the distances computed one vector at a time; the memory of both, counted."""
    generator = torch.Generator().manual_seed(0)
    quantizer = ProjectedQuantizer(torch.randn(100_000, 768, generator=generator), 8).train()
    features = torch.randn(1, 1024, 8, generator=generator, requires_grad=True)
    quantizer.seed_codes(features.detach(), generator)
    projection, table = quantizer.codebook_projection, quantizer.tok_embeddings.weight
    before = [parameter.detach().clone() for parameter in projection.parameters()]
    rows = table.detach().sum(1)

    def step() -> None:
        with torch.enable_grad():
            optimizer = torch.optim.Adam(projection.parameters(), lr=1e-3)
            quantizer(features).loss.backward()
            optimizer.step()

    peak = peak_memory(step)
    moved = not any(torch.equal(old, new) for old, new in zip(before, projection.parameters()))
    fixed = table.grad is None and torch.equal(table.detach().sum(1), rows)
    quantizer.eval()
    found: list[Tensor] = []
    peak = max(peak, peak_memory(lambda: found.append(quantizer.encode(features.detach()))))
    with torch.no_grad():
        codes = quantizer.codes()
        exact = torch.tensor([int((codes - vector).square().sum(1).argmin()) for vector in features.detach()[0, :64]])
        agree = torch.equal(found[0][0, :64], exact) and torch.equal(nearest_code(features.detach()[0, :64], codes), exact)
    held = (peak + table.numel() * table.element_size()) / 1e9
    works = moved and fixed and agree and held < 2
    detail = (
        f"a step of Adam on 1,024 vectors moves the projector and nothing else; search exact; {held:.2f} GB at most, "
        f"{table.numel() * table.element_size() / 1e9:.2f} of them the table"
    )
    return Measured(100_000 if works else 0, "random table of 768 numbers", detail, numbers={"gigabytes": held})


def from_features() -> Measured:
    features = photo_features()
    quantizer = ProjectedQuantizer(features, 8)
    different = len(quantizer.tok_embeddings.weight.unique(dim=0))
    return Measured(different, "EfficientNet-Lite0's features of 4,096 crops of the embedded photos", "rows that differ")
