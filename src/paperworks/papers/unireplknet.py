"""UniRepLKNet (2311.15599): few large kernels with dilated branches, for images and whatever can be laid out as one.

paperworks run unireplknet                               digits, minutes on two cores
paperworks run unireplknet --data FOLDER                 your own photos in class folders
paperworks run unireplknet --recipe universal            series, sound, video and point clouds through the same network
paperworks run unireplknet --recipe released --variant unireplknet_t --weights unireplknet_t_in1k_224_acc83.21.pth
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from paperworks.analysis.counting import count_parameters
from paperworks.backbones.modalities import PointProjection, audio_image, fold_series, mosaic, rotations, viewed
from paperworks.backbones.registry import create
from paperworks.backbones.series import SeriesForecaster
from paperworks.backbones.unireplknet import ENTRIES, UniRepLKNet, UniRepLKNetBlock
from paperworks.errors import InputError
from paperworks.layers.large_kernel import ReparamDepthwise
from paperworks.paper import Bench, Measured, Recipe, Stage, at_least, at_most, equals
from paperworks.papers import _universal as universal_stages
from paperworks.papers._classification import DIGITS, AugmentConfig, NetworkConfig
from paperworks.papers._large_kernel_claims import RIVALS, field_claim, guidelines_claim, kernel_comparison, latency_claim
from paperworks.papers._recognition import check_variant, modern_imagenet, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import giga_macs, millions
from paperworks.training import OptimizerConfig, ScheduleConfig

MILLIONS = {
    "unireplknet_a": 4.649,
    "unireplknet_f": 6.489,
    "unireplknet_p": 11.081,
    "unireplknet_n": 18.819,
    "unireplknet_t": 31.693,
    "unireplknet_s": 56.457,
    "unireplknet_b": 99.089,
    "unireplknet_l": 220.076,
    "unireplknet_xl": 388.691,
}
"""in the form of training; the published counts are those of the folded form, a few per cent smaller"""

PRETRAINED = ("unireplknet_b", "unireplknet_l", "unireplknet_xl")
"""networks that the paper has only with ImageNet-22K before ImageNet-1k"""

paper = recognition_paper(
    "unireplknet",
    [UniRepLKNetBlock, UniRepLKNet, ReparamDepthwise, PointProjection, SeriesForecaster],
    ENTRIES,
    MILLIONS,
    "unireplknet_a",
)

SMALL: dict[str, Any] = {
    "depths": [1, 2, 2],
    "dims": [32, 64, 128],
    "kernel_sizes": [3, 13, [13, 3]],
    "stem_stride": 2,
    "layer_scale": 1.0,
}


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """A small UniRepLKNet in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 500 for the digits, 2000 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("unireplknet_a", {**SMALL, "stem_stride": 2 if size <= 48 else 4})
    steps = steps or (500 if data in DIGITS else 2000)
    return Recipe(small_images(network, data, size, steps, seed), stages("UniRepLKNet"))


@paper.recipe("universal")
def universal(steps: int = 250, seed: int = 0) -> Recipe:
    """One network class on four other kinds of data: series, sounds, short videos and point clouds, each beside a baseline.

    Args:
        steps: of training for each of them
        seed: of data that are made, initial weights and order
    """
    config = universal_stages.UniversalConfig(steps, seed)
    parts = [Stage(name, partial(universal_stages.train_modality, name)) for name in universal_stages.MODALITIES]
    return Recipe(config, (*parts, Stage("report", universal_stages.write_report)))


@paper.recipe("paper")
def published(variant: str = "unireplknet_t", data: str = "imagenet", seed: int = 0, micro_batch: int = 64) -> Recipe:
    """The published ImageNet training: 300 epochs of batch 4096.

    Args:
        variant: a network of the paper that was trained on ImageNet-1k alone, a to s
        data: ImageNet as a folder of class folders, shards or parquet
        seed: of initial weights, order and augmentation
        micro_batch: images per process and backward pass
    """
    check_variant(variant, ENTRIES)
    if variant in PRETRAINED:
        raise InputError(
            f"{variant} was trained on ImageNet-22K and then at 384 pixels, which this recipe does not do: take one of a to s, "
            f"or --recipe finetune --variant {variant} --size 384 with the weights of the first training (*_in22k_pretrain)"
        )
    size = variant.removeprefix("unireplknet_")
    mixup, cutmix = (0.3, 0.3) if size in "afp" else (0.5, 0.5) if size == "n" else (0.8, 1.0)
    drop_path = {"p": 0.1, "n": 0.1, "t": 0.2, "s": 0.4}.get(size, 0.0)
    schedule = ScheduleConfig("cosine", warmup=20 / 300, end=1e-6 / 4e-3)
    optimizer = OptimizerConfig("adamw", lr=4e-3, weight_decay=0.05, schedule=schedule)
    augment = AugmentConfig("imagenet", magnitude=9.0, erase=0.25, mixup=mixup, cutmix=cutmix, smoothing=0.1)
    network = NetworkConfig(variant, {"drop_path_rate": drop_path})
    config = modern_imagenet(network, data, seed, micro_batch, optimizer, augment, epochs=300, batch=4096)
    return Recipe(config, stages("UniRepLKNet"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.


@paper.claim("c1", rule=at_least(0.5), says="dilated branches at least 0.5 points above the plain large kernel on every seed")
def dilated_branches(bench: Bench) -> Measured:
    return guidelines_claim(bench)


@paper.claim("c2", rule=at_most(1e-5), says="folded outputs within 1e-5 of the largest; parameters and operations fall")
def folding_is_exact(bench: Bench) -> Measured:
    worst = 0.0
    for seed in bench.seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create("unireplknet_a", layer_scale=1.0).eval()
            assert isinstance(model, UniRepLKNet)
            for module in model.modules():  # norms and gains that are not the initial ones
                if isinstance(module, torch.nn.BatchNorm2d):
                    assert module.running_mean is not None and module.running_var is not None
                    module.running_mean.normal_(std=0.2)
                    module.running_var.uniform_(0.5, 1.5)
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                    torch.nn.init.normal_(module.bias, std=0.2)
            for name, parameter in model.named_parameters():
                if ".grn." in name:
                    torch.nn.init.normal_(parameter, std=0.2)
            images = torch.rand(1, 3, 96, 96)
        with torch.no_grad():
            before = model(images)
            after = model.reparameterize()(images)
        worst = max(worst, float((after - before).abs().max() / before.abs().max()))
    numbers: dict[str, Any] = {"largest difference": worst}
    smaller = True
    for name in ENTRIES:
        trained, folded = partial(create, name), partial(create, name, deploy=True)
        size = int(ENTRIES[name].pretrained_cfg["input_size"][-1])
        row = (millions(trained), millions(folded), giga_macs(trained, size), giga_macs(folded, size))
        numbers[name] = [round(value, 3) for value in row]
        smaller = smaller and row[1] < row[0] and row[3] < row[2]
    detail = "T: {} -> {} M parameters, {} -> {} G multiply-accumulates".format(
        *(numbers["unireplknet_t"][i] for i in (0, 1, 2, 3))
    )
    return Measured(worst if smaller else 1.0, "any", detail, numbers=numbers)


@paper.claim("c3", rule=at_least(5.0), says="the area grows from 3 over 7 to 13 on every seed, at least five times in all")
def wide_without_depth(bench: Bench) -> Measured:
    return field_claim(bench)


@paper.claim("c7", rule=at_least(1.0), says="not slower than ConvNeXt-T, Swin-T and DeiT-S, each in its better layout")
def latency(bench: Bench) -> Measured:
    return latency_claim(bench, RIVALS)


@paper.claim(
    "c8", rule=at_least(1.0), says="error of the forecast with 3x3 kernels over the one with 13x13 above 1 on every seed"
)
def series_need_large_kernels(bench: Bench) -> Measured:
    return kernel_comparison(bench)


@paper.claim(
    "c11",
    rule=equals(1),
    says="one list of layers behind the first one for images, series, sound, points and video, and a step of training that "
    "lowers the loss on each",
)
def same_architecture(bench: Bench) -> Measured:
    """Every modality's input goes through the network and back to its first layer's weights; a step along the gradients."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 64, 3, generator=generator)
    turned = viewed(points, rotations(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        project = PointProjection(8, img_size=64, obj_size=64)
    inputs = {
        "images": torch.rand(2, 3, 64, 64, generator=generator),
        "series": fold_series(torch.rand(2, 48, 48, generator=generator)),
        "sound": audio_image(torch.rand(2, 96, 64, generator=generator)),
        "points": project(points.repeat_interleave(2, 0), turned).detach(),
        "video": mosaic(torch.rand(2, 3, 4, 32, 32, generator=generator)),
    }
    layers = set()
    sizes = {}
    for name, given in inputs.items():
        model, before, after = _one_step(given)
        learnt = after < before and all(parameter.grad is not None for parameter in model.parameters())
        shapes = tuple((key, tuple(value.shape)) for key, value in model.state_dict().items() if not key.startswith("stem.0."))
        layers.add(shapes if learnt else name)
        sizes[name] = {"input": list(given.shape), "parameters": count_parameters(model), "loss": [before, after]}
    return Measured(len(layers), "shapes and a step of training", f"inputs {', '.join(inputs)}", numbers=sizes)


def _one_step(given: torch.Tensor) -> tuple[UniRepLKNet, float, float]:
    """A network, and its loss on two labelled inputs before and after a step of gradient descent on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UniRepLKNet(given.shape[1], 4, (1, 1, 1, 1), (16, 24, 32, 40), layer_scale=1.0)
    labels = torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = F.cross_entropy(model(given), labels)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after = F.cross_entropy(model(given), labels)
    return model, before.item(), after.item()
