"""ResNet-RS (2103.07579): the residual network with today's training, and rules for making it larger.

paperworks run resnet-rs                             digits, minutes on two cores
paperworks run resnet-rs --data FOLDER               your own photos in class folders
paperworks run resnet-rs --recipe pseudo --data FOLDER --extra UNLABELLED      labels for images that have none
paperworks run resnet-rs --recipe pareto             beside EfficientNet: time against accuracy
paperworks run resnet-rs --recipe released --weights hub
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any, Literal

import timm
import torch
from torch import nn

from paperworks.analysis.pareto import measured_axis, next_axis, pareto_front
from paperworks.analysis.timing import alternate
from paperworks.backbones.registry import create
from paperworks.backbones.resnet import ENTRIES as RESIDUAL
from paperworks.backbones.resnet import RS, ResNet
from paperworks.backbones.video import VideoResNet
from paperworks.paper import Bench, Measured, Recipe, at_least, at_most
from paperworks.papers import _pseudo_labels as pseudo_labels
from paperworks.papers import _resnet_rs_pareto as families
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig
from paperworks.papers._recognition import check_variant, imagenet_steps, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import Budget, all_trained, inference
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

ENTRIES = {name: entry for name, entry in RESIDUAL.items() if name.startswith("resnetrs")}
MILLIONS = {
    "resnetrs50": 35.692,
    "resnetrs101": 63.619,
    "resnetrs152": 86.622,
    "resnetrs200": 93.210,
    "resnetrs270": 129.861,
    "resnetrs350": 163.956,
    "resnetrs420": 191.892,
}
MAGNITUDES = {50: 10.0}
"""of RandAugment; 15 for the others"""

paper = recognition_paper(
    "resnet-rs", [ResNet, VideoResNet, pareto_front, next_axis, measured_axis], ENTRIES, MILLIONS, "resnetrs50"
)

SMALL: dict[str, Any] = {
    "layers": [1, 1, 1, 1],
    "channels": [16, 32, 64, 128],
    "stem_width": 8,
    "stem_stride": 1,
    "stem_pool": "none",
    "drop_path_rate": 0.05,
}
"""of a network for images of 32 pixels"""


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small ResNet-RS in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 900 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    stem = {} if size <= 64 else {"stem_stride": 2, "stem_pool": "conv"}
    network = NetworkConfig("resnetrs50", {**SMALL, **stem})
    steps = steps or (900 if data in DIGITS else 2500)
    return Recipe(small_images(network, data, size, steps, seed), stages("ResNet-RS"))


@paper.recipe("pseudo")
def pseudo(
    data: str = "default",
    extra: str = "",
    keep: int | None = None,
    least: float = 0.8,
    size: int = 32,
    steps: int = 300,
    seed: int = 0,
) -> Recipe:
    """Semi-supervised: a teacher learns the labelled images and labels the others, a student learns both.

    Args:
        data: images with labels
        extra: images without; when none are named, most of the data's images lose their labels
        keep: how many images keep their labels; 100 when no others are named, all otherwise
        least: probability from which the teacher's label is believed
        size: pixels
        steps: of the teacher; the student trains for twice as many
        seed: of initial weights, order, augmentation and of which images keep their labels
    """
    teacher = laptop(data, size, steps, seed).config
    assert isinstance(teacher, ClassifierConfig)
    kept = (0 if extra else 100) if keep is None else keep
    return pseudo_labels.recipe(pseudo_labels.PseudoConfig(teacher, pseudo_labels.doubled(teacher), extra, kept, least))


@paper.recipe("pareto")
def pareto(precision: Literal["auto", "32", "bf16"] = "auto", largest: float = 85.0, rounds: int = 3) -> Recipe:
    """Both families, ResNet-RS and EfficientNet, timed in one process and drawn against their printed accuracies.

    Args:
        precision: of weights and maps; "auto" is bfloat16 where the processor computes in it
        largest: networks with a higher printed top-1 are left out
        rounds: timings of each network
    """
    return families.recipe(families.ParetoConfig(precision, largest, rounds))


@paper.recipe("paper")
def published(variant: str = "resnetrs50", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """The published ImageNet training: 350 epochs of batch 4096, one cosine, weight decay 4e-5, label smoothing, RandAugment,
    dropout, stochastic depth, averaged weights and statistics.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    depth = int(variant.removeprefix("resnetrs"))
    schedule = ScheduleConfig("cosine", warmup=5 / 350, end=0.0)
    optimizer = OptimizerConfig("sgd", lr=1.6, momentum=0.9, nesterov=True, weight_decay=4e-5, schedule=schedule)
    training = TrainConfig(
        imagenet_steps(350, 4096),
        4096,
        micro_batch,
        optimizers={"main": optimizer},
        ema=0.9999,
        seed=seed,
        workers=8,
        eval_every=imagenet_steps(10, 4096),
        checkpoint_every=imagenet_steps(1, 4096),
    )
    size = ENTRIES[variant].pretrained_cfg["input_size"][-1]
    augment = AugmentConfig("imagenet", magnitude=MAGNITUDES.get(depth, 15.0), erase=0.0, mixup=0.0, cutmix=0.0)
    network = NetworkConfig(variant)
    config = ClassifierConfig(data, False, size, 0.875, network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, stages("ResNet-RS"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.

PLAIN = Budget(epochs=5, lr=3e-3, decay=0.0, smoothing=0.0)
BETTER = replace(PLAIN, decay=0.05, smoothing=0.1)
"""the part of the recipe that short runs can tell: weight decay and label smoothing"""


def _network(architecture: str, classes: int) -> nn.Module:
    options = {**RS, **SMALL, "drop_rate": 0.0, "drop_path_rate": 0.0} if architecture == "RS" else {}
    plain = {**SMALL, "stem_width": 16, "drop_path_rate": 0.0}
    return ResNet(num_classes=classes, **(options or plain))


@paper.claim("c1", rule=at_least(0.0), says="on every seed the recipe gains at least as many points as the architecture")
def recipe_matters_more(bench: Bench) -> Measured:
    plain = all_trained(bench, {"plain": partial(_network, "plain"), "RS": partial(_network, "RS")}, PLAIN)
    better = all_trained(bench, {"plain, recipe": partial(_network, "plain")}, BETTER)
    base = [run["top1"] for run in plain["plain"]]
    recipe = [run["top1"] - start for run, start in zip(better["plain, recipe"], base)]
    architecture = [run["top1"] - start for run, start in zip(plain["RS"], base)]
    points = [a - b for a, b in zip(recipe, architecture)]
    words = f"baseline {mean(base):.2f} %; recipe {mean(recipe):+.2f}, architecture {mean(architecture):+.2f} points"
    numbers = {"baseline": base, "recipe": recipe, "architecture": architecture}
    return Measured(mean(points), PLAIN.words(bench), words, points, list(bench.seeds), numbers, "points")


@paper.claim(
    "c4", rule=at_least(1.5), says="ResNet-RS-350 at 256 pixels at least 1.5 times as fast as EfficientNet-B6 at 528, bfloat16"
)
def faster_than_efficientnet(bench: Bench) -> Measured:
    """One image, inference, weights in bfloat16, channels-last; both networks have 84.0 % in the paper and its source."""
    ours = inference(create("resnetrs350"), torch.channels_last, 1, 256, torch.bfloat16)
    theirs = inference(timm.create_model("tf_efficientnet_b6"), torch.channels_last, 1, 528, torch.bfloat16)
    ratios, seconds = [], {"RS-350": 0.0, "B6": 0.0}
    for _ in bench.seeds:
        works: dict[str, Callable[[], Any]] = {"RS-350": ours, "B6": theirs}
        seconds = {name: median(times) for name, times in alternate(works, rounds=3, warmup=1).items()}
        ratios.append(seconds["B6"] / seconds["RS-350"])
    words = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items())
    scale = f"random weights, one image, bfloat16 on this processor, {torch.get_num_threads()} threads"
    return Measured(median(ratios), scale, f"{words}; the paper's numbers are a TPU's", ratios, list(bench.seeds), seconds)


@paper.claim(
    "c5", rule=at_least(1.5), says="the largest ratio over four pairs of equal printed accuracy at least 1.5, bfloat16"
)
def largest_ratio(bench: Bench) -> Measured:
    """One image, channels-last, both networks of a pair in turns; smaller pairs are printed, and may lose."""
    ratios = {pair: families.pair_ratios(*pair, repeats=len(bench.seeds)) for pair in families.PAIRS.items()}
    best = [max(values) for values in zip(*ratios.values())]
    words = ", ".join(f"{ours} / {theirs} {median(values):.2f}x" for (ours, theirs), values in ratios.items())
    numbers = {" / ".join(pair): values for pair, values in ratios.items()}
    scale = f"random weights, one image, bfloat16 on this processor, {torch.get_num_threads()} threads"
    return Measured(median(best), scale, f"{words}; the paper's numbers are a TPU's", best, list(bench.seeds), numbers)


@paper.claim("c9", rule=at_most(1e-4), says="the inflated network gives a still clip the image network's logits within 0.0001")
def video(bench: Bench) -> Measured:
    worst = 0.0
    for seed in bench.seeds:
        torch.manual_seed(seed)
        network = ResNet(num_classes=5, **{**RS, **SMALL, "stem_pool": "conv", "stem_stride": 2}).eval()
        clips = VideoResNet(network, temporal=("conv1", "conv3"), stem_frames=3).eval()
        image = torch.rand(2, 3, 65, 64)
        with torch.no_grad():
            still = clips(image[:, :, None].expand(-1, -1, 6, -1, -1))
            worst = max(worst, float((still - network(image)).abs().max()))
    return Measured(
        worst, "small network, clips of 6 frames", "Kinetics was not trained on", seeds=list(bench.seeds), unit="logits"
    )
