"""What the claims of patch scaling are measured with: counted tokens and operations, one pass over 50,176 tokens, small
curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean, median

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from paperworks.analysis.counting import macs_by_kind
from paperworks.analysis.live_memory import peak_memory
from paperworks.analysis.timing import alternate
from paperworks.backbones.registry import create
from paperworks.paper import Bench, Measured
from paperworks.papers._patch_scaling_curve import NETWORKS, CurveConfig, all_points

CURVE = CurveConfig()
PIXELS = 224
PATCHES = (32, 16, 8)
SIZES_PATCHES = (8, 4, 2)


# --- counted ----------------------------------------------------------------------------------------------------------------


def count_costs(bench: Bench) -> Measured:
    """Tokens and multiply-accumulates of a DeiT-B without class token and of Adventurer-Base over patch sizes."""
    counted = {patch: _costs(patch) for patch in PATCHES}
    exponents = {
        name: [math.log2(counted[small][name] / counted[large][name]) for large, small in pairwise(PATCHES)]
        for name in ("tokens", "attention MACs")
    }
    ratio = counted[8]["Adventurer MACs"] / counted[16]["Adventurer MACs"]
    words = "; ".join(
        f"patch {patch}: {row['tokens']:.0f} tokens, ViT {row['ViT MACs'] / 1e9:.1f} G of which attention "
        f"{row['attention MACs'] / 1e9:.1f} G, Adventurer {row['Adventurer MACs'] / 1e9:.1f} G"
        for patch, row in counted.items()
    )
    numbers = {"counted": {str(patch): row for patch, row in counted.items()}, "exponents": exponents, "Adventurer": ratio}
    return Measured(
        mean(exponents["attention MACs"]), "any", f"base size, {PIXELS} pixels; {words}", numbers=numbers, unit="exponent"
    )


def _costs(patch: int) -> dict[str, float]:
    with torch.device("meta"):
        # without a class token, so that the powers are whole numbers
        vit = VisionTransformer(PIXELS, patch, num_classes=0, class_token=False, global_pool="avg")
        adventurer = create("adventurer_base_patch16_224", patch_size=patch)
        image = torch.zeros(1, 3, PIXELS, PIXELS)
        of_vit, of_adventurer = macs_by_kind(vit, image), macs_by_kind(adventurer, image)
    return {
        "tokens": (PIXELS // patch) ** 2,
        "ViT MACs": sum(of_vit.values()),
        "attention MACs": of_vit["attention"],
        "Adventurer MACs": sum(of_adventurer.values()),
    }


# --- one long sequence --------------------------------------------------------------------------------------------------------


def longest_sequence(bench: Bench) -> Measured:
    """Adventurer-Base sees every pixel of a 224-pixel image once; time and memory of Tiny at a quarter of the pixels and at
    all."""
    torch.manual_seed(0)
    seen: list[int] = []
    base = create("adventurer_base_patch1_224").eval()
    base.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1] - 1))  # type: ignore[index,union-attr]
    image = torch.rand(1, 3, PIXELS, PIXELS)
    finite = bool(_passed(base, image)().isfinite().all())
    bench.say(f"  base: {seen[0]} tokens and a class token in one pass, outputs finite: {finite}")
    del base
    tiny = create("adventurer_tiny_patch1_224").eval()
    works = {size: _passed(tiny, torch.rand(1, 3, size, size)) for size in (PIXELS // 2, PIXELS)}
    memory = {size: peak_memory(work) / 2**20 for size, work in works.items()}
    times = alternate(works, rounds=max(3, len(bench.seeds)), warmup=0, least=0.0)
    ratios = [long / short for long, short in zip(times[PIXELS], times[PIXELS // 2])]
    numbers = {
        "finite": finite,
        "time": median(ratios),
        "memory": memory[PIXELS] / memory[PIXELS // 2],
        "seconds": {str(size**2): median(values) for size, values in times.items()},
        "mebibytes": {str(size**2): value for size, value in memory.items()},
    }
    scale = f"Adventurer-Base (136 M) forward, float32, {torch.get_num_threads()} threads; timed with Tiny"
    detail = (
        f"Tiny: {numbers['seconds']['12544']:.1f} s for 12,544 tokens, {numbers['seconds']['50176']:.1f} s for 50,176 "  # type: ignore[index]
        f"({numbers['time']:.2f} times), live memory {memory[PIXELS]:.0f} MiB ({numbers['memory']:.2f} times); "
        f"one head's attention matrix would take {attention_gib(PIXELS**2):.1f} GiB"
    )
    return Measured(seen[0], scale, detail, numbers=numbers)


def linear_in_tokens(measured: Measured) -> bool:
    """50,176 tokens, finite outputs, four times the time and memory of 12,544."""
    numbers = measured.numbers
    return measured.value == 50176 and numbers["finite"] and all(3.6 <= numbers[name] <= 4.4 for name in ("time", "memory"))


def attention_gib(tokens: int) -> float:
    """Of one head's matrix of scores in float32."""
    return 4 * tokens**2 / 2**30


def _passed(model: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    def work() -> Tensor:
        with torch.no_grad():
            return model(image)

    return work


# --- trained ------------------------------------------------------------------------------------------------------------------


def curve_of(bench: Bench, kinds: tuple[str, ...] = NETWORKS) -> Measured:
    """Points of accuracy gained from the largest to the smallest patch, per seed, least over the networks."""
    config = CurveConfig(data=bench.data, networks=kinds)
    found = all_points(config, bench)
    patches = config.patches
    means = {
        kind: {name: {str(patch): mean(run[name] for run in by_patch[patch]) for patch in patches} for name in ("loss", "top1")}
        for kind, by_patch in found.items()
    }
    gains = [
        min(by_patch[patches[-1]][number]["top1"] - by_patch[patches[0]][number]["top1"] for by_patch in found.values())
        for number in range(len(bench.seeds))
    ]
    words = "; ".join(
        f"{kind} loss "
        + ", ".join(f"p{patch} {row['loss'][str(patch)]:.3f} ({row['top1'][str(patch)]:.1f} %)" for patch in patches)
        for kind, row in means.items()
    )
    detail = f"{words}; points gained from p{patches[0]} to p{patches[-1]}"
    runs = {kind: {str(patch): points for patch, points in by_patch.items()} for kind, by_patch in found.items()}
    numbers = {"means": means, "runs": runs}
    return Measured(mean(gains), config.words(bench.seeds), detail, gains, list(bench.seeds), numbers, "points")


def falls(measured: Measured) -> bool:
    """Means over seeds, of every network: the test loss falls from p8 to p4 to p2, and p1 is at most a point behind p2."""
    return all(
        row["loss"]["8"] > row["loss"]["4"] > row["loss"]["2"] and row["top1"]["1"] >= row["top1"]["2"] - 1
        for row in measured.numbers["means"].values()
    )


mamba_curve = partial(curve_of, kinds=("Adventurer",))


def both_sizes(bench: Bench) -> Measured:
    """Points of accuracy gained from patches of 8 to 2 by Adventurer, per seed, least over images of 16 and of 32 pixels."""
    found = {}
    for size in (16, 32):
        config = CurveConfig(bench.data, size, SIZES_PATCHES, ("Adventurer",))
        # what c1 trained at 16 pixels is not trained again
        folder = bench.folder if size == CURVE.size else bench.folder / f"{size} pixels"
        found[str(size)] = all_points(config, replace(bench, folder=folder))["Adventurer"]
    means = {
        size: {str(patch): {key: mean(run[key] for run in runs) for key in ("loss", "top1")} for patch, runs in row.items()}
        for size, row in found.items()
    }
    large, small = SIZES_PATCHES[0], SIZES_PATCHES[-1]
    gains = [min(row[small][n]["top1"] - row[large][n]["top1"] for row in found.values()) for n in range(len(bench.seeds))]
    words = "; ".join(
        f"{size} pixels: loss "
        + ", ".join(f"p{patch} {each['loss']:.3f} ({each['top1']:.1f} %)" for patch, each in row.items())
        for size, row in means.items()
    )
    scale = replace(CURVE, data=bench.data).words(bench.seeds).replace(f"{CURVE.size} pixels", "16 and 32 pixels")
    numbers = {"means": means, "runs": {size: {str(patch): runs for patch, runs in row.items()} for size, row in found.items()}}
    return Measured(
        mean(gains), scale, f"{words}; points gained from p{large} to p{small}", gains, list(bench.seeds), numbers, "points"
    )


def falls_at_both(measured: Measured) -> bool:
    """Means over seeds, at both sizes: the test loss falls from p8 to p4 to p2."""
    return all(row["8"]["loss"] > row["4"]["loss"] > row["2"]["loss"] for row in measured.numbers["means"].values())
