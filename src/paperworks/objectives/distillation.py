"""Learning from labels and from a teacher with two classifiers (DeiT, 2012.12877, section 4; GroupMamba, 2407.13772, equation
6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.classify import IMAGENET_MEAN, IMAGENET_STD, Classify
from paperworks.training.objective import Batch, Context, Losses, Phase

Kind = Literal["hard", "soft"]


class Distilled(Classify):
    """(1 - alpha) x cross-entropy of the first classifier with the labels + alpha x loss of the second with the teacher.

    model: has `both(images) -> (logits, logits for the teacher)`; evaluation takes what its forward gives. teacher: normalised
    images -> logits; it sees the same augmented (and mixed) images, and is never trained. kind: "hard", cross-entropy with the
    teacher's choice, or "soft", KL divergence of both softened by `temperature`, times its square.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 0.5,
        kind: Kind = "hard",
        temperature: float = 3.0,
        smoothing: float = 0.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__(model, smoothing=smoothing, mean=mean, std=std)
        if kind not in ("hard", "soft"):
            raise InputError(f"distillation {kind!r}: there are 'hard' and 'soft'")
        if not 0 <= alpha <= 1 or temperature <= 0:
            raise InputError(f"alpha={alpha}, temperature={temperature}: a share, and a number above 0")
        if not callable(getattr(model, "both", None)) or not getattr(model, "distillation", True):
            raise InputError(f"{type(model).__name__} has no second classifier for a teacher: build it with distillation=True")
        if not isinstance(teacher, nn.Module):
            raise InputError("distillation needs a teacher: a network that gives logits for the same classes")
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha, self.distillation, self.temperature = alpha, kind, temperature

    def phases(self) -> Sequence[Phase]:
        return (Phase(modules=("model",)),)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        if "target" not in batch and "label" not in batch:
            raise InputError("Distilled needs 'label' or 'target' in every batch: open the images with labels='required'")
        truth = batch.get("target", batch.get("label"))
        assert truth is not None
        images = self.normalise(batch["image"])
        with torch.no_grad():
            said = self.teacher(images).float()
        first, second = (logits.float() for logits in self.model.both(images))  # type: ignore[operator]
        if said.shape != second.shape:
            raise InputError(f"the teacher knows {said.shape[1]} classes, the network {second.shape[1]}")
        from_labels, from_teacher = self._between(first, truth), self.agreement(second, said)
        hard = truth.argmax(1) if truth.is_floating_point() else truth
        with torch.no_grad():
            accuracy = ((first + second).argmax(1) == hard).float().mean()
            of_teacher = (said.argmax(1) == hard).float().mean()
        loss = (1 - self.alpha) * from_labels + self.alpha * from_teacher
        return Losses.mean(loss, len(first), accuracy=accuracy, teacher=of_teacher, distillation=from_teacher)

    def agreement(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """The loss between logits and the teacher's."""
        if self.distillation == "hard":
            return F.cross_entropy(logits, teacher.argmax(1))
        ours, wanted = (F.log_softmax(each / self.temperature, 1) for each in (logits, teacher))
        return F.kl_div(ours, wanted, reduction="batchmean", log_target=True) * self.temperature**2
