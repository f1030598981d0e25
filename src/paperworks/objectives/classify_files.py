"""Classification of files by their bytes."""

from __future__ import annotations

from torch import Tensor, nn

from paperworks.objectives.classify import Classify
from paperworks.training.objective import Batch, Context, Losses


class ClassifyFiles(Classify):
    """Trains `model` (files [N, L] as integers, -1 behind the end of each -> logits) on `bytes` and `label`."""

    needs = {"bytes": "integers [B, L], -1 behind the end of a file"}

    def __init__(self, model: nn.Module, *, smoothing: float = 0.0):
        super().__init__(model, smoothing=smoothing)

    def logits(self, images: Tensor) -> Tensor:
        """Files [N, L] -> [N, classes]. There is nothing to normalise: a byte is a symbol."""
        return self.model(images)

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        return super().loss(batch | {"image": batch["bytes"]}, phase, ctx)
