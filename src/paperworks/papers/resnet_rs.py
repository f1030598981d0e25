"""ResNet-RS (2103.07579): the residual network with today's training, and rules for making it larger.

paperworks run resnet-rs                             digits, minutes on two cores
paperworks run resnet-rs --data FOLDER               your own photos in class folders
paperworks run resnet-rs --recipe pseudo --data FOLDER --extra UNLABELLED      labels for images that have none
paperworks run resnet-rs --recipe pareto             beside EfficientNet: time against accuracy
paperworks run resnet-rs --recipe released --weights hub
"""

from __future__ import annotations

from collections.abc import Callable
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
from paperworks.errors import InputError
from paperworks.paper import Bench, Measured, Recipe, at_least, at_most, value_above
from paperworks.papers import _pseudo_labels as pseudo_labels
from paperworks.papers import _resnet_rs_claims as training_methods
from paperworks.papers import _resnet_rs_pareto as families
from paperworks.papers import _resnet_rs_scaling as scaling
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig
from paperworks.papers._recognition import imagenet_steps, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import inference
from paperworks.training import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig

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
def published(
    variant: str = "resnetrs50", data: str = "imagenet", size: int | None = None, seed: int = 0, micro_batch: int = 64
) -> Recipe:
    """The published ImageNet training: 350 epochs of batch 4096, one cosine, weight decay 4e-5, label smoothing, RandAugment,
    dropout, stochastic depth, averaged weights and statistics.

    Args:
        variant: a network of the paper
        data: ImageNet as a folder of class folders, shards or parquet
        size: pixels, of a row of the paper's table; the largest of the variant by default
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    if variant not in ENTRIES:
        raise InputError(f"no variant {variant!r}: there are {', '.join(ENTRIES)}")
    depth = int(variant.removeprefix("resnetrs"))
    sizes = [pixels for layers, pixels in families.RESNET_RS if layers == depth]
    size = max(sizes) if size is None else size
    if size not in sizes:
        raise InputError(f"{variant} at {size} pixels is not in the paper's table: {', '.join(map(str, sizes))}")
    schedule = ScheduleConfig("cosine", warmup=5 / 350, end=0.0)
    rules = (ParameterRule(r"(\.se\.fc[12]|(^|\.)fc)\.bias$", weight_decay=4e-5),)  # of vectors only norms go without decay
    optimizer = OptimizerConfig("sgd", lr=1.6, momentum=0.9, nesterov=True, weight_decay=4e-5, schedule=schedule, rules=rules)
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
    magnitude = 10.0 if size == 160 else 15.0
    augment = AugmentConfig("imagenet", magnitude=magnitude, deviation=0.0, probability=1.0, erase=0.0, mixup=0.0, cutmix=0.0)
    # statistics are the last batch's: the average of the weights is what smooths them
    network = NetworkConfig(variant, {"drop_rate": 0.4 if size == 320 else 0.25, "bn_momentum": 1.0})
    config = ClassifierConfig(data, False, size, 0.875, network, augment, training, watch=50_000, seed=seed)
    return Recipe(config, stages("ResNet-RS"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


def _network(architecture: str, classes: int) -> nn.Module:
    if architecture == "RS":
        return ResNet(num_classes=classes, **{**RS, **SMALL, "drop_rate": 0.0, "drop_path_rate": 0.0})
    return ResNet(num_classes=classes, **{**SMALL, "stem_width": 16, "drop_path_rate": 0.0})


def _recipe_ahead(measured: Measured) -> bool:
    return all(value > 0 for value in (*measured.per_seed, *measured.numbers["recipe"]))


@paper.claim("c1", rule=_recipe_ahead, says="on every seed the recipe gains something, and more points than the architecture")
def recipe_matters_more(bench: Bench) -> Measured:
    """The same steps of SGD: steps of the rate and weight decay 1e-4, against the recipe's methods with less decay."""
    plain, rs = partial(_network, "plain"), partial(_network, "RS")
    baseline, recipe = training_methods.BASELINE, training_methods.RECIPE
    names = ("plain, step schedule", "RS, step schedule", "plain, recipe of RS")
    found = training_methods.top1(bench, {names[0]: (plain, baseline), names[1]: (rs, baseline), names[2]: (plain, recipe)})
    base = found[names[0]]
    architecture, gained = ([value - start for value, start in zip(found[name], base)] for name in names[1:])
    points = [a - b for a, b in zip(gained, architecture)]
    words = f"baseline {mean(base):.2f} %; recipe {mean(gained):+.2f}, architecture {mean(architecture):+.2f} points"
    numbers = {"baseline": base, "recipe": gained, "architecture": architecture}
    return Measured(mean(points), baseline.words(bench), words, points, list(bench.seeds), numbers, "points")


@paper.claim(
    "c2",
    rule=value_above(0),
    says="of equal operations, the deep network leads the wide one after a long training, mean of the seeds",
)
def depth_or_width(bench: Bench) -> Measured:
    return scaling.depth_or_width(bench)


@paper.claim(
    "c3",
    rule=scaling.below_compound,
    says="of networks of equal operations the best, by the mean of the seeds, takes fewer pixels than the compound rule gives",
)
def slow_resolution(bench: Bench) -> Measured:
    return scaling.resolutions(bench)


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
    "c5", rule=at_least(1.5), says="the largest ratio over seven pairs of nearly equal printed accuracy at least 1.5, bfloat16"
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
    """Norms with weights and statistics that are not the initial ones, so that every branch counts."""
    worst, spread = 0.0, []
    for seed in bench.seeds:
        torch.manual_seed(seed)
        options = {**RS, **SMALL, "stem_pool": "conv", "stem_stride": 2, "zero_init_last": False}
        network = ResNet(num_classes=5, **options).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for name, tensor in module.state_dict().items():
                    if name in ("weight", "running_var"):
                        tensor.uniform_(0.8, 1.2)
                    elif name in ("bias", "running_mean"):
                        tensor.normal_(std=0.1)
        nn.init.normal_(network.get_parameter("fc.weight"), std=network.num_features**-0.5)
        clips = VideoResNet(network, stem_frames=3).eval()
        image = torch.rand(2, 3, 65, 64)
        with torch.no_grad():
            logits = network(image)
            still = clips(image[:, :, None].expand(-1, -1, 6, -1, -1))
        worst = max(worst, float((still - logits).abs().max()))
        spread.append(float(logits.std()))
    detail = f"logits of deviation {median(spread):.2f}; Kinetics was not trained on"
    numbers = {"deviation of the logits": spread}
    scale = "small network, clips of 6 frames"
    return Measured(worst, scale, detail, seeds=list(bench.seeds), numbers=numbers, unit="logits")
