"""Networks that look at images: a pretrained ImageNet classifier that needs no download, and a small classifier of digits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from paperworks.analysis.digits import digit_classifier
from paperworks.data import lite0_weights
from paperworks.data.transforms import eval_crop, to_float
from paperworks.errors import InputError

__all__ = ["Lite0", "digit_classifier", "extract", "lite0"]


class Lite0(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights, frozen, for images [N, 1 or 3, H, W] of any size in [0, 1].

    `features` and `logits` see the image as the network was trained: shorter side to 256, centre 224 x 224.
    `feature_maps` keeps the resolution, for perceptual losses. Gradients reach the images, never the weights.
    """

    def __init__(self, network: nn.Module, class_names: list[str]):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.class_names = class_names
        """1,000 ImageNet names by index, several words for some"""
        self.crop = eval_crop(224, margin=256 / 224)

    def train(self, mode: bool = True) -> Lite0:
        return super().train(False)  # batch norms keep the statistics of ImageNet whatever contains this

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """[N, 1280]: what the classifier's last layer sees."""
        network: Any = self.network
        return network.forward_head(network.forward_features(self._as_trained(images)), pre_logits=True)

    def logits(self, images: Tensor) -> Tensor:
        """[N, 1000]."""
        return self.network(self._as_trained(images))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the images' own resolution, with 16, 24, 40, 112 and 320 channels."""
        network: Any = self.network
        return network.forward_intermediates(_normalised(_three_channels(images)), intermediates_only=True)

    def _as_trained(self, images: Tensor) -> Tensor:
        cut = self.crop.apply(_three_channels(images), images.new_empty(len(images), 0))
        return _normalised(cut.clamp(0, 1))  # bicubic interpolation overshoots


def lite0() -> Lite0:
    """The pretrained classifier. Raises InputError naming the package to install when its weights are not there."""
    import timm
    from timm.data import ImageNetInfo

    weights = lite0_weights()
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_lite0")
    # the file's names differ, its order does not; every shape is checked by assign's strict loading
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)), assign=True)
    return Lite0(network, ImageNetInfo().label_descriptions())


@torch.inference_mode()
def extract(model: Any, images: Tensor | Iterable[Any] | Dataset[Any], batch_size: int = 64) -> Tensor:
    """Features [N, D], float32, of a stack [N, C, H, W] or of a data set of samples with `image` (sizes may differ).

    `model` has `.features(images)`, or is a function from images [B, C, H, W] in [0, 1] to features. uint8 is scaled to [0, 1].
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: it takes at least one image")
    look: Callable[[Tensor], Tensor] = getattr(model, "features", model)
    found = [look(to_float(batch)).float() for batch in _batches(images, batch_size)]
    if not found:
        raise InputError("there are no images to extract features from")
    return torch.cat(found).clone()


def _batches(images: Any, size: int) -> Iterator[Tensor]:
    """Stacks of up to `size` images in order; a new one begins where the image's size changes."""
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise InputError(f"images must be [N, C, H, W], not {list(images.shape)}")
        yield from (images[start : start + size] for start in range(0, len(images), size))
        return
    waiting: list[Tensor] = []
    for sample in images if hasattr(images, "__iter__") else (images[index] for index in range(len(images))):
        image = (sample["image"] if isinstance(sample, dict) else sample).as_subclass(Tensor)
        if waiting and (len(waiting) == size or image.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield torch.stack(waiting)


def _three_channels(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise InputError(f"images must be floats [N, 1 or 3, H, W] in [0, 1], not {images.dtype} {list(images.shape)}")
    return images.expand(-1, 3, -1, -1)


def _normalised(images: Tensor) -> Tensor:
    """Mean and deviation 0.5, as this network was trained: ImageNet's would cost it ten points of accuracy."""
    return (images - 0.5) / 0.5
