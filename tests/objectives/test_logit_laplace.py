"""The logit-Laplace loss: a density over pixels, its gradients, its place in a tokenizer's training."""

import pytest
import torch

from paperworks.errors import InputError
from paperworks.objectives.logit_laplace import MARGIN, LogitLaplaceTraining, logit_laplace
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.tokenizers.vit_vqgan import ViTVQGAN
from paperworks.training.objective import Context


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_it_is_the_density_that_the_logit_of_a_laplace_variable_has(scale):
    made, real = torch.rand(100), torch.rand(100)
    inside = (1 - 2 * MARGIN) * torch.stack((made, real)) + MARGIN
    where, wanted = inside.logit()
    density = torch.distributions.Laplace(where, scale).log_prob(wanted) - (inside[1] * (1 - inside[1])).log()
    assert torch.allclose(logit_laplace(made, real, scale), -density.mean(), atol=1e-5)


def test_it_is_least_where_both_agree_and_stays_finite_outside_of_the_range():
    real = torch.tensor([0.0, 0.4, 1.0])
    best = logit_laplace(real, real)
    assert all(logit_laplace((real + step).clamp(0, 1), real) > best for step in (-0.1, 0.1))
    made = torch.tensor([-3.0, 0.5, 4.0], requires_grad=True)
    logit_laplace(made, real).backward()
    assert made.grad is not None and made.grad.isfinite().all() and made.grad[1] > 0


def objective(kind: type[TokenizerTraining], **options) -> TokenizerTraining:
    torch.manual_seed(0)
    size = {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "head_dim": 8}
    return kind(ViTVQGAN(16, 4, size, size, code_dim=4, vocab_size=32, in_channels=1), **options).eval()


def test_training_adds_it_with_its_weight():
    batch, context = {"image": torch.rand(2, 1, 16, 16)}, Context(0, 1, 0)
    plain = objective(TokenizerTraining).loss(batch, "generator", context)
    without = objective(LogitLaplaceTraining, logit_laplace_weight=0.0).loss(batch, "generator", context)
    with_it = objective(LogitLaplaceTraining, logit_laplace_weight=0.1).loss(batch, "generator", context)
    assert torch.equal(plain.total, without.total)
    assert torch.allclose(with_it.total, plain.total + 2 * 0.1 * with_it.logs["logit_laplace"])
    with pytest.raises(InputError, match="must not be negative"):
        objective(LogitLaplaceTraining, logit_laplace_weight=-1.0)
