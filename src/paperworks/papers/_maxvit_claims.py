"""How the claims of MaxViT are measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.counting import count_parameters
from paperworks.analysis.metrics import frechet_distance
from paperworks.backbones.maxvit import MaxViT, MaxViTBlock, Stage
from paperworks.backbones.registry import create
from paperworks.generators.maxvit_gan import MaxViTGenerator, ReversedBlock
from paperworks.layers.mbconv import MBConv
from paperworks.layers.multi_axis import Axis, AxisBlock
from paperworks.paper import Bench, Measured, Recipe, write_json
from paperworks.papers import _maxvit_gan as gan
from paperworks.papers._generation import default_channels, framed, open_test
from paperworks.papers._generation_report import Judge
from paperworks.papers._recognition_claims import Budget, Build, all_trained, giga_macs, lead

# --- counted ----------------------------------------------------------------------------------------------------------


def linear_cost() -> Measured:
    """MaxViT-T with its 7x7 windows at 224, 448 and 896 pixels."""
    macs = {size: giga_macs(partial(create, "maxvit_tiny"), size) for size in (224, 448, 896)}
    ratios = [macs[448] / macs[224], macs[896] / macs[448]]
    numbers = {f"{size} pixels (G)": round(value, 3) for size, value in macs.items()}
    words = ", ".join(f"{value:.3f} G at {size}" for size, value in macs.items())
    worst = max(ratios, key=lambda ratio: abs(ratio - 4))
    detail = f"MaxViT-T: {words}; ratios {ratios[0]:.3f} and {ratios[1]:.3f}"
    return Measured(worst, "any", detail, numbers={**numbers, "ratios": ratios})


# --- reach ------------------------------------------------------------------------------------------------------------

SIZES = ((32, 32), (64, 64), (32, 64), (64, 48), (48, 32), (40, 56), (61, 37), (33, 64))
"""of images; the last three give maps that windows of 4 do not divide"""


SIDES = (56, 28, 14, 7)
"""of the maps of MaxViT-T's stages at 224 pixels"""


def reached(layers: nn.Module, height: int, width: int, dim: int, token: tuple[int, int]) -> int:
    """Tokens of [1, H, W, dim] that move `token` of the result, by autograd."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, height, width, dim, generator=generator, dtype=torch.float64).requires_grad_()
    made = layers.double()(x)[0, token[0], token[1]]
    weights = torch.randn(made.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((made * weights).sum(), x)
    return int((gradient[0].abs().amax(-1) > 0).sum())


def _axes(*axes: Axis, dim: int = 8, window: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(AxisBlock(dim, axis, window, head_dim=dim) for axis in axes)).eval()


def global_reach() -> Measured:
    """A 16x16 map with windows and grid of 4, from a token in the middle; and MaxViT-T's own maps and windows, where one pair
    at 56x56 reaches the windows in which its grid has tokens and the stage's second pair the rest."""
    from_middle = partial(reached, height=16, width=16, dim=8, token=(5, 6))
    numbers: dict[str, Any] = {
        "block alone": from_middle(_axes("block")),
        "grid alone": from_middle(_axes("grid")),
        "both": from_middle(_axes("block", "grid")),
    }
    words = []
    for side in SIDES:
        pair, stage = (
            reached(_axes(*(("block", "grid") * blocks), window=7), side, side, 8, (side // 2, side // 2)) / side**2
            for blocks in (1, 2)
        )
        numbers[f"share at {side}x{side}, one block"], numbers[f"share at {side}x{side}, two blocks"] = pair, stage
        words.append(f"{side}x{side}: {pair:.0%} after one block, {stage:.0%} after two")
    detail = "by attention alone, as squeeze-and-excitation looks everywhere anyway; MaxViT-T at 224: " + "; ".join(words)
    return Measured(numbers["both"], "16x16 tokens, windows and grid of 4", detail, numbers=numbers)


def any_resolution() -> Measured:
    """One small network of two stages on images of all SIZES; the reach of an attention pair on each first map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaxViT((16, 24), (1, 1), 16, window=4, head_dim=8, num_classes=3).eval()
    works, numbers = 0, {}
    for height, width in SIZES:
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = model(images)
            first = model.forward_intermediates(images, intermediates_only=True)[1]
        rows, columns = first.shape[2:]
        tokens = reached(_axes("block", "grid"), rows, columns, 8, (rows // 2, columns // 3))
        fine = logits.shape == (2, 3) and bool(logits.isfinite().all()) and tokens == rows * columns
        works += fine
        numbers[f"{height}x{width}"] = f"{tokens} of {rows * columns} tokens"
    return Measured(
        works, "a network of 16 to 24 channels, windows and grid of 4", "; ".join(numbers.values()), numbers=numbers
    )


# --- trained ----------------------------------------------------------------------------------------------------------

BUDGET = Budget(epochs=5)
SHAPE: dict[str, Any] = {"depths": (2, 2), "stem_width": 32, "window": 4, "head_dim": 32}


def network(axes: tuple[Axis, Axis], classes: int) -> nn.Module:
    """Maps of 16x16 and 8x8 with windows of 4; all three choices of axes have the same parameters."""
    return MaxViT((32, 64), axes=axes, num_classes=classes, stem_stride=1, **SHAPE)


def both_axes(bench: Bench) -> Measured:
    """Points ahead of the better of the two with the same seed."""
    builds = {
        "block and grid": partial(network, ("block", "grid")),
        "block twice": partial(network, ("block", "block")),
        "grid twice": partial(network, ("grid", "grid")),
    }
    found = all_trained(bench, builds, BUDGET)
    better = "the better of these two"
    alone = [max(runs, key=lambda run: run["top1"]) for runs in zip(found["block twice"], found["grid twice"])]
    note = "; points ahead of the better with the same seed, at equal parameters"
    return lead(bench, {**found, better: alone}, "block and grid", better, BUDGET.words(bench), note=note)


def attention_only(classes: int) -> nn.Module:
    """The same network, wider, with a 1x1 convolution (and a mean where it strides) in place of every MBConv."""
    model = MaxViT((38, 76), axes=("block", "grid"), num_classes=classes, stem_stride=1, **{**SHAPE, "head_dim": 38})
    for stage in model.stages:
        assert isinstance(stage, Stage)
        for block in stage.blocks:
            assert isinstance(block, MaxViTBlock) and isinstance(block.conv, MBConv)
            block.conv = block.conv.shortcut
    return model


def blend(bench: Bench) -> Measured:
    # under the name that c4 trains it by
    builds: dict[str, Build] = {"block and grid": partial(network, ("block", "grid")), "attention only": attention_only}
    with torch.device("meta"):
        sizes = {name: count_parameters(build(10)) for name, build in builds.items()}
    parameters = ", ".join(f"{name} {count / 1e3:.0f} k" for name, count in sizes.items())
    note = f"; attention only has no MBConv; parameters {parameters}"
    found = all_trained(bench, builds, BUDGET)
    return lead(bench, found, "block and grid", "attention only", BUDGET.words(bench), note=note)


# --- generated --------------------------------------------------------------------------------------------------------

GAN_STEPS = 800


class ConvInstead(MBConv):
    """An MBConv in the place of an attention, on [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def convolutional(config: gan.GenerateConfig) -> MaxViTGenerator:
    """The generator with two MBConv in place of its two attentions, as wide as gives the same number of parameters."""
    model = gan.build_generator(config)
    for module in model.modules():
        if isinstance(module, ReversedBlock):
            dim = module.dim
            instead = partial(ConvInstead, dim, dim, expand=3.0, eps=1e-5, momentum=0.1)
            module.grid = instead()
            module.block = instead()
    return model


def generation(bench: Bench, recipe: Callable[..., Recipe]) -> Measured:
    """Frechet distance of the convolutional generator over that of MaxViT's, same discriminator, steps and images."""
    distances: dict[str, list[float]] = {"MaxViT": [], "convolution": []}
    sizes = {}
    for seed in bench.seeds:
        config = recipe(data=bench.data, seed=seed).config
        assert isinstance(config, gan.GenerateConfig)
        config = replace(config, training=replace(config.training, seed=seed))
        judge = Judge.of(config.data, bench.folder / "judge")
        test = open_test(config.data, channels=default_channels(config.data))
        real = judge.features(framed(test, config.image_size, judge.limit))
        for name, build in (("MaxViT", gan.build_generator), ("convolution", convolutional)):
            result = bench.folder / f"gan-{name}-{seed}" / "distance.json"
            torch.manual_seed(seed)
            generator = build(config)
            sizes[name] = count_parameters(generator)
            if not result.is_file():
                made, _ = gan.trained_generator(config, generator, result.parent, f"{name}, seed {seed}")
                features = judge.features(made.sample(min(config.images, judge.limit), seed))
                write_json(result, frechet_distance(real, features))
            distances[name].append(json.loads(result.read_text()))
            bench.say(f"{name}, seed {seed}: Frechet distance {distances[name][-1]:.4g}")
    ratios = [conv / ours for ours, conv in zip(distances["MaxViT"], distances["convolution"])]
    words = ", ".join(f"{name} {mean(found):.4g} ({sizes[name] / 1e6:.2f} M)" for name, found in distances.items())
    scale = f"{bench.data}, 32 pixels, {GAN_STEPS} steps of 32, {len(bench.seeds)} seeds; both generators to our specification"
    numbers = {"distances": distances, "parameters": sizes}
    return Measured(mean(ratios), scale, f"mean Frechet distance: {words}", ratios, list(bench.seeds), numbers, "x")
