import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.classify import Classify, Normalise, score
from paperworks.training import Context

CTX = Context(step=0, max_steps=1, seed=0)


class Table(nn.Module):
    """Logits looked up by the image's first pixel."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0, 0, 0].round().long()]


def batch(rows: list[int], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"image": torch.tensor(rows).float().view(-1, 1, 1, 1), **more}


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [0.5, 0.0, 3.0]])


def classify(**arguments) -> Classify:
    return Classify(Table(LOGITS), mean=(0.0,), std=(1.0,), **arguments)


def test_hard_labels_and_one_hot_targets_agree():
    labels = torch.tensor([0, 2, 2])
    hard = classify().loss(batch([0, 1, 2], label=labels), "main", CTX)
    soft = classify().loss(batch([0, 1, 2], label=labels, target=F.one_hot(labels, 3).float()), "main", CTX)
    assert torch.allclose(hard.total, soft.total) and hard.count == soft.count == 3
    assert float(hard.total.detach()) / 3 == pytest.approx(float(F.cross_entropy(LOGITS, labels)))
    assert float(hard.logs["accuracy"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_smoothing_a_label_is_the_same_as_a_smooth_target(loss: str):
    labels = torch.tensor([1, 0])
    target = F.one_hot(labels, 3).float() * 0.9 + 0.1 / 3
    smoothed = classify(loss=loss, smoothing=0.1).loss(batch([0, 1], label=labels), "main", CTX)
    given = classify(loss=loss).loss(batch([0, 1], target=target), "main", CTX)
    assert torch.allclose(smoothed.total, given.total)


def test_images_are_normalised():
    images = torch.rand(2, 3, 4, 4)
    found = Normalise((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))(images)
    assert torch.allclose(found[:, 2], (images[:, 2] - 0.3) / 2)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="'label' or 'target'"):
        classify().loss(batch([0]), "main", CTX)
    with pytest.raises(InputError, match="the network 3"):
        classify().loss(batch([0], target=torch.ones(1, 5)), "main", CTX)
    with pytest.raises(InputError, match="no loss"):
        classify(loss="hinge")
    with pytest.raises(InputError, match="below 1"):
        classify(smoothing=1.0)


def test_scores():
    scores = score(classify().logits, [batch([0, 1], label=torch.tensor([0, 0])), batch([2], label=torch.tensor([2]))], 3)
    assert scores.top1 == pytest.approx(2 / 3) and scores.top5 == 1
    assert scores.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert scores.said.tolist() == [0, 1, 2] and scores.confidence[0] == pytest.approx(float(LOGITS[0].softmax(0)[0]))
    assert scores.per_class[0] == 0.5 and math.isnan(scores.per_class[1])
    assert scores.loss == pytest.approx(float(F.cross_entropy(LOGITS, torch.tensor([0, 0, 2]))))


def test_scores_of_bytes_equal_those_of_floats():
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    logits_of = lambda x: torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)  # noqa: E731
    found = [score(logits_of, [{"image": i, "label": labels}], 2) for i in (images, images.float() / 255)]
    assert found[0].loss == pytest.approx(found[1].loss)


def test_evaluation_refuses_what_it_cannot_judge():
    with pytest.raises(InputError, match="no images"):
        score(classify().logits, [], 3)
    with pytest.raises(InputError, match="class 7"):
        score(classify().logits, [batch([0], label=torch.tensor([7]))], 3)
