"""KimiaNet: features of a tile against timm's DenseNet-121 with the same weights, and the search against loops over barcodes.

A tile has 1000 pixels, as published. The peer of the search compares barcodes pair by pair, as the released one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, compare
from paperworks.analysis.retrieval import barcodes, distances
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.kimianet import KimiaNet

SIZE = 1000
SLIDES, PATCHES, BITS = 24, 34, 1023


def run() -> list[Row]:
    torch.manual_seed(0)
    return [*features(torch.rand(1, 3, SIZE, SIZE)), search()]


def features(tiles: Tensor) -> list[Row]:
    peer = timm.create_model("densenet121", num_classes=30).eval()
    ours = KimiaNet.from_official(peer.state_dict()).eval()
    with torch.inference_mode():
        same = F.relu(ours.features.get_submodule("norm5")(ours.forward_features(tiles)))
        theirs = peer.forward_features(tiles)
    if float((same - theirs).abs().max()) > 1e-3 * float(theirs.abs().max()):
        raise AssertionError("maps differ; a timing would mean nothing")
    exact, fast = (prepare_for_inference(ours, precision=precision, example=tiles) for precision in ("32", "bf16"))

    def work(model: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def once() -> Tensor:
            with torch.inference_mode():
                return model(tiles)

        return once

    plain, what = work(peer), f"one tile of {SIZE} pixels, inference"
    return [
        Row(what, "float32", "timm float32", compare(work(ours), plain, rounds=5, warmup=1)),
        Row(what, "prepared float32", "timm float32", compare(work(exact), plain, rounds=5, warmup=1), target=1.1),
        Row(what, "prepared bf16", "timm float32", compare(work(fast), plain, rounds=5, warmup=1), note=str(fast.report)),
    ]


def search() -> Row:
    generator = torch.Generator().manual_seed(0)
    slides = [barcodes(torch.randn(PATCHES, BITS + 1, generator=generator)) for _ in range(SLIDES)]
    loops = [[int.from_bytes(row.tobytes()) for row in np.packbits(codes.numpy(), axis=1)] for codes in slides]
    if not np.array_equal(distances(slides).numpy(), by_pairs(loops)):
        raise AssertionError("distances differ; a timing would mean nothing")
    what = f"{SLIDES} slides of {PATCHES} barcodes, all distances"
    ratio = compare(lambda: distances(slides), lambda: by_pairs(loops), rounds=5, warmup=1)
    return Row(what, "matrix products", "XOR and bit count, pair by pair", ratio, target=5.0)


def by_pairs(slides: Sequence[Sequence[int]]) -> np.ndarray:
    """Median over a query's barcodes of the smallest number of different bits to another slide's; barcodes as integers."""
    table = np.empty((len(slides), len(slides)))
    for row, query in enumerate(slides):
        for column, other in enumerate(slides):
            table[row, column] = np.median([min((code ^ known).bit_count() for known in other) for code in query])
    return table
