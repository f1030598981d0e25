"""InceptionNeXt (2303.16900): large depthwise kernels split into a square, two bands and an identity."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.metanext import MetaNeXt
from paperworks.backbones.registry import create
from paperworks.data import open_images
from paperworks.layers.convolution import InceptionDWConv2d
from paperworks.objectives.classify import Normalise, score
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most, equals
from paperworks.papers import card
from paperworks.papers._inceptionnext_claims import (
    MICRO,
    depthwise_share,
    giga_macs,
    micro,
    mixer_branches,
    seconds_per_mac,
    step_seconds,
)
from paperworks.papers._inceptionnext_recipe import (
    InceptionNeXtConfig,
    NetworkConfig,
    batches,
    framing,
    load_classifier,
    open_split,
    train_network,
    write_report,
)
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

STAGES = (Stage("train", train_network), Stage("report", write_report))
SIZES = {
    "inceptionnext_atto": (4.157, 0.503),
    "inceptionnext_tiny": (28.056, 4.189),
    "inceptionnext_small": (49.374, 8.356),
    "inceptionnext_base": (86.672, 14.841),
    "inceptionnext_base_384": (86.672, 43.603),
}
"""millions of parameters, G multiply-accumulates at the variant's size"""

paper = Paper(
    card("inceptionnext"),
    parts=[MetaNeXt, InceptionDWConv2d, ConvNeXt],
    variants={name: Variant(partial(create, name), parameters) for name, (parameters, _) in SIZES.items()},
)


@paper.recipe("laptop")
def laptop(data: str = "default", image_size: int = 32, seed: int = 0) -> Recipe:
    """A small InceptionNeXt on your class folders in minutes on two cores.

    Args:
        data: a folder of class folders, parquet, shards, or a name; the default is 5000 handwritten digits
        image_size: side of the images that the network sees
        seed: of initial weights, data order and augmentation
    """
    digits = data in ("default", "mnist5k", "digits")
    config = InceptionNeXtConfig(
        data=data,
        image_size=image_size,
        channels=1 if digits else 3,
        seed=seed,
        flip=not digits,
        network=NetworkConfig(patch_size=2 if image_size <= 64 else 4),
    )
    return Recipe(config, STAGES)


@paper.recipe("paper")
def imagenet(data: str = "imagenet", seed: int = 0) -> Recipe:
    """The published setting of InceptionNeXt-T: 300 epochs of ImageNet at 224 pixels, batch 4096; needs a cluster and torchrun.

    Args:
        data: ImageNet as class folders, shards or parquet
        seed: of initial weights, data order and augmentation
    """
    steps = 300 * 1_281_167 // 4096
    schedule = ScheduleConfig("cosine", warmup=20 / 300, end=0.0)
    optimizer = OptimizerConfig("adamw", lr=4e-3, weight_decay=0.05, schedule=schedule)
    config = InceptionNeXtConfig(
        data=data,
        image_size=224,
        channels=3,
        seed=seed,
        flip=True,
        augment="imagenet",
        mixup=0.8,
        cutmix=1.0,
        network=NetworkConfig((3, 3, 9, 3), (96, 192, 384, 768), 4, drop_path_rate=0.1, layer_scale=1e-6),
        training=TrainConfig(
            steps,
            4096,
            optimizers={"main": optimizer},
            channels_last=True,
            workers=8,
            checkpoint_every=1000,
            eval_every=steps // 300,
        ),
    )
    return Recipe(config, STAGES)


@paper.verb("predict")
def predict(run: Run, *, images: Path, top: int = 5) -> list[dict[str, Any]]:
    """Names what is on pictures, most likely classes first.

    Args:
        images: a picture or a folder of pictures
        top: how many classes to name
    """
    config: InceptionNeXtConfig = run.config(InceptionNeXtConfig)
    source = open_images(images, channels=config.channels, labels="none")
    classifier, names = load_classifier(run), run.result("train")["classes"]
    frame = framing(config, source, train=False)
    rows = []
    for index in range(len(source)):
        image = frame(source[index]["image"])[None].float() / 255
        with torch.inference_mode():
            found = classifier.logits(image).softmax(1)[0].topk(min(top, len(names)))
        said = ", ".join(f"{names[i]} {p:.0%}" for p, i in zip(found.values.tolist(), found.indices.tolist()))
        rows.append({"image": source.key(index), "said": said})
    return rows


@paper.verb("evaluate")
def evaluate(run: Run, *, data: str | None = None, fast: bool = False) -> dict[str, Any]:
    """Top-1 and top-5 on held-out images of the run, or on others with the same class folders.

    Args:
        data: other images
        fast: with the network prepared for inference (folded, bfloat16 where the processor has it)
    """
    config: InceptionNeXtConfig = run.config(InceptionNeXtConfig)
    names = run.result("train")["classes"]
    source = open_split(config, "test") if data is None else open_images(data, labels="required", channels=config.channels)
    classifier = load_classifier(run)
    if fast:
        example = next(batches(config, source))["image"][:8]
        classifier.model = prepare_for_inference(classifier.model, example=classifier.normalise(example))
    scores = score(classifier.logits, batches(config, source), len(names))
    return {"top-1": round(scores.top1, 4), "top-5": round(scores.top5, 4), "images": len(scores.said)}


@paper.verb("export")
def export(run: Run, *, to: Literal["onnx", "torchscript"] = "onnx", out: Path | None = None) -> dict[str, Any]:
    """Writes the classifier, normalisation included: images [N, C, H, W] in [0, 1] to logits.

    Args:
        to: the format
        out: file to write, by default model.onnx or model.pt in the run's folder
    """
    config: InceptionNeXtConfig = run.config(InceptionNeXtConfig)
    classifier = load_classifier(run)
    network = torch.nn.Sequential(
        Normalise(classifier.normalise.mean.flatten().tolist(), classifier.normalise.std.flatten().tolist()), classifier.model
    ).eval()
    example = torch.rand(2, config.channels, config.image_size, config.image_size)
    path = out or run.folder / ("model.onnx" if to == "onnx" else "model.pt")
    if to == "onnx":
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(batch,),
            dynamo=True,
            verbose=False,
        )
    else:
        torch.jit.trace(network, example).save(str(path))
    return {"format": to, "file": str(path)}


# --- claims -------------------------------------------------------------------------------------------------------------


@paper.claim(
    "sizes",
    rule=equals(4.2, absolute=0.05),
    says="4.2 within rounding; every variant within 0.1 % of the reference's count",
    statement="InceptionNeXt-T has 28 M parameters and 4.2 G multiply-accumulates",
    paper_value="4.2",
    unit="G MACs",
)
def sizes(bench: Bench) -> Measured:
    found = {}
    for name, (parameters, macs) in SIZES.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in create(name).parameters()) / 1e6
        counted = giga_macs(name, 384 if name.endswith("384") else 224)
        found[name] = [round(count, 3), round(counted, 3)]
        if abs(count - parameters) > 1e-3 * parameters or abs(counted - macs) > 1e-3 * macs:
            return Measured(float("nan"), "any", f"{name}: {count:.3f} M, {counted:.3f} G instead of {parameters} M, {macs} G")
    words = "; ".join(f"{name.removeprefix('inceptionnext_')} {count} M, {macs} G" for name, (count, macs) in found.items())
    return Measured(found["inceptionnext_tiny"][1], "any", words, numbers=found)


@paper.claim("c1", rule=at_most(5.0), says="at most 5 % of ConvNeXt-T's multiply-accumulates")
def depthwise_is_small(bench: Bench) -> Measured:
    share = depthwise_share()
    return Measured(share, "any", f"7x7 depthwise convolutions take {share:.2f} % of ConvNeXt-T at 224 pixels")


@paper.claim("c2", rule=at_least(2.0), says="a depthwise multiply-accumulate takes at least twice as long as a pointwise one")
def depthwise_is_slow(bench: Bench) -> Measured:
    pairs = [seconds_per_mac() for _ in bench.seeds]
    ratios = [depthwise / pointwise for depthwise, pointwise in pairs]
    words = "7x7 depthwise against 1x1 on 96 channels of 56 x 56, each in its better layout; rounds instead of seeds"
    return Measured(statistics.median(ratios), "this processor, float32", words, ratios, bench.seeds)


@paper.claim("c3", rule=equals(1.0, absolute=0.15), says="ratio of multiply-accumulates within 15 % of 1")
def similar_macs(bench: Bench) -> Measured:
    convnext, resnet = giga_macs("convnext_tiny"), giga_macs("resnet50")
    return Measured(convnext / resnet, "any", f"ConvNeXt-T {convnext:.3f} G, ResNet-50 {resnet:.3f} G at 224 pixels")


@paper.claim("c4", rule=at_most(99.0), says="below ResNet-50's throughput when each has its better memory layout")
def convnext_trains_slower(bench: Bench) -> Measured:
    times = step_seconds(("convnext_tiny", "resnet50"))
    best = {name: min(layouts.values()) for name, layouts in times.items()}
    value = 100 * best["resnet50"] / best["convnext_tiny"]
    return Measured(value, "this processor, float32, batch 4 (the paper: A100)", _layouts(times), numbers=times)


@paper.claim("c7", rule=at_least(1.01), says="faster than ConvNeXt-T when each has its better memory layout")
def trains_faster(bench: Bench) -> Measured:
    times = step_seconds(("inceptionnext_tiny", "convnext_tiny"))
    best = {name: min(layouts.values()) for name, layouts in times.items()}
    value = best["convnext_tiny"] / best["inceptionnext_tiny"]
    return Measured(value, "this processor, float32, batch 4 (the paper: A100)", _layouts(times), numbers=times)


def _layouts(times: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{name} {', '.join(f'{1e3 * seconds:.0f} ms {layout}' for layout, seconds in layouts.items())}"
        for name, layouts in times.items()
    )


@paper.claim("c5", rule=at_least(0.01), says="on every seed 7x7 is more accurate than 3x3, and 3x3 takes less time")
def small_kernels(bench: Bench) -> Measured:
    pairs = [(micro(bench, "depthwise7", seed), micro(bench, "depthwise3", seed)) for seed in bench.seeds]
    gains = [large["accuracy"] - small["accuracy"] for large, small in pairs]
    speed = statistics.median(large["seconds_per_step"] / small["seconds_per_step"] for large, small in pairs)
    values = gains if speed > 1 else [float("-inf")] * len(gains)
    words = f"points that 7x7 gains over 3x3, {', '.join(f'{gain:.2f}' for gain in gains)}; 3x3 is {speed:.2f}x as fast"
    return Measured(statistics.median(values), MICRO, words, values, bench.seeds)


@paper.claim(
    "c6", rule=equals(4), says="exactly 4 branches, each checked against a plain convolution, the identity bit for bit"
)
def four_branches(bench: Bench) -> Measured:
    return Measured(mixer_branches(), "any", "identity 5/8 of the channels, then 3x3, 1x11 and 11x1 on 1/8 each")


@paper.claim("c8", rule=at_least(-0.5), says="at most half a point below 7x7 on every seed")
def as_accurate(bench: Bench) -> Measured:
    pairs = [(micro(bench, "inception", seed), micro(bench, "depthwise7", seed)) for seed in bench.seeds]
    gains = [ours["accuracy"] - large["accuracy"] for ours, large in pairs]
    speed = statistics.median(large["seconds_per_step"] / ours["seconds_per_step"] for ours, large in pairs)
    words = f"points over the same network with 7x7; a training step is {speed:.2f}x as fast"
    return Measured(statistics.median(gains), MICRO, words, gains, bench.seeds)


@paper.claim(
    "c6_bands",
    rule=equals(31 / 8, absolute=1e-9),
    says="(9 + 11 + 11) / 8 taps a channel, read off the weights",
    statement="The mixer has 3.9 convolution taps per channel where 7x7 has 49",
    paper_value="3.9",
    unit="taps",
)
def taps_per_channel(bench: Bench) -> Measured:
    mixer = InceptionDWConv2d(96)
    taps = sum(p.numel() for name, p in mixer.named_parameters() if name.endswith("weight")) / 96
    return Measured(taps, "96 channels", f"{taps:.3f} against 49")
