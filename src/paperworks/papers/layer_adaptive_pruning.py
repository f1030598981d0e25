"""RD-prune (2308.10438): each layer's damage to the network's output is measured, and a knapsack shares out the sparsity.

paperworks run layer-adaptive-pruning                                     digits and a narrow ResNet-20, minutes
paperworks run layer-adaptive-pruning --data FOLDER                       your own labelled images
paperworks run layer-adaptive-pruning --recipe photos --data FOLDER       a pretrained network on your photos, no labels
paperworks run layer-adaptive-pruning --recipe trained --run runs/inceptionnext         the network of another run
paperworks run layer-adaptive-pruning --recipe paper --network vgg16_cifar
"""

from __future__ import annotations

import functools
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from paperworks.backbones.registry import create
from paperworks.compression.allocation import allocate_rd
from paperworks.compression.distortion import measure_curves
from paperworks.compression.iterative import CurveConfig, IterativeConfig, prune_iteratively
from paperworks.compression.knapsack import solve
from paperworks.compression.layer_report import report_layers
from paperworks.compression.sparse_file import save_sparse
from paperworks.data import open_images
from paperworks.errors import InputError, nearest
from paperworks.objectives.classify import Normalise
from paperworks.paper import Bench, Measured, Paper, Recipe, Run, Stage, Variant, at_least, at_most, equals
from paperworks.papers import card
from paperworks.papers._classification import DIGITS, ClassifierConfig, Trained
from paperworks.papers._pruning_claims import (
    additivity_at_moderate,
    additivity_by_sparsity,
    largest_deviation,
    margin_at_knee,
    pruning_instance,
    scaling,
    trained_and_compared,
)
from paperworks.papers._pruning_problem import DEVICE, Evaluation, NetworkConfig, Problem, PruningConfig
from paperworks.papers._pruning_report import report_stage
from paperworks.papers._pruning_stages import (
    DENSE,
    compare_stage,
    iterative_stage,
    measure_stage,
    pruned_network,
    train_dense,
)
from paperworks.training import OptimizerConfig, ScheduleConfig, TrainConfig

paper = Paper(
    card("layer-adaptive-pruning"),
    parts=[measure_curves, solve, allocate_rd, prune_iteratively],
    variants={
        name: Variant(functools.partial(create, name), millions, note)
        for name, millions, note in [
            ("resnet20_cifar", 0.272, "22 layers"),
            ("resnet32_cifar", 0.467, "34 layers, 464,432 prunable weights"),
            ("vgg16_cifar", 14.73, "14 layers"),
            ("densenet121_cifar", 1.00, "121 layers, growth 12"),
            ("efficientnet_b0_cifar", 3.60, "82 layers"),
        ]
    },
)

STAGES = (
    Stage("train", train_dense),
    Stage("curves", measure_stage),
    Stage("compare", compare_stage),
    Stage("prune", iterative_stage),
    Stage("report", report_stage),
)


def _adamw(steps: int, batch_size: int, lr: float, schedule: ScheduleConfig, decay: float = 0.01, **more: Any) -> TrainConfig:
    optimizer = OptimizerConfig("adamw", lr=lr, weight_decay=decay, schedule=schedule)
    return TrainConfig(steps=steps, batch_size=batch_size, optimizers={"main": optimizer}, **more)


@paper.recipe("laptop")
def laptop(data: str = "default", network: str = "resnet20_cifar", steps: int | None = None, seed: int = 0) -> Recipe:
    """Trains a small network, compares the schemes in one shot, then prunes 90 % away in steps with fine-tuning.

    Args:
        data: digits by default; a folder, parquet file or name with labels
        network: a network of this library or of timm, for 32 x 32 images
        steps: training steps of the dense network; 400 for the digits, 1500 for other data
        seed: of initialisation, order and augmentation
    """
    small = data in DIGITS
    steps = steps or (400 if small else 1500)
    cosine, flat = ScheduleConfig("cosine", warmup=0.1), ScheduleConfig("constant", warmup=0.1)
    tune = _adamw(steps // 4, 128, 1e-3, flat, seed=seed)
    curves = CurveConfig(measure="mean", images=128, every=5)
    config = PruningConfig(
        data=data,
        seed=seed,
        network=NetworkConfig(network, {"width": 8} if network.startswith("resnet") and network.endswith("_cifar") else {}),
        training=_adamw(steps, 128, 3e-3, cosine, 0.02, seed=seed),
        curves=curves,
        iterative=IterativeConfig(target=0.9, rate=0.45, curves=curves, finetune=tune),
    )
    return Recipe(config, STAGES)


@paper.recipe("photos")
def photos(
    data: str = "photos", network: str = "lite0", size: int = 128, zero_data: bool = False, keep: float = 0.3, seed: int = 0
) -> Recipe:
    """Prunes a pretrained ImageNet network in one shot and measures, on photos without labels, how far it agrees with the
    dense one.

    Args:
        data: photos: a folder, a parquet file or a name
        network: "lite0" needs no download; any other name is fetched with timm's released weights
        size: side of the square crops
        zero_data: measure distortion on Gaussian noise instead of photos
        keep: sparsity of the network that is written out
        seed: of the crops
    """
    config = PruningConfig(
        data=data,
        seed=seed,
        network=NetworkConfig(network, pretrained=network != "lite0", image_size=size),
        crops=400 if data == "photos" else None,
        curves=CurveConfig(measure="mean", images=16, every=10, batch_size=16, source="gaussian" if zero_data else "train"),
        sparsities=(0.1, 0.2, 0.3, 0.4, 0.5),
        test_images=100,
        keep=keep,
    )
    return Recipe(config, STAGES)


@paper.recipe("trained")
def trained(run: Path, data: str = "", target: float = 0.8, steps: int = 100, seed: int = 0) -> Recipe:
    """Prunes the network of a finished classification run in steps, with fine-tuning on the run's own images.

    Args:
        run: folder of the run, such as runs/inceptionnext
        data: other images of the same classes
        target: share of the weights to remove in the end
        steps: of fine-tuning after each round
        seed: of order and augmentation
    """
    folder = run.resolve()
    there = Run.load(folder)
    if not (folder / "train" / "classes.json").is_file():
        raise InputError(f"{run} is a run of {there.slug} without a trained classifier: give one of inceptionnext, finished")
    network = Trained.of(there)
    classifier: ClassifierConfig = there.config(ClassifierConfig)
    curves = CurveConfig(measure="mean", images=128, every=10)
    tune = _adamw(steps, 64, 5e-4, ScheduleConfig("constant", warmup=0.1), seed=seed)
    normalise = network.objective.normalise
    config = PruningConfig(
        data=data or classifier.data,
        seed=seed,
        network=NetworkConfig(
            classifier.network.name,
            {**classifier.network.arguments, "num_classes": len(network.classes)},
            weights=str(folder / "train" / "model" / "model.safetensors"),
            mean=tuple(normalise.mean.flatten().tolist()),
            std=tuple(normalise.std.flatten().tolist()),
            image_size=network.size,
        ),
        flip=classifier.augment.flip,
        curves=curves,
        sparsities=(0.3, 0.5, 0.7),
        iterative=IterativeConfig(target=target, rate=0.4, curves=curves, finetune=tune),
    )
    return Recipe(config, STAGES)


@functools.cache
def published() -> dict[str, tuple[NetworkConfig, TrainConfig | None, TrainConfig, float, float]]:
    """Per network: itself, dense training, fine-tuning per step, share removed per step, sparsity reached."""
    flat, cosine = ScheduleConfig("constant"), ScheduleConfig("cosine")

    def cifar(name: str, dense: int, tune: int, target: float, schedule: ScheduleConfig = flat) -> Any:
        return NetworkConfig(name), _adamw(dense, 100, 3e-4, schedule), _adamw(tune, 100, 3e-4, flat), 0.2, target

    def imagenet(name: str, tune: int, batch: int, rate: float, target: float) -> Any:
        sgd = OptimizerConfig("sgd", lr=0.01, momentum=0.0, weight_decay=1e-4, schedule=cosine)
        network = NetworkConfig(name, pretrained=True, image_size=224)
        return network, None, TrainConfig(steps=tune, batch_size=batch, optimizers={"main": sgd}), rate, target

    return {
        "resnet32_cifar": cifar("resnet32_cifar", 50_000, 80_000, 0.955, cosine),
        "vgg16_cifar": cifar("vgg16_cifar", 20_000, 40_000, 0.9885),
        "densenet121_cifar": cifar("densenet121_cifar", 80_000, 60_000, 0.9885),
        "efficientnet_b0_cifar": cifar("efficientnet_b0_cifar", 50_000, 40_000, 0.9885),
        "vgg16_bn": imagenet("vgg16_bn.tv_in1k", 80_000, 32, 0.6, 0.893),
        "resnet50": imagenet("resnet50.tv_in1k", 40_000, 64, 0.2, 0.41),
    }


@paper.recipe("paper")
def published_setting(
    network: Literal[
        "resnet32_cifar", "vgg16_cifar", "densenet121_cifar", "efficientnet_b0_cifar", "vgg16_bn", "resnet50"
    ] = "resnet32_cifar",
    data: str | None = None,
    zero_data: bool = False,
    seed: int = 42,
) -> Recipe:
    """The published schedule of steps, fine-tuning and calibration, for a machine with a GPU.

    Args:
        network: which row of the paper's table
        data: cifar10 or imagenet by default, as the network needs
        zero_data: calibrate on Gaussian noise
        seed: of initialisation and order
    """
    if network not in published():
        raise InputError(f"no published setting for {network!r}{nearest(network, published())}")
    architecture, dense, tune, rate, target = published()[network]
    on_imagenet = dense is None
    curves = CurveConfig(images=256 if on_imagenet else 1024, source="gaussian" if zero_data else "train")
    config = PruningConfig(
        data=data or ("imagenet" if on_imagenet else "cifar10"),
        seed=seed,
        network=architecture,
        augment=not on_imagenet,
        training=dense,
        curves=curves,
        sparsities=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
        test_images=50_000 if on_imagenet else 10_000,
        iterative=IterativeConfig(target=target, rate=rate, curves=curves, finetune=tune),
    )
    return Recipe(config, STAGES)


# --- what a finished run is good for ------------------------------------------------------------------------------------


@paper.verb("predict")
def predict(run: Run, images: str, top: int = 3) -> list[dict[str, Any]]:
    """Classes of your images by the pruned network.

    Args:
        images: a folder, a file or a name
        top: how many classes per image
    """
    problem, network = _finished(run)
    source = open_images(images, split="all", labels="none", channels=problem.channels)
    names = problem.classes or [str(i) for i in range(1000)]
    rows = []
    for indices in torch.arange(len(source)).split(64):
        with torch.no_grad():
            chances = network(problem.normalised(problem.prepared(source, indices)).to(DEVICE)).softmax(1).cpu()
        best = chances.topk(min(top, chances.shape[1]), dim=1)
        for i, values, classes in zip(indices.tolist(), best.values.tolist(), best.indices.tolist()):
            said = ", ".join(f"{names[c] if c < len(names) else c} {v:.1%}" for c, v in zip(classes, values))
            rows.append({"image": source.key(i), "classes": said})
    return rows


@paper.verb("evaluate")
def evaluate(run: Run) -> list[dict[str, Any]]:
    """The dense and the pruned network on the test images."""
    problem, network = _finished(run)
    dense = problem.network(run.folder / DENSE)
    evaluation = Evaluation(dense, problem)
    example = next(problem.test_batches())[:1]
    rows = []
    for name, model in (("dense", dense), ("pruned", network)):
        counted = report_layers(model, example)
        numbers = {key: round(value, 4) for key, value in evaluation(model).items()}
        rows.append({"network": name, "removed": counted.sparsity, "multiply-adds left": counted.flops_left} | numbers)
    return rows


@paper.verb("export")
def export(
    run: Run, to: Literal["sparse", "safetensors", "onnx"] = "sparse", out: Path | None = None, half: bool = False
) -> dict[str, Any]:
    """The pruned network as a file.

    Args:
        to: "sparse" (bitmap and surviving values), "safetensors" (plain weights with zeros), "onnx" (takes images in [0, 1])
        out: where to write; pruned.* in the run's folder by default
        half: store surviving values in 16 bits ("sparse" only)
    """
    problem, network = _finished(run)
    endings = {"sparse": "sparse.safetensors", "safetensors": "plain.safetensors", "onnx": "onnx"}
    if to not in endings:
        raise InputError(f"no export to {to!r}{nearest(to, endings)}")
    path = out or run.folder / f"pruned.{endings[to]}"
    if to == "sparse":
        save_sparse(network, path, torch.float16 if half else None)
    elif to == "safetensors":
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, str(path))
    else:
        _to_onnx(nn.Sequential(Normalise(problem.mean, problem.std), network.cpu()), problem, path)
    return {"file": str(path), "bytes": path.stat().st_size, "of": (run.folder / DENSE).stat().st_size}


def _to_onnx(model: nn.Module, problem: Problem, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("export to ONNX needs `pip install 'paperworks[export]'`") from None
    size = problem.config.network.image_size
    example = torch.rand(2, problem.channels, size, size)
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model.eval(),
        (example,),
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
    )


def _finished(run: Run) -> tuple[Problem, nn.Module]:
    problem = Problem.open(run.config(PruningConfig))
    return problem, pruned_network(run, problem)


# --- claims -------------------------------------------------------------------------------------------------------------

NARROW = NetworkConfig("resnet20_cifar", {"width": 8})
REDUCED_VGG = NetworkConfig("vgg16_cifar", {"width": 12})


def _scale(bench: Bench, compared: list[dict[str, Any]], what: str) -> str:
    one = compared[0]
    return f"{what}, {one['steps']} steps on {one['train_images']} images of {bench.data}, dense " + ", ".join(
        f"{c['dense']['accuracy']:.1f} %" for c in compared
    )


@paper.claim(
    "c1",
    rule=lambda m: all(0.7 <= value <= 1.5 for value in m.per_seed),
    says="joint over summed distortion between 0.7 and 1.5 at moderate sparsity (geometric mean of 10, 20, 30 %), every seed",
)
def distortion_adds_up(bench: Bench) -> Measured:
    compared = [trained_and_compared(bench, NARROW, seed) for seed in bench.seeds]
    ratios = [additivity_at_moderate(c) for c in compared]
    numbers = {"ratio by sparsity": [additivity_by_sparsity(c) for c in compared]}
    return Measured(
        statistics.mean(ratios),
        _scale(bench, compared, "ResNet-20 of width 8"),
        "squared logit change with all layers pruned, over the sum with each layer pruned alone (mean over 128 images)",
        ratios,
        list(bench.seeds),
        numbers,
    )


@paper.claim(
    "c2",
    rule=equals(0.0, absolute=1e-5),
    says="objective within 1e-5 of enumeration on every instance, and no answer over budget",
)
def optimum(bench: Bench) -> Measured:
    worst, solved, overspent = largest_deviation(400)
    return Measured(
        worst if overspent == 0 else float("inf"),
        "any",
        f"largest difference from enumeration over {solved} random instances; {overspent} answers over budget",
        numbers={"instances": solved, "over budget": overspent},
    )


@paper.claim(
    "c3",
    rule=lambda m: 0.85 <= m.value <= 1.15,
    says="all four exponents (additions and seconds, in layers and in budget cells) between 0.85 and 1.15",
)
def linear(bench: Bench) -> Measured:
    exponents = scaling((16, 32, 64, 128), (40_000, 80_000, 160_000, 320_000))
    farthest = max(exponents.values(), key=lambda value: abs(value - 1))
    detail = "exponent farthest from 1; " + ", ".join(f"{name} {value:.3f}" for name, value in exponents.items())
    return Measured(farthest, "16 to 128 layers of 60 choices, 40,000 to 320,000 cells", detail, numbers=exponents)


@paper.claim("c4", rule=at_most(1.0), says="under one second on one core")
def fast_on_a_cpu(bench: Bench) -> Measured:
    instance = pruning_instance(54, 25_500_000)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        found = solve(*instance)
        seconds.append(time.perf_counter() - started)
    return Measured(
        statistics.median(seconds),
        "54 layers x 101 ratios, 25.5 M weights, 80 % removed",
        f"seconds, median of 5; the answer is {'proven optimal' if found.exact else f'within {found.gap:.2g} of the optimum'}",
    )


def _gain(bench: Bench, network: NetworkConfig, what: str) -> Measured:
    compared = [trained_and_compared(bench, network, seed) for seed in bench.seeds]
    margins = [margin_at_knee(c) for c in compared]
    points = [margin for margin, _, _ in margins]
    against = ", ".join(f"{margin:+.1f} over {best} at {float(sparsity):.0%}" for margin, best, sparsity in margins)
    accuracy = [{scheme: {s: n["accuracy"] for s, n in by.items()} for scheme, by in c["schemes"].items()} for c in compared]
    worst = [margin_at_knee(c, "rd-worst")[0] for c in compared]
    additive = [additivity_by_sparsity(c) for c in compared]
    numbers = {"points by worst-case curves": worst, "accuracy": accuracy, "joint / summed distortion": additive}
    detail = f"one shot, no fine-tuning, points above the best of LAMP, ERK, uniform and global: {against}"
    return Measured(statistics.mean(points), _scale(bench, compared, what), detail, points, list(bench.seeds), numbers)


KNEE = "above LAMP, ERK, uniform and global on every seed, at the sparsity where the schemes' mean accuracy has lost half"


@paper.claim("c5", rule=at_least(1e-9), says=KNEE)
def gain_on_a_resnet(bench: Bench) -> Measured:
    return _gain(bench, NARROW, "ResNet-20 of width 8")


@paper.claim("c6", rule=at_least(1e-9), says=KNEE)
def gain_on_a_vgg(bench: Bench) -> Measured:
    return _gain(bench, REDUCED_VGG, "VGG-16 of width 12")
