import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.objectives.detect import Detect
from paperworks.training import Context

CTX = Context(step=0, max_steps=1, seed=0)


class Recorder(nn.Module):
    """Takes what torchvision's detectors take, and gives two losses or one box an image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen = None

    def forward(self, images, truth=None):
        self.seen = (images, truth)
        if self.training:
            return {"boxes": self.weight * 1.0, "classes": self.weight * 3.0}
        return [
            {"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.int64), "scores": torch.ones(1)} for _ in images
        ]


def batch() -> dict[str, torch.Tensor]:
    return {"image": torch.rand(2, 3, 8, 8), "boxes": torch.rand(2, 3, 4), "labels": torch.tensor([[0, 1, 2], [2, 2, 0]])}


@pytest.mark.parametrize("background", [True, False])
def test_losses_are_added_and_labels_leave_room_for_the_background(background):
    objective = Detect(Recorder(), background=background)
    losses = objective.loss(batch(), "main", CTX)
    assert float(losses.total) == pytest.approx(2 * 8.0) and losses.count == 2
    images, truth = objective.detector.seen
    assert len(images) == 2 and images[0].shape == (3, 8, 8)
    assert truth[1]["labels"].tolist() == ([3, 3, 1] if background else [2, 2, 0])
    objective.eval()
    assert [each["labels"].tolist() for each in objective.detect(batch()["image"])] == [[0 if background else 1]] * 2


def test_detecting_while_training_is_refused():
    with pytest.raises(InputError, match="call eval"):
        Detect(Recorder(), background=False).detect(torch.rand(1, 3, 8, 8))
