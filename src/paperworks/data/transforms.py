"""Crops, flips and the ImageNet training pipeline.

Two kinds of transforms exist. Those made here take their random numbers from outside (`Drawn.apply`) and work on whole
batches; torchvision v2's work on one image with torch's global generator, which `Transformed` seeds around each call.
Both take and give uint8 unless said otherwise; `to_float` comes last, in the training loop, where it is cheapest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from paperworks.errors import InputError

Resampling = Literal["bilinear", "bicubic", "nearest"]


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0, 1]; floats pass unchanged."""
    return images if images.is_floating_point() else images.to(torch.float32).mul_(1 / 255)


class Drawn:
    """A transform whose randomness is `draws` uniform numbers per image, given from outside."""

    draws = 0

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """uint8 [B, C, H, W] and uniforms [B, draws] -> [B, C, h, w]. Row i of the result depends on row i alone."""
        raise NotImplementedError

    def __call__(self, image: Tensor) -> Tensor:
        """One image [C, H, W] within a torchvision pipeline; draws from torch's global generator as those do."""
        changed = self.apply(image.as_subclass(Tensor).unsqueeze(0), torch.rand(1, self.draws))[0]
        return tv_tensors.Image(changed) if isinstance(image, tv_tensors.Image) else changed


class Crop(Drawn):
    """The shorter side becomes floor(size x margin), then a square of `size` is cut out: anywhere when `random`, else the
    centre; `flip` mirrors half of the images left to right. Smaller images are enlarged."""

    def __init__(self, size: int, *, margin: float, random: bool, flip: bool, mode: Resampling):
        if size < 1 or margin < 1:
            raise InputError(f"a crop needs size >= 1 and margin >= 1, not size={size}, margin={margin}")
        self.size = size
        self.side = math.floor(size * margin + 1e-4)
        self.random = random
        self.flip = flip
        self.mode = mode
        self.draws = 2 * random + flip

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        images = resize_shorter(images, self.side, self.mode)
        return _cut(images, self.size, uniforms, self.random, self.flip)


class Shift(Drawn):
    """`pad` pixels are added on every side, more where the image is smaller than `size`, then a square of `size` is cut out:
    anywhere when `random`, else the centre. Nothing is resampled (the usual CIFAR recipe has size 32, pad 4 and flip)."""

    def __init__(self, size: int, *, pad: int, random: bool, flip: bool, mode: Literal["constant", "reflect"]):
        if size < 1 or pad < 0:
            raise InputError(f"a shift needs size >= 1 and pad >= 0, not size={size}, pad={pad}")
        self.size = size
        self.pad = pad
        self.random = random
        self.flip = flip
        self.mode = mode
        self.draws = 2 * random + flip

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        # where the image is smaller than the result, the room for shifting is that difference or the padding, if larger
        extra_y, extra_x = (max(2 * self.pad, self.size - side) for side in (height, width))
        sides = (extra_x // 2, extra_x - extra_x // 2, extra_y // 2, extra_y - extra_y // 2)
        return _cut(F.pad(images, sides, mode=self.mode), self.size, uniforms, self.random, self.flip)


class Cutout(Drawn):
    """A square of `side` pixels takes `colour`, a number in [0, 1] for each channel or one for all (1708.04552). Its centre is
    anywhere in the image, so that a part of it may lie outside."""

    draws = 2

    def __init__(self, side: int, colour: Sequence[float] = (0.5,)):
        if side < 1:
            raise InputError(f"a cutout of {side} pixels removes nothing: at least 1")
        self.side = side
        self.colour = torch.tensor([round(255 * value) for value in colour], dtype=torch.uint8).view(1, -1, 1, 1)

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        inside = torch.ones((), dtype=torch.bool)
        for drawn, extent, shape in zip(uniforms.T, images.shape[-2:], ((1, 1, -1, 1), (1, 1, 1, -1))):
            offset = torch.arange(extent).view(shape) - (drawn * extent).long().view(-1, 1, 1, 1)
            inside = inside & (offset >= -(self.side // 2)) & (offset < (self.side + 1) // 2)
        return torch.where(inside, self.colour, images)


def train_crop(size: int, *, margin: float = 1.125, flip: bool = False, mode: Resampling = "bicubic") -> Drawn:
    """Resize the shorter side to size x margin, cut a random square (VAR's training images: margin 1.125, no flip)."""
    return Crop(size, margin=margin, random=True, flip=flip, mode=mode)


def eval_crop(size: int, *, margin: float = 1.125, mode: Resampling = "bicubic") -> Drawn:
    """Resize the shorter side to size x margin, cut the centre. A "crop ratio" of 0.875 is margin 1 / 0.875."""
    return Crop(size, margin=margin, random=False, flip=False, mode=mode)


def train_shift(size: int, *, pad: int = 4, flip: bool = False, mode: Literal["constant", "reflect"] = "constant") -> Drawn:
    """Pad and cut a random square without resampling, for images of about the wanted size."""
    return Shift(size, pad=pad, random=True, flip=flip, mode=mode)


def eval_shift(size: int) -> Drawn:
    """The centre square of `size`, padded with black where the image is smaller; the counterpart of `train_shift`."""
    return Shift(size, pad=0, random=False, flip=False, mode="constant")


def resize_shorter(images: Tensor, side: int, mode: Resampling = "bicubic") -> Tensor:
    """[B, C, H, W] with min(H, W) == side, antialiased, the aspect kept."""
    height, width = images.shape[-2:]
    if min(height, width) == side:
        return images
    shorter = min(height, width)
    target = (int(side * height / shorter), int(side * width / shorter))
    if mode == "nearest":
        return F.interpolate(images, target, mode="nearest-exact")
    return F.interpolate(images, target, mode=mode, antialias=True, align_corners=False)


def _cut(images: Tensor, size: int, uniforms: Tensor, random: bool, flip: bool) -> Tensor:
    """Squares [B, C, size, size] at positions drawn per image, mirrored per image, by one gather over pixel numbers."""
    count, channels, height, width = images.shape
    room_y, room_x = height - size, width - size
    if not random and not flip:
        y, x = round(room_y / 2), round(room_x / 2)
        return images[:, :, y : y + size, x : x + size].contiguous()
    if random:
        top = (uniforms[:, 0] * (room_y + 1)).long()
        left = (uniforms[:, 1] * (room_x + 1)).long()
    else:
        top, left = torch.full((count,), round(room_y / 2)), torch.full((count,), round(room_x / 2))
    steps = torch.arange(size)
    columns = left[:, None] + steps
    if flip:
        columns = torch.where(uniforms[:, -1:] < 0.5, left[:, None] + steps.flip(0), columns)
    numbers = ((top[:, None] + steps) * width)[:, :, None] + columns[:, None, :]
    flat = images.reshape(count, channels, height * width)
    chosen = flat.gather(2, numbers.view(count, 1, -1).expand(-1, channels, -1))
    return chosen.view(count, channels, size, size)


# --- ImageNet training ------------------------------------------------------------------------------------------------


def imagenet_train(
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    operations: int = 2,
    probability: float = 0.5,
    erase: float = 0.25,
) -> v2.Compose:
    """The common recipe: random resized crop, mirror, RandAugment (timm's rand-m9-mstd0.5-inc1 as far as torchvision has
    its operations), random erasing with noise. uint8 in, uint8 [3, size, size] out. `magnitude=0` leaves RandAugment out."""
    steps: list[Any] = [
        v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(flip),
    ]
    if magnitude > 0 and operations > 0:
        steps.append(NoisyRandAugment(operations, magnitude, deviation, probability))
    if erase > 0:
        steps.append(EraseWithNoise(erase))
    return v2.Compose(steps)


class NoisyRandAugment(v2.RandAugment):
    """RandAugment (1909.13719) whose strength varies: each of `operations` happens with `probability`, at a magnitude drawn
    from N(magnitude, deviation) (torchvision's own has one fixed magnitude and applies all).

    Magnitudes are on the scale from 0 to 10. With a mean up to 10 none goes beyond, as in timm. A larger mean goes on linearly,
    as in the TensorFlow recipes that name 15: turns by 45 degrees where 10 has 30.
    """

    BINS = 101
    SCALE = 10.0
    LARGEST = 30.0

    def __init__(self, operations: int = 2, magnitude: float = 9.0, deviation: float = 0.5, probability: float = 0.5):
        super().__init__(
            num_ops=1, magnitude=0, num_magnitude_bins=self.BINS, interpolation=InterpolationMode.BILINEAR, fill=128
        )
        if not 0 <= magnitude <= self.LARGEST or deviation < 0:
            raise InputError(f"RandAugment({magnitude}, deviation {deviation}): magnitudes are 0 to 10, and up to 30 beyond")
        if not 0 <= probability <= 1:
            raise InputError(f"RandAugment: probability {probability} is not between 0 and 1")
        self.operations = operations
        self.mean = magnitude
        self.deviation = deviation
        self.probability = probability
        self.beyond = 1.0

    def forward(self, *inputs: Any) -> Any:
        for _ in range(self.operations):
            if torch.rand(()) < self.probability:
                drawn = max(self.mean + self.deviation * torch.randn(()).item(), 0.0)
                self.magnitude = round(min(drawn, self.SCALE) / self.SCALE * (self.BINS - 1))
                self.beyond = max(1.0, drawn / self.SCALE) if self.mean > self.SCALE else 1.0
                changed = super().forward(*inputs)
                inputs = changed if isinstance(changed, tuple) else (changed,)
        return inputs if len(inputs) > 1 else inputs[0]

    def _apply_image_or_video_transform(
        self, image: Any, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Any:
        if self.beyond > 1:
            magnitude = extrapolated(transform_id, magnitude, self.beyond)
        return super()._apply_image_or_video_transform(image, transform_id, magnitude, interpolation, fill)


def extrapolated(operation: str, magnitude: float, share: float) -> float:
    """What a torchvision operation takes at `share` times the end of the scale, where it takes `magnitude`."""
    if operation == "Posterize":  # takes the bits that are kept, of 8: at least one
        return max(1, round(8 - (8 - magnitude) * share))
    if operation in ("Brightness", "Color", "Contrast", "Sharpness"):  # 1 + magnitude is a factor, never below 0.1
        return max(-0.9, magnitude * share)
    return magnitude * share


class EraseWithNoise(v2.Transform):
    """Random erasing (1708.04896): with `probability` one rectangle of 2 % to 1/3 of the area becomes per-pixel noise with
    ImageNet's mean and deviation."""

    MEAN = (0.485, 0.456, 0.406)
    DEVIATION = (0.229, 0.224, 0.225)

    def __init__(self, probability: float = 0.25, *, area: tuple[float, float] = (0.02, 1 / 3), aspect: float = 3.3):
        super().__init__()
        self.probability = probability
        self.area = area
        self.aspect = aspect

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.functional.get_size(next(each for each in flat_inputs if isinstance(each, Tensor)))
        if torch.rand(()) >= self.probability:
            return {"box": None}
        for _ in range(10):
            share, slant, down, right = torch.rand(4).tolist()
            area = height * width * (self.area[0] + share * (self.area[1] - self.area[0]))
            ratio = self.aspect ** (2 * slant - 1)
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                return {
                    "box": (int(down * (height - h + 1)), int(right * (width - w + 1)), h, w),
                    "noise": torch.randn(3, h, w),
                }
        return {"box": None}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["box"] is None or not isinstance(inpt, tv_tensors.Image):
            return inpt
        top, left, h, w = params["box"]
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (self.MEAN, self.DEVIATION))
        noise = ((mean + deviation * params["noise"]).clamp(0, 1) * 255).round().to(torch.uint8)
        erased = inpt.as_subclass(Tensor).clone()
        erased[:, top : top + h, left : left + w] = noise[: erased.shape[0]]
        return tv_tensors.Image(erased)
