"""T2T-ViT (2101.11986): overlapping windows instead of hard patches, and a deep and narrow transformer behind them.

paperworks run t2t-vit                               digits, minutes on two cores
paperworks run t2t-vit --data FOLDER                 your own photos in class folders
paperworks run t2t-vit --recipe released --weights 81.5_T2T_ViT_14.pth.tar
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from paperworks.analysis.channel_redundancy import channel_redundancy
from paperworks.backbones.registry import create
from paperworks.backbones.t2t_vit import ENTRIES, DenseT2TViT, T2TViT
from paperworks.backbones.tokens_to_token import SPLITS, HardSplit, TokensToToken, TokensType, soft_split, split_size
from paperworks.paper import Bench, Measured, Recipe, at_most, equals
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig, entry_of
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import Budget, Build, all_trained, fitted, giga_macs, lead, millions, some_images
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

MILLIONS = {
    "t2t_vit_7": 4.310,
    "t2t_vit_10": 5.889,
    "t2t_vit_12": 6.942,
    "t2t_vit_14": 21.546,
    "t2t_vit_19": 39.177,
    "t2t_vit_24": 64.106,
    "t2t_vit_t_14": 21.541,
    "t2t_vit_t_19": 39.173,
    "t2t_vit_t_24": 64.101,
    "t2t_vit_14_resnext": 21.546,
    "t2t_vit_14_wide": 25.156,
    "t2t_vit_14_se": 21.804,
    "t2t_vit_16_ghost": 16.253,
    "t2t_vit_dense": 23.647,
}
"""fixed positions and directions of the Performer (0.05 to 0.18) included"""

paper = recognition_paper("t2t-vit", [TokensToToken, HardSplit, T2TViT, DenseT2TViT], ENTRIES, MILLIONS, "t2t_vit_14")

SMALL: dict[str, Any] = {"embed_dim": 96, "depth": 5, "num_heads": 3, "mlp_ratio": 2.0, "token_dim": 32}
"""of a network for small images: 0.45 million parameters, 34 million multiply-accumulates at 32 pixels"""
FINE = [[3, 2, 1], [3, 2, 1], [3, 1, 1]]
"""soft splits of 32 pixels into 16 x 16, 8 x 8 and again 8 x 8 tokens"""


def _splits(size: int) -> list[list[int]]:
    """The paper's splits, or finer ones that leave small images at least 8 x 8 tokens."""
    if size <= 48:
        return FINE
    return [[7, 4, 2], [3, 2, 1], [3, 1, 1]] if size <= 112 else [list(window) for window in SPLITS]


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A narrow T2T-ViT of five blocks in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 900 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("t2t_vit_14", {**SMALL, "img_size": size, "splits": _splits(size)})
    steps = steps or (900 if data in DIGITS else 2500)
    optimizer = OptimizerConfig("adamw", lr=2e-3, weight_decay=0.05, schedule=ScheduleConfig("cosine", warmup=0.08))
    # a transformer this small needs all of its few steps for whole images
    config = small_images(network, data, size, steps, seed, optimizer=optimizer, mixup=0.0, cutmix=0.0)
    return Recipe(config, stages("T2T-ViT"))


@paper.recipe("paper")
def published(variant: str = "t2t_vit_14", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """The published ImageNet training: 310 epochs of batch 512, AdamW, averaged weights.

    Args:
        variant: a network of the paper (paperworks show t2t-vit lists them)
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    lite = variant in ("t2t_vit_7", "t2t_vit_10", "t2t_vit_12")
    lr, decay = (1e-3, 0.03) if lite else (5e-4, 0.065 if variant.endswith(("_19", "_24")) else 0.05)
    # the authors' cosine ends after 300 epochs and 10 more follow at its last rate: here it takes all 310
    schedule = ScheduleConfig("cosine", warmup=10 / 310, warmup_start=1e-6 / lr, end=1e-5 / lr)
    training = TrainConfig(
        imagenet_steps(310, 512),
        512,
        micro_batch,
        optimizers={"main": OptimizerConfig("adamw", lr=lr, weight_decay=decay, schedule=schedule)},
        ema=0.99996,
        ema_warmup=False,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(10, 512),
        checkpoint_every=imagenet_steps(1, 512),
    )
    network = NetworkConfig(variant, {"drop_path_rate": 0.1})
    cfg = entry_of(variant).pretrained_cfg
    size, crop_pct = cfg["input_size"][-1], cfg["crop_pct"]
    config = ClassifierConfig(
        data, False, size, crop_pct, network, AugmentConfig("imagenet"), training, watch=50_000, seed=seed
    )
    return Recipe(config, stages("T2T-ViT"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


def _plain_vit() -> nn.Module:
    """ViT-S/16 as the paper compares with it: 8 blocks of width 768 and an MLP of three times the width (48.6 M there)."""
    return VisionTransformer(embed_dim=768, depth=8, num_heads=8, mlp_ratio=3.0, qkv_bias=False)


def _base_vit() -> nn.Module:
    return VisionTransformer()


OURS = partial(create, "t2t_vit_14")


@paper.claim("c1", rule=at_most(0.5), says="T2T-ViT-14 has at most half the parameters of the paper's ViT-S/16")
def half_the_parameters(bench: Bench) -> Measured:
    numbers = {"T2T-ViT-14": millions(OURS), "ViT-S/16 of the paper": millions(_plain_vit), "ViT-B/16": millions(_base_vit)}
    ratio = numbers["T2T-ViT-14"] / numbers["ViT-S/16 of the paper"]
    words = ", ".join(f"{name} {value:.2f} M" for name, value in numbers.items())
    of_base = numbers["T2T-ViT-14"] / numbers["ViT-B/16"]
    return Measured(ratio, "any", f"{words}; {of_base:.2f} of ViT-B/16", numbers=numbers)


@paper.claim("c2", rule=at_most(0.5), says="T2T-ViT-14 takes at most half the multiply-accumulates of the paper's ViT-S/16")
def half_the_operations(bench: Bench) -> Measured:
    numbers = {
        "T2T-ViT-14": giga_macs(OURS),
        "ViT-S/16 of the paper": giga_macs(_plain_vit),
        "ViT-B/16": giga_macs(_base_vit),
        "Performer T2T at 448 over 224": _growth("performer"),
        "softmax T2T at 448 over 224": _growth("transformer"),
    }
    ratio = numbers["T2T-ViT-14"] / numbers["ViT-S/16 of the paper"]
    words = ", ".join(f"{name} {numbers[name]:.2f} G" for name in list(numbers)[:3])
    more = (
        f"; four times the pixels cost the Performer's tokens-to-token {numbers['Performer T2T at 448 over 224']:.2f} times as "
        f"much, softmax attention's {numbers['softmax T2T at 448 over 224']:.1f} times"
    )
    return Measured(ratio, "any", words + more, numbers=numbers)


def _growth(kind: TokensType) -> float:
    small, large = (giga_macs(lambda: TokensToToken(tokens_type=kind), size) for size in (224, 448))
    return large / small


@paper.claim("c4", rule=equals(21.5), says="T2T-ViT-14's parameters, rounded to a tenth of a million, are 21.5")
def size_of_resnet50(bench: Bench) -> Measured:
    import timm

    numbers = {"T2T-ViT-14": millions(OURS), "ResNet-50": millions(partial(timm.create_model, "resnet50"))}
    detail = ", ".join(f"{name} {value:.3f} M" for name, value in numbers.items())
    return Measured(round(numbers["T2T-ViT-14"], 1), "any", detail, numbers=numbers)


@paper.claim(
    "c9", rule=equals(196), says="3136, 784 and 196 tokens, neighbours of every split share pixels; hard patches share none"
)
def progressive_merging(bench: Bench) -> Measured:
    """Which pixels a token is made of is what its gradient says."""
    size, counts, shared = (224, 224), [], []
    for window in SPLITS:
        kernel, stride, padding = window
        shared.append(_shared_pixels(kernel, stride, padding))
        size = split_size(size, window)
        counts.append(size[0] * size[1])
    hard = _shared_pixels(4, 4, 0)
    as_claimed = counts == [3136, 784, 196] and min(shared) > 0 and hard == 0
    numbers = {"tokens": counts, "pixels shared by neighbours": shared, "by hard patches": hard}
    detail = f"tokens {counts}; positions shared by neighbouring windows {shared}, by hard patches of 4 pixels {hard}"
    return Measured(counts[-1] if as_claimed else 0, "any", detail, numbers=numbers)


def _shared_pixels(kernel: int, stride: int, padding: int) -> int:
    """Positions of a map that both of two neighbouring windows depend on."""
    seen = []
    for neighbour in (1, 2):
        image = torch.ones(1, 1, 32, 32, requires_grad=True)
        [gradient] = torch.autograd.grad(soft_split(image, kernel, stride, padding)[0, 1, neighbour].sum(), image)
        seen.append(gradient != 0)
    return int((seen[0] & seen[1]).sum())


DEEP: dict[str, Any] = {"img_size": 32, "splits": FINE, **SMALL}
STEPS = 500
"""of training for every network below, whatever the number of images"""


def _tokens_to_token(classes: int) -> nn.Module:
    return T2TViT(num_classes=classes, **DEEP)


def _hard_patches(classes: int) -> nn.Module:
    """Patches of 4 pixels; the MLPs are wider, so that both networks have equally many parameters."""
    return T2TViT(num_classes=classes, **{**DEEP, "tokens_type": "patch", "mlp_ratio": 8 / 3})


def _deep_narrow(classes: int) -> nn.Module:
    return T2TViT(num_classes=classes, **{**DEEP, "depth": 8})


def _shallow_wide(classes: int) -> nn.Module:
    return T2TViT(num_classes=classes, **{**DEEP, "embed_dim": 192, "num_heads": 6, "depth": 2})


def _budget(images: int) -> Budget:
    return Budget(images=images, epochs=STEPS * 64 / images, lr=2e-3)


FEW, MANY = 1000, 4000
AHEAD_WITH_MANY = f"points ahead with {MANY} images"


def _ahead(measured: Measured) -> bool:
    return all(points > 0 for points in measured.per_seed)


def _more_with_few(measured: Measured) -> bool:
    return _ahead(measured) and measured.value > measured.numbers[AHEAD_WITH_MANY]


@paper.claim(
    "c8",
    rule=_more_with_few,
    says=f"with {FEW} images ahead of hard patches on every seed, and on average by more than with {MANY}",
)
def sample_efficiency(bench: Bench) -> Measured:
    """Equal parameters, equal steps; only the number of images differs."""
    found: dict[str, list[dict[str, float]]] = {}
    for images in (FEW, MANY):
        builds: dict[str, Build] = {f"T2T {images}": _tokens_to_token, f"hard patches {images}": _hard_patches}
        found |= all_trained(bench, builds, _budget(images))
    gaps = [a["top1"] - b["top1"] for a, b in zip(found[f"T2T {MANY}"], found[f"hard patches {MANY}"])]
    note = f"; ahead with {MANY} images by {mean(gaps):.2f} points; parameters {_sizes(_tokens_to_token, _hard_patches)}"
    scale = f"{FEW} images of {bench.data}, 32 pixels, {STEPS} steps of 64, {len(bench.seeds)} seeds"
    measured = lead(bench, found, f"T2T {FEW}", f"hard patches {FEW}", scale, note=note)
    return replace(measured, numbers={**measured.numbers, AHEAD_WITH_MANY: mean(gaps)})


BACKBONES: dict[str, Build] = {"deep and narrow": _deep_narrow, "shallow and wide": _shallow_wide}
LOOKED_AT = 200
"""test images whose features are compared"""


@paper.claim("c10", rule=_ahead, says="8 blocks of width 96 are more accurate than 2 blocks of width 192 on every seed")
def deep_and_narrow(bench: Bench) -> Measured:
    found = all_trained(bench, BACKBONES, _budget(MANY))
    scale = f"{MANY} images of {bench.data}, 32 pixels, {STEPS} steps of 64, {len(bench.seeds)} seeds"
    note = f"; parameters {_sizes(_deep_narrow, _shallow_wide)}"
    return lead(bench, found, "deep and narrow", "shallow and wide", scale, note=note)


def _less_alike(measured: Measured) -> bool:
    dead = measured.numbers["dead"]
    return all(ratio < 1 for ratio in measured.per_seed) and mean(dead["deep and narrow"]) <= mean(dead["shallow and wide"])


@paper.claim(
    "c11",
    rule=_less_alike,
    says="channels of the deep and narrow network correlate less than the shallow and wide one's on every seed (mean over its "
    "blocks), and no larger share of them is dead",
)
def redundancy(bench: Bench) -> Measured:
    """The networks of c10, looked at on test images; the shallow and wide one stands for the plain ViT's shape."""
    budget = _budget(MANY)
    images = some_images(bench, budget, LOOKED_AT)
    alike: dict[str, list[float]] = {name: [] for name in BACKBONES}
    dead: dict[str, list[float]] = {name: [] for name in BACKBONES}
    for seed in bench.seeds:
        for name, build in BACKBONES.items():
            objective, _ = fitted(bench, name, seed, build, budget)
            assert isinstance(objective.model, T2TViT)
            with torch.inference_mode():
                maps = objective.model.forward_intermediates(objective.normalise(images), intermediates_only=True)
            found = [channel_redundancy(each) for each in maps]
            alike[name].append(mean(each.similarity for each in found))
            dead[name].append(mean(each.dead for each in found))
    ratios = [one / other for one, other in zip(*alike.values())]
    words = ", ".join(f"{name} {mean(alike[name]):.3f} ({mean(dead[name]):.1%} dead)" for name in BACKBONES)
    scale = f"{MANY} images of {bench.data}, 32 pixels, {STEPS} steps of 64, {len(bench.seeds)} seeds"
    detail = f"mean absolute correlation of two channels: {words}"
    return Measured(mean(ratios), scale, detail, ratios, list(bench.seeds), {"similarity": alike, "dead": dead}, unit="x")


def _sizes(*builds: Build) -> str:
    return " and ".join(f"{millions(partial(build, 10)):.3f} M" for build in builds)
