"""Training one network over several sizes of every image at once (ResFormer, 2212.00776, section 3.2).

Each size is classified, and a consistency loss pulls a smaller size's features towards those of the next larger one, which are
not trained by it. The network is only asked for timm's protocol: `forward_features`, then `forward_head`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.data.mixing import Mix
from paperworks.errors import InputError
from paperworks.objectives.classify import IMAGENET_MEAN, IMAGENET_STD, Normalise
from paperworks.training.objective import Batch, Context, Losses, Objective

Consistency = Literal["smooth_l1", "cosine", "l2", "none"]
Target = Literal["cls", "gap", "logits"]


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """The released choice. The teacher's vector is normalised to mean 0 and deviation 1, the student's is not."""
    return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6))


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-6).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"smooth_l1": smooth_l1, "cosine": cosine, "l2": F.mse_loss}
"""(student, teacher), both [N, D] -> their mean distance"""


class MultiResolution(Objective):
    """Trains `model` (normalised images -> logits) on every image at all `sizes`, the largest first:

        loss = mean over k of CE(logits_k, label) + weight * D(f_k, f_{k-1} held fixed), the second term from k = 2 on.

    Per batch: `label` int64 [B] or soft labels `target` [B, classes] (these come first), and the images of each size under
    `image{size}`, cropped and augmented on their own (with soft labels `target{size}` if they differ); a size without a key of
    its own is `image` resized. consistency: the distance D. compare: f is the class token ("cls", the released choice), the
    mean of the patches ("gap"), or the logits.
    window: only so many neighbouring sizes per step, moving on by one size from step to step (cheaper steps); all by default.
    """

    needs = {"image": "float NCHW in [0, 1]"}

    def __init__(
        self,
        model: nn.Module,
        sizes: Sequence[int],
        *,
        consistency: Consistency = "smooth_l1",
        compare: Target = "cls",
        weight: float = 1.0,
        window: int | None = None,
        smoothing: float = 0.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.sizes = check_sizes(sizes, getattr(model, "patch_size", 1))
        if consistency != "none" and consistency not in DISTANCES:
            raise InputError(f"consistency {consistency!r}: there are {', '.join(DISTANCES)} and none")
        if compare not in ("cls", "gap", "logits"):
            raise InputError(f"compare={compare!r}: there are 'cls', 'gap' and 'logits'")
        self.window = len(self.sizes) if window is None else window
        if not 1 <= self.window <= len(self.sizes):
            raise InputError(f"window={window}: a step takes 1 to {len(self.sizes)} of the {len(self.sizes)} sizes")
        if consistency != "none" and self.window < 2:
            raise InputError("consistency compares two sizes, and a step has one: give more sizes or consistency='none'")
        if not 0 <= smoothing < 1:
            raise InputError(f"smoothing {smoothing}: it is a share below 1")
        self.model = model
        self.normalise = Normalise(mean, std)
        self.consistency, self.compare, self.weight, self.smoothing = consistency, compare, weight, smoothing

    def logits(self, images: Tensor) -> Tensor:
        """Images in [0, 1] of any size, float [N, C, H, W] -> [N, classes]."""
        return self.model(self.normalise(images))

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        if "target" not in batch and "label" not in batch:
            raise InputError("MultiResolution needs 'label' or 'target' in every batch: open the images with labels='required'")
        usual: Tensor = batch["target"] if "target" in batch else batch["label"]
        sizes = self.sizes_at(ctx.step)
        images = [self.images(batch, size) for size in sizes]
        per_size, distances, accuracy = self.size_losses(images, [batch.get(f"target{size}", usual) for size in sizes])
        logs = {f"loss{size}": loss for size, loss in zip(sizes, per_size)}
        logs |= {"consistency": torch.stack(distances).mean()} if distances else {}
        return Losses.mean(torch.stack(per_size).mean(), len(usual), accuracy=accuracy, **logs)

    def sizes_at(self, step: int) -> tuple[int, ...]:
        """The sizes of a step: all, or the window that has moved there."""
        first = step % (len(self.sizes) - self.window + 1)
        return self.sizes[first : first + self.window]

    def images(self, batch: Batch, size: int) -> Tensor:
        key = f"image{size}"
        images: Tensor = batch[key] if key in batch else batch["image"]
        if images.shape[2:] == (size, size):
            return images
        return F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)

    def size_losses(self, images: Sequence[Tensor], truths: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Losses of the sizes, largest first, consistency included; the consistency terms alone; accuracy at the largest."""
        losses: list[Tensor] = []
        distances: list[Tensor] = []
        teacher: Tensor | None = None
        accuracy = torch.zeros(())
        for each, truth in zip(images, truths):
            features = self.model.forward_features(self.normalise(each))  # type: ignore[operator]
            logits = self.model.forward_head(features).float()  # type: ignore[operator]
            loss = F.cross_entropy(logits, truth, label_smoothing=0.0 if truth.is_floating_point() else self.smoothing)
            if self.consistency != "none":
                student = self.compared(features, logits)
                if teacher is not None:
                    distances.append(DISTANCES[self.consistency](student, teacher))
                    loss = loss + self.weight * distances[-1]
                teacher = student.detach()
            if not losses:
                hard = truth.argmax(1) if truth.is_floating_point() else truth
                accuracy = (logits.detach().argmax(1) == hard).float().mean()
            losses.append(loss)
        return losses, distances, accuracy

    def compared(self, features: Tensor, logits: Tensor) -> Tensor:
        """[N, D] that the consistency loss looks at, in float32."""
        if self.compare == "logits":
            return logits
        if features.ndim == 4:
            if self.compare == "cls":
                raise InputError(f"{type(self.model).__name__} has no class token to compare: take 'gap' or 'logits'")
            return features.float().mean((2, 3))
        before, after = int(getattr(self.model, "num_prefix_tokens", 1)), int(getattr(self.model, "num_suffix_tokens", 0))
        if self.compare == "cls":
            return features[:, -1 if after else 0].float()  # Adventurer's class token comes last
        return features[:, before : features.shape[1] - after].float().mean(1)


def check_sizes(sizes: Sequence[int], patch: int = 1) -> tuple[int, ...]:
    """Sizes that fall strictly and consist of whole patches; InputError says which does not."""
    sizes = tuple(sizes)
    if not sizes:
        raise InputError("sizes is empty: give the image sizes to train at, the largest first")
    if any(size < 1 or size % patch for size in sizes):
        raise InputError(f"sizes {list(sizes)}: each must be a multiple of the patch, {patch} pixels")
    if any(after >= before for before, after in pairwise(sizes)):
        raise InputError(f"sizes {list(sizes)} must fall: the smaller learns from the one before; sort them, largest first")
    return sizes


@dataclass(frozen=True)
class MixSizes:
    """A batch transform: mixup or cutmix with one draw for all sizes of the batch (same partners, share and place of the box).

    Each size gets soft labels of its own, `target` or `target{size}`: its box is cut from whole pixels, so its share differs a
    little from the others'. separate: a draw for every size.
    """

    mix: Mix
    separate: bool = False

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        keys = [name for name in batch if name.startswith("image")]
        seeds = torch.randint(2**62, (len(keys),), generator=generator, device=generator.device).tolist()
        mixed = dict(batch)
        for key, seed in zip(keys, seeds):
            draw = torch.Generator(generator.device).manual_seed(seed if self.separate else seeds[0])
            found = self.mix({"image": batch[key], "label": batch["label"]}, draw)
            mixed[key], mixed[key.replace("image", "target")] = found["image"], found["target"]
        return mixed
