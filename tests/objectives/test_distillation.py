"""Two classifiers, labels and a teacher."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.distillation import Distilled
from paperworks.training import Context


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.dist_head = nn.Linear(12, 5), nn.Linear(12, 5)

    def both(self, x):
        return self.head(x.flatten(1)), self.dist_head(x.flatten(1))


def teacher() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))


def batch(soft: bool = False) -> dict:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(6, 3, 2, 2, generator=generator), torch.arange(6) % 5
    return (
        {"image": images, "target": F.one_hot(labels, 5).float() * 0.9 + 0.02} if soft else {"image": images, "label": labels}
    )


def test_the_loss_is_the_weighted_sum_and_only_the_student_learns():
    torch.manual_seed(0)
    objective = Distilled(Two(), teacher(), alpha=0.3, smoothing=0.1).train()
    given = batch()
    found = objective.loss(given, "main", Context(0, 1, 0))
    images = objective.normalise(given["image"])
    first, second = objective.model.both(images)
    said = objective.teacher(images).argmax(1)
    expected = 0.7 * F.cross_entropy(first, given["label"], label_smoothing=0.1) + 0.3 * F.cross_entropy(second, said)
    assert torch.allclose(found.total / found.count, expected)
    found.total.backward()
    assert all(p.grad is not None for p in objective.model.parameters()) and not objective.teacher[2].training
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert objective.phases()[0].modules == ("model",)


def test_soft_labels_and_a_soft_teacher():
    torch.manual_seed(0)
    objective = Distilled(Two(), teacher(), alpha=1.0, kind="soft", temperature=2.0)
    given = batch(soft=True)
    found = objective.loss(given, "main", Context(0, 1, 0))
    images = objective.normalise(given["image"])
    student, said = (logits.div(2).softmax(1) for logits in (objective.model.both(images)[1], objective.teacher(images)))
    assert torch.allclose(found.total / found.count, 4 * (said * (said / student).log()).sum(1).mean(), atol=1e-6)


def test_what_does_not_fit():
    with pytest.raises(InputError, match="needs a teacher"):
        Distilled(Two(), None)
    with pytest.raises(InputError, match="no second classifier"):
        Distilled(nn.Linear(2, 2), teacher())
    with pytest.raises(InputError, match="'hard' and 'soft'"):
        Distilled(Two(), teacher(), kind="firm")
    with pytest.raises(InputError, match="knows 7 classes"):
        Distilled(Two(), nn.Sequential(nn.Flatten(), nn.Linear(12, 7))).loss(batch(), "main", Context(0, 1, 0))
