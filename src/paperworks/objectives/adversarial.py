"""The adversarial half of training image networks: losses of both sides, two regularisers, and augmentation of what is judged.

Images here are in [-1, 1], as discriminators see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError, nearest

AUGMENTATIONS = ("colour", "translation", "cutout")


@dataclass(frozen=True)
class Adversarial:
    """How maker and judge compete."""

    loss: Literal["hinge", "non_saturating"] = "hinge"
    lecam: float = 0.0
    """weight of the LeCam regulariser (0.001 in recipes that use it), for few images"""
    r1: float = 0.0
    """weight of the gradient penalty on real images"""
    r1_every: int = 16
    """steps between two penalties, which are then that many times as strong"""
    adaptive: bool = True
    """whether the adversarial gradient at the last layer is scaled to the reconstruction's"""
    augment: tuple[str, ...] = ()
    """any of "colour", "translation", "cutout": what the judge sees, of both kinds, for few images"""

    def check(self) -> None:
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise InputError(f"augment={name!r} is no augmentation{nearest(name, AUGMENTATIONS)}")
        if self.r1_every < 1:
            raise InputError(f"r1_every={self.r1_every} must be at least 1")


def maker_loss(on_made: Tensor, kind: str) -> Tensor:
    """What the maker wants of the judge's logits on its images."""
    return -on_made.mean() if kind == "hinge" else F.softplus(-on_made).mean()


def judge_loss(on_real: Tensor, on_made: Tensor, kind: str) -> Tensor:
    """Hinge (1705.02894) or logistic loss of the judge, half for real and half for made images."""
    if kind == "hinge":
        return (F.relu(1 - on_real).mean() + F.relu(1 + on_made).mean()) / 2
    return (F.softplus(-on_real).mean() + F.softplus(on_made).mean()) / 2


class LeCam(nn.Module):
    """Keeps the judge's mean logits near running means of the OTHER kind (2104.03310, section 3), so that few images do not let
    it grow certain. As tokenizers use it: on means over a batch, and only when they overshoot."""

    real: Tensor
    made: Tensor

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("made", torch.zeros(()))

    def forward(self, on_real: Tensor, on_made: Tensor) -> Tensor:
        return F.relu(on_real.mean() - self.made).square() + F.relu(self.real - on_made.mean()).square()

    @torch.no_grad()
    def update(self, on_real: Tensor, on_made: Tensor) -> None:
        """Move the running means towards this step's mean logits (over all processes)."""
        self.real.lerp_(on_real, 1 - self.decay)
        self.made.lerp_(on_made, 1 - self.decay)


def r1_penalty(judge: nn.Module, real: Tensor) -> Tensor:
    """Half the squared gradient norm of the judge's logits at real images (1801.04406, eq. 9), mean over images."""
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        real = real.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(judge(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2


def augmented(images: Tensor, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
    """Differentiable augmentation (2006.10738): each image with draws of its own, gradients pass through.

    colour: brightness, saturation and contrast; translation: up to 1/8 of each side, the rest black; cutout: a square of
    half the side becomes grey. Images [B, C, H, W] in [-1, 1].
    """
    for kind in kinds:
        images = {"colour": _colour, "translation": _translation, "cutout": _cutout}[kind](images, generator)
    return images


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, world: int = 1) -> Tensor:
    """Gradient norm of the reconstruction loss over that of the adversarial one at the decoder's last layer, at most 1e4
    (VQGAN, eq. 7). With several processes, of the gradients averaged over them; 1 where there is no gradient."""
    if not reconstruction.requires_grad or not last_layer.requires_grad:
        return torch.ones((), device=reconstruction.device)
    both = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    gradients = torch.stack(both).flatten(1).float()
    if world > 1:
        torch.distributed.all_reduce(gradients)
        gradients /= world
    ours, theirs = gradients.norm(dim=1)
    return (ours / (theirs + 1e-4)).clamp(0, 1e4).detach()


def _draw(images: Tensor, generator: torch.Generator, count: int) -> list[Tensor]:
    """Uniform numbers, `count` per image, each [B, 1, 1, 1]."""
    drawn = torch.rand(count, len(images), 1, 1, 1, generator=generator, device=images.device)
    return list(drawn.to(images.dtype))


def _colour(images: Tensor, generator: torch.Generator) -> Tensor:
    brightness, saturation, contrast = _draw(images, generator, 3)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + (images - middle) * (contrast + 0.5)


def _translation(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = images.shape[-2:]
    down, right = (
        ((2 * drawn - 1) * (side / 8)).round().long() for drawn, side in zip(_draw(images, generator, 2), (height, width))
    )
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) - down
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1) - right
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    moved = images.flatten(2).gather(2, places.flatten(2).expand(-1, images.shape[1], -1)).view_as(images)
    return torch.where(inside, moved, -1.0)


def _cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    drawn = _draw(images, generator, 2)
    hole = torch.ones((), dtype=torch.bool, device=images.device)
    for centre, side, shape in zip(drawn, images.shape[-2:], ((1, 1, -1, 1), (1, 1, 1, -1))):
        distance = torch.arange(side, device=images.device).view(shape) - (centre * side).floor()
        hole = hole & (distance >= -(side // 4)) & (distance < side // 4)
    return torch.where(hole, 0.0, images)
