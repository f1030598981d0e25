import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.objectives.token_prediction import TokenPrediction, negative_log_likelihood
from paperworks.training.objective import Context


class Table(nn.Module):
    """Logits that depend on the label alone."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
        self.seen = []

    def forward(self, labels, inputs):
        self.seen.append(labels)
        return self.logits[labels][:, None].expand(-1, inputs.shape[1], -1)


def batch(count=8):
    generator = torch.Generator().manual_seed(1)
    return {
        "tokens": torch.randint(0, 5, (count, 4), generator=generator),
        "label": torch.randint(0, 2, (count,), generator=generator),
    }


def test_the_loss_is_the_sum_over_tokens_and_labels_drop_in_training_only():
    model, given = Table(), batch()
    objective = TokenPrediction(model, label_dropout=0.5)
    losses = objective.eval().loss(given, "main", Context(0, 1, 0))
    wanted = F.cross_entropy(
        model.logits[given["label"]][:, None].expand(-1, 4, -1).flatten(0, 1), given["tokens"].flatten(), reduction="sum"
    )
    assert losses.count == 32 and torch.allclose(losses.total, wanted)
    assert torch.equal(model.seen[-1], given["label"])
    objective.train().loss(given, "main", Context(0, 1, 0))
    dropped = model.seen[-1] == model.num_classes
    assert 0 < dropped.sum() < 8 and torch.equal(model.seen[-1][~dropped], given["label"][~dropped])
    objective.loss(given, "main", Context(0, 1, 0))
    assert torch.equal(model.seen[-1], model.seen[-2])  # the same step drops the same labels


def test_likelihood_is_per_token_over_all_batches():
    model, given = Table(), batch()
    parts = [{name: value[:3] for name, value in given.items()}, {name: value[3:] for name, value in given.items()}]
    assert abs(negative_log_likelihood(model, parts) - negative_log_likelihood(model, [given])) < 1e-6


def test_some_tokens_are_read_as_random_ones_in_training_only_and_stay_what_is_predicted():
    model, given = Table(), batch(200)
    model.vocab_size, read = 5, []
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[1]))
    objective = TokenPrediction(model, label_dropout=0.0, keep=0.75)
    trained = objective.train().loss(given, "main", Context(0, 1, 0))
    changed = read[-1] != given["tokens"]
    assert 0.12 < float(changed.float().mean()) < 0.28 and int(read[-1].max()) < 5  # a fifth of the random ones are the same
    plain = TokenPrediction(model, label_dropout=0.0).train().loss(given, "main", Context(0, 1, 0))
    assert torch.equal(read[-1], given["tokens"]) and torch.equal(trained.total, plain.total)
    objective.eval().loss(given, "main", Context(0, 1, 0))
    assert torch.equal(read[-1], given["tokens"])
    with pytest.raises(InputError, match="chance of a token"):
        TokenPrediction(model, keep=2.0)
