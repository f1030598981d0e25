"""RD-prune's recipes: what a run works on. The configuration, the images with their statistics, and the networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from paperworks.compression.allocation import SCHEMES
from paperworks.compression.distortion import eval_mode, gaussian_images
from paperworks.compression.iterative import CurveConfig, IterativeConfig
from paperworks.data import ImageSource, Transformed, lite0_weights, open_images, random_crops
from paperworks.data.transforms import Drawn, eval_crop, eval_shift, to_float, train_crop, train_shift
from paperworks.errors import InputError, nearest
from paperworks.layers.pretrained import load_official, read_weights
from paperworks.objectives.classify import Normalise
from paperworks.training import TrainConfig

LITE0_RANGE = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""mean and deviation that EfficientNet-Lite0's weights expect"""
DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
KEPT_NUMBERS = 100_000_000
"""pixel values of test images that are kept in memory"""


@dataclass(frozen=True)
class NetworkConfig:
    name: str = "resnet20_cifar"
    """a network of this library or of timm, or "lite0": EfficientNet-Lite0 with the ImageNet weights of its package"""
    arguments: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    """fetch timm's released weights"""
    weights: str = ""
    """a safetensors file of trained weights; `mean` and `std` are then what it was trained with"""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: int = 32


@dataclass(frozen=True)
class PruningConfig:
    data: str = "default"
    strict: bool = False
    """stop at the first unreadable image instead of skipping and listing it"""
    seed: int = 0
    network: NetworkConfig = NetworkConfig()
    augment: bool = True
    """random shifts or crops while training; the paper's ImageNet fine-tuning has none"""
    flip: bool | None = None
    """mirror training images; by default colour images only (a mirrored digit is no digit)"""
    training: TrainConfig | None = None
    """None: the network comes with weights"""
    crops: int | None = None
    """cut this many squares out of the photos instead of using them whole"""
    curves: CurveConfig = field(default_factory=CurveConfig)
    schemes: tuple[str, ...] = ("rd", "lamp", "erk", "uniform", "unif+", "global")
    sparsities: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """where the schemes are compared, in one shot and without fine-tuning"""
    test_images: int = 2000
    keep: float = 0.5
    """sparsity of the network that the run hands out when it is not pruned iteratively"""
    iterative: IterativeConfig | None = None


@dataclass
class Problem:
    """Images and their statistics. Networks see normalised images; everything outside sees [0, 1]."""

    config: PruningConfig
    train: ImageSource
    test: ImageSource
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    classes: list[str]
    _kept: list[Tensor] | None = None

    @classmethod
    def open(cls, config: PruningConfig) -> Problem:
        _check(config)
        needed: Literal["required", "auto"] = "required" if config.training or config.iterative else "auto"
        train = open_images(config.data, split="train", strict=config.strict, labels=needed)
        test = open_images(config.data, split="test", strict=config.strict, labels=needed)
        if config.crops:
            train = random_crops(train, config.network.image_size, config.crops, seed=config.seed)
            test = random_crops(test, config.network.image_size, config.test_images, seed=config.seed + 1)
        channels = 3 if not config.training else int(train[0]["image"].shape[0])
        problem = cls(config, train, test, channels, (), (), train.classes or [])
        problem.mean, problem.std = problem._statistics()
        return problem

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and deviation per channel: what released weights were made for, or those of the training images."""
        network = self.config.network
        if network.name == "lite0":
            return LITE0_RANGE
        if network.mean:
            return network.mean, network.std
        if self.config.training is None:
            cfg: Any = self._architecture(weights=False).pretrained_cfg
            return cfg["mean"], cfg["std"]
        sample = self._pixels(self.train, 5000)
        return sample.mean((0, 2, 3)).tolist(), sample.std((0, 2, 3)).clamp_min(1e-3).tolist()

    # --- images ------------------------------------------------------------------------------------------------------

    def training_data(self) -> Transformed:
        size = self.config.network.image_size
        flip = self.channels == 3 if self.config.flip is None else self.config.flip
        if not self.config.augment:
            transform = self._evaluation(size)
        elif self._about_right(size):
            transform = train_shift(size, pad=size // 8, flip=flip)
        else:
            transform = train_crop(size, flip=flip)
        return Transformed(self.train, transform, seed=self.config.seed)

    def fitting(self, training: TrainConfig) -> TrainConfig:
        """The same training with a batch no larger than the data set: a handful of images is enough to try things out."""
        return replace(training, batch_size=min(training.batch_size, len(self.train)))

    def calibration(self) -> Tensor:
        """Normalised images [N, C, H, W], evenly strided through the training images, or standard-normal noise."""
        size, curves = self.config.network.image_size, self.config.curves
        if curves.source == "gaussian":
            return gaussian_images(curves.images, (self.channels, size, size), torch.Generator().manual_seed(self.config.seed))
        return self.normalised(self._pixels(self.train, curves.images))

    def test_batches(self, size: int = 250) -> Iterator[Tensor]:
        """The test images, normalised, in order; kept in memory when they are small."""
        if self._kept is not None:
            yield from self._kept
            return
        chosen = self.test_indices()
        batches = (self.normalised(self.prepared(self.test, part)) for part in chosen.split(size))
        if len(chosen) * self.channels * self.config.network.image_size**2 > KEPT_NUMBERS:
            yield from batches
            return
        self._kept = list(batches)
        yield from self._kept

    def test_indices(self) -> Tensor:
        return _strided(len(self.test), min(self.config.test_images, len(self.test)))

    def normalised(self, pixels: Tensor) -> Tensor:
        """[0, 1] -> what the network takes."""
        return Normalise(self.mean, self.std)(pixels)

    def prepared(self, source: ImageSource, indices: Tensor) -> Tensor:
        """Images of a source as the network's size, float in [0, 1]."""
        view = Transformed(source, self._evaluation(self.config.network.image_size), seed=0)
        together = view.batch(indices.tolist())
        pixels = together["image"] if together else torch.stack([view[int(i)]["image"] for i in indices]).as_subclass(Tensor)
        images = to_float(pixels)
        return images.expand(-1, 3, -1, -1) if self.channels == 3 and images.shape[1] == 1 else images

    def _pixels(self, source: ImageSource, count: int) -> Tensor:
        return self.prepared(source, _strided(len(source), min(count, len(source))))

    def _evaluation(self, size: int) -> Drawn:
        return eval_shift(size) if self._about_right(size) else eval_crop(size)

    def _about_right(self, size: int) -> bool:
        """Images that need padding or a small cut, no resampling."""
        height, width = self.train[0]["image"].shape[-2:]
        return self.train.is_stacked and size * 0.8 <= min(height, width) and max(height, width) <= size * 1.25

    # --- networks ------------------------------------------------------------------------------------------------------

    def network(self, weights: Path | None = None) -> nn.Module:
        """The network in eval mode: initialised from the seed, released weights, or those of a file this run wrote."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = self._architecture(weights=weights is None)
        if weights is not None:
            load_model(network, str(weights))
        return network.eval().to(DEVICE)

    def _architecture(self, *, weights: bool) -> nn.Module:
        config = self.config.network
        if config.name == "lite0":
            network = timm.create_model("tf_efficientnet_lite0")
            if weights:
                network.load_state_dict(dict(zip(network.state_dict(), lite0_weights().values(), strict=True)))
            return network
        given = dict(config.arguments)
        if self.config.training:
            given |= {"num_classes": len(self.classes), "in_chans": self.channels}
        try:
            network = timm.create_model(config.name, pretrained=config.pretrained and weights, **given)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"network {config.name!r} with {given}: {error}") from None
        return load_official(network, read_weights(config.weights)) if config.weights and weights else network


class Evaluation:
    """Accuracy where there are labels, and how far a pruned network still agrees with the dense one."""

    def __init__(self, dense: nn.Module, problem: Problem):
        self.problem = problem
        self.labels = None if problem.test.labels is None else problem.test.labels[problem.test_indices()]
        self.reference = self.log_probabilities(dense)

    @torch.no_grad()
    def log_probabilities(self, network: nn.Module) -> Tensor:
        with eval_mode(network):
            return torch.cat([network(batch.to(DEVICE)).log_softmax(1).cpu() for batch in self.problem.test_batches()])

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """accuracy and agreement in percent, KL(dense || this) in nats."""
        found = self.log_probabilities(network)
        said = found.argmax(1)
        numbers = {
            "agreement": 100 * float((said == self.reference.argmax(1)).float().mean()),
            "kl": float((self.reference.exp() * (self.reference - found)).sum(1).mean()),
        }
        if self.labels is not None and len(self.problem.classes) == found.shape[1]:
            numbers = {"accuracy": 100 * float((said == self.labels).float().mean())} | numbers
        return numbers


def _check(config: PruningConfig) -> None:
    known = ("rd", "rd-worst", "rd-mean", *SCHEMES)
    for scheme in config.schemes:
        if scheme not in known:
            raise InputError(f"schemes: no {scheme!r}{nearest(scheme, known)}")
    for sparsity in config.sparsities:
        if not 0 < sparsity < 1:
            raise InputError(f"sparsities: {sparsity} is not a share between 0 and 1")
    if "rd" not in config.schemes or not config.sparsities:
        raise InputError("schemes and sparsities: give at least the scheme rd and one sparsity")


def _strided(length: int, count: int) -> Tensor:
    return torch.arange(count) * length // count
