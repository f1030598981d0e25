"""Image classification: cross-entropy with hard or soft labels, and its evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.drop_path import set_progress
from paperworks.training.objective import Batch, Context, Losses, Objective

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

AUXILIARY_WEIGHT = 0.4
"""of the loss of a network's auxiliary classifier, where it has one (1512.00567 and 1707.07012)"""

Loss = Literal["cross_entropy", "binary"]


class Normalise(nn.Module):
    """Images in [0, 1] -> (image - mean) / std per channel, what backbones of timm's protocol expect."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Classify(Objective):
    """Trains `model` (normalised images -> logits) on `image` with `label` int64 [B], or with the soft labels `target`
    float [B, classes] that mixup, cutmix or a teacher left in the batch; these come first where both are there.

    loss: "cross_entropy", or "binary": one yes-or-no question per class, averaged over the classes.
    smoothing: share of a hard label spread evenly over all classes (batch transforms that make `target` smooth themselves).
    A `ScheduledDropPath` in the network is told how far training is; an auxiliary classifier is trained beside the last one.
    """

    needs = {"image": "float NCHW in [0, 1]"}

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = "cross_entropy",
        *,
        smoothing: float = 0.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        if loss not in ("cross_entropy", "binary"):
            raise InputError(f"no loss {loss!r}; there are 'cross_entropy' and 'binary'")
        if not 0 <= smoothing < 1:
            raise InputError(f"smoothing {smoothing}: it is a share below 1")
        self.model = model
        self.normalise = Normalise(mean, std)
        self.kind, self.smoothing = loss, smoothing

    def logits(self, images: Tensor) -> Tensor:
        """Images in [0, 1], float [N, C, H, W] -> [N, classes]."""
        return self.model(self.normalise(images))

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        if "target" not in batch and "label" not in batch:
            raise InputError("Classify needs 'label' or 'target' in every batch: open the images with labels='required'")
        set_progress(self.model, ctx.step, ctx.max_steps)
        truth = batch.get("target", batch.get("label"))
        assert truth is not None
        side = None
        if getattr(self.model, "auxiliary", None) is not None:  # a second classifier in the middle of the network
            logits, side = self.model.forward_with_auxiliary(self.normalise(batch["image"]))  # type: ignore[operator]
        else:
            logits = self.logits(batch["image"])
        logits = logits.float()
        loss = self._between(logits, truth)
        if side is not None:
            loss = loss + AUXILIARY_WEIGHT * self._between(side.float(), truth)
        hard = truth.argmax(1) if truth.is_floating_point() else truth
        with torch.no_grad():
            accuracy = (logits.argmax(1) == hard).float().mean()
        return Losses.mean(loss, len(logits), accuracy=accuracy)

    def _between(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Mean loss of logits against hard labels int64 [B] or soft ones [B, classes]."""
        classes, soft = logits.shape[1], truth.is_floating_point()
        if soft and truth.shape != logits.shape:
            raise InputError(f"target has {truth.shape[1]} classes, the network {classes}: build it with that num_classes")
        if self.kind == "binary":
            wanted = truth if soft else F.one_hot(truth, classes).float()
            if not soft and self.smoothing:
                wanted = wanted * (1 - self.smoothing) + self.smoothing / classes
            return F.binary_cross_entropy_with_logits(logits, wanted)
        return F.cross_entropy(logits, truth, label_smoothing=0.0 if soft else self.smoothing)


@dataclass
class Scores:
    """What a classifier got right. Fractions, not percent."""

    top1: float
    top5: float
    loss: float
    """mean cross-entropy in nats"""
    confusion: Tensor
    """int64 [classes, classes]: rows are true classes, columns what was said"""
    said: Tensor
    """int64 [N]: the most likely class of every image, in order"""
    confidence: Tensor
    """float [N]: its probability"""

    @property
    def per_class(self) -> list[float]:
        """Share of each class that was recognised; NaN for a class without images."""
        return (self.confusion.diag().double() / self.confusion.sum(1)).tolist()


@torch.inference_mode()
def score(logits_of: Any, batches: Iterable[Batch], classes: int) -> Scores:
    """Evaluate `logits_of(images [B, C, H, W] in [0, 1]) -> logits [B, classes]` on labelled batches, in order."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    first = five = loss = count = 0.0
    said, confidence = [], []
    for batch in batches:
        images, labels = batch["image"], batch["label"]
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        logits = logits_of(images).float()
        if labels.max() >= logits.shape[1]:
            raise InputError(f"the images have class {int(labels.max())}, the network only {logits.shape[1]} classes")
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        first += int((ranked[:, 0] == labels).sum())
        five += int((ranked == labels[:, None]).any(1).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
        confusion.view(-1).index_add_(0, labels * classes + ranked[:, 0], torch.ones_like(labels))
        said.append(ranked[:, 0])
        confidence.append(logits.softmax(1).amax(1))
    if not count:
        raise InputError("there are no images to evaluate on")
    return Scores(first / count, five / count, loss / count, confusion, torch.cat(said), torch.cat(confidence))
