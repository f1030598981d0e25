"""SimpleNet (1608.06037): thirteen plain layers, arranged by design principles.

paperworks run simplenet                             digits, minutes on two cores
paperworks run simplenet --data FOLDER               your own photos in class folders
paperworks run simplenet --recipe released --weights simplenetv1_5m_m2-9bd6bb36.pth
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import timm
from torch import nn

from paperworks.backbones.cifar import CifarResNet, CifarVGG
from paperworks.backbones.registry import create
from paperworks.backbones.simplenet import ENTRIES, POOL, SimpleNet
from paperworks.errors import InputError
from paperworks.paper import Bench, Measured, Recipe, at_least, equals
from paperworks.papers._classification import DIGITS, AugmentConfig, ClassifierConfig, NetworkConfig
from paperworks.papers._recognition import check_variant, recognition_paper, small_images, stages
from paperworks.papers._recognition_claims import Budget, all_trained, giga_macs, lead, millions
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

MILLIONS = {
    "simplenetv1_small_m1_05": 1.5068,
    "simplenetv1_small_m2_05": 1.5068,
    "simplenetv1_small_m1_075": 3.2873,
    "simplenetv1_small_m2_075": 3.2873,
    "simplenetv1_5m_m1": 5.7528,
    "simplenetv1_5m_m2": 5.7528,
    "simplenetv1_9m_m1": 9.5090,
    "simplenetv1_9m_m2": 9.5090,
    "simplenet_cifar_310k": 0.3124,
    "simplenet_cifar_460k": 0.3858,
    "simplenet_cifar_5m": 5.4984,
    "simplenet_cifar_5m_extra_pool": 5.4984,
}

paper = recognition_paper("simplenet", [SimpleNet], ENTRIES, MILLIONS, "simplenetv1_5m_m2")


@paper.recipe("laptop")
def laptop(data: str = "default", size: int = 32, steps: int | None = None, seed: int = 0) -> Recipe:
    """The slim network of the paper (310 thousand parameters) in minutes on two cores.

    Args:
        data: digits by default; a folder with a sub-folder per class, a parquet file or a name
        size: pixels; images are cut or resized to it
        steps: of training; 900 for the digits, 2500 for other data
        seed: of initial weights, order and augmentation
    """
    network = NetworkConfig("simplenet_cifar_310k", {"drop_rates": 0.05, "mode": 0 if size <= 48 else 2})
    steps = steps or (900 if data in DIGITS else 2500)
    return Recipe(small_images(network, data, size, steps, seed), stages("SimpleNet"))


@paper.recipe("paper")
def published(variant: str = "simplenet_cifar_5m", data: str = "cifar10", seed: int = 0) -> Recipe:
    """The published CIFAR training: AdaDelta, 540 epochs of batch 100, dropout of 0.2 after nearly every layer.

    Args:
        variant: a CIFAR network of the paper
        data: CIFAR-10 by name, or labelled images of 32 pixels
        seed: of initial weights, order and augmentation
    """
    check_variant(variant, ENTRIES)
    if "_cifar_" not in variant:
        raise InputError(f"{variant} is an ImageNet network, whose training is not published: take a simplenet_cifar_ one")
    steps_per_epoch = 500
    steps = 540 * steps_per_epoch
    milestones = tuple(epoch / 540 for epoch in (100, 190, 306, 390, 440))
    schedule = ScheduleConfig("step", milestones=milestones, gamma=0.1)
    optimizer = OptimizerConfig("adadelta", lr=0.1, eps=1e-3, weight_decay=0.001, schedule=schedule)
    config = ClassifierConfig(
        data=data,
        image_size=32,
        network=NetworkConfig(variant, {"drop_rates": 0.2}),
        augment=AugmentConfig("shift", mixup=0.0, cutmix=0.0, smoothing=0.0),
        training=TrainConfig(steps, 100, optimizers={"main": optimizer}, seed=seed, eval_every=steps_per_epoch),
        seed=seed,
    )
    return Recipe(config, stages("SimpleNet"))


# --- claims -----------------------------------------------------------------------------------------------------------
# Each rule was written down before anything was measured.

BUDGET = Budget(epochs=5)
EARLY = (64, POOL, 32, POOL, 32, POOL, 32, 32, 32, 64, 64, 64, 128, "256k1", "64k1", POOL, 64)
"""the slim network with the same layers and parameters, and poolings as early as can be"""

NETWORKS = {
    "SimpleNet": lambda classes: SimpleNet("cifar_310k", num_classes=classes, mode=0),
    "wide plain net": lambda classes: CifarVGG(classes, width=24),
    "ResNet-32": lambda classes: CifarResNet(32, classes),
    "early pooling": lambda classes: SimpleNet(EARLY, num_classes=classes, mode=0),
}


def _ratios() -> dict[str, float]:
    """Parameters and multiply-accumulates of the networks the paper names over SimpleNet's, at 224 pixels."""
    others: dict[str, Callable[[], nn.Module]] = {
        "VGG-16": partial(timm.create_model, "vgg16"),
        "ResNet-18": partial(timm.create_model, "resnet18"),
        "GoogLeNet": _googlenet,
    }
    ours = partial(create, "simplenetv1_5m_m2")
    found = {}
    for name, build in others.items():
        found[f"{name} parameters"] = millions(build) / millions(ours)
        found[f"{name} operations"] = giga_macs(build) / giga_macs(ours)
    return found


def _googlenet() -> nn.Module:
    import torchvision

    return torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)


def _in_words(ratios: dict[str, float]) -> str:
    return ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())


@paper.claim("c2", rule=at_least(2.0), says="the smallest of the six ratios is at least 2")
def fewer_at_least(bench: Bench) -> Measured:
    ratios = _ratios()
    return Measured(min(ratios.values()), "any", f"SimpleNet 5m against {_in_words(ratios)}", numbers=ratios)


@paper.claim("c3", rule=equals(25.0, relative=0.05), says="VGG-16's parameters over SimpleNet's within 5 % of 25")
def fewer_at_most(bench: Bench) -> Measured:
    ratios = _ratios()
    return Measured(ratios["VGG-16 parameters"], "any", _in_words(ratios), numbers=ratios)


def _trained(bench: Bench, *names: str) -> dict[str, list[dict[str, float]]]:
    return all_trained(bench, {name: NETWORKS[name] for name in names}, BUDGET)


@paper.claim(
    "c1",
    rule=at_least(0.0),
    says="13 layers; on every seed at least as accurate as a plain network with over 5 times the parameters",
)
def outperforms_deeper(bench: Bench) -> Measured:
    layers = sum(isinstance(module, nn.Conv2d) for module in SimpleNet("cifar_310k").modules())
    larger = millions(lambda: CifarVGG(10, width=24)) / millions(lambda: SimpleNet("cifar_310k", num_classes=10))
    found = _trained(bench, "SimpleNet", "wide plain net", "ResNet-32")
    note = (
        f"; points ahead of the plain network, which has {larger:.1f} times the parameters; SimpleNet has {layers} convolutions"
    )
    return lead(bench, found, "SimpleNet", "wide plain net", BUDGET.words(bench), note=note)


@paper.claim("c5", rule=at_least(-0.5), says="within 0.5 points of a residual network with more parameters, on every seed")
def near_the_best_on_digits(bench: Bench) -> Measured:
    found = _trained(bench, "SimpleNet", "ResNet-32")
    return lead(bench, found, "SimpleNet", "ResNet-32", BUDGET.words(bench), note="; points ahead of ResNet-32")


@paper.claim("c8", rule=at_least(2.0), says="early pooling with the same parameters loses at least 2 points on every seed")
def principles_matter(bench: Bench) -> Measured:
    found = _trained(bench, "SimpleNet", "early pooling")
    return lead(bench, found, "SimpleNet", "early pooling", BUDGET.words(bench), note="; points that early pooling loses")
