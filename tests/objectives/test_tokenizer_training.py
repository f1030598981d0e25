"""The tokenizer's objective: adaptive weight, two phases, and a code book that stays in use."""

import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.layers.discriminators import PatchDiscriminator
from paperworks.objectives.perceptual import FeaturePerceptual, PyramidLoss
from paperworks.objectives.tokenizer_training import TokenizerTraining, adaptive_weight
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.tokenizers.titok import TiTok
from paperworks.training import OptimizerConfig, TrainConfig, fit
from paperworks.training.objective import Context


class Blobs(torch.utils.data.Dataset):
    """Soft squares at random places: enough structure to compress."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        y, x = torch.randint(0, 9, (2,), generator=generator)
        image = torch.zeros(1, 16, 16)
        image[:, y : y + 7, x : x + 7] = torch.rand(1, generator=generator) / 2 + 0.5
        return {"image": image}


def objective(adversarial: bool = True, start: int = 0) -> TokenizerTraining:
    torch.manual_seed(0)
    tokenizer = MultiScaleVQVAE(32, 4, 8, (1, 2, 2), 1, (1, 2, 4), groups=4, in_channels=1)
    judge = PatchDiscriminator(1, 8, 1) if adversarial else None
    return TokenizerTraining(tokenizer, perceptual=PyramidLoss(), discriminator=judge, adversarial_start=start)


def config(steps: int) -> TrainConfig:
    optimizers = {"main": OptimizerConfig(lr=3e-3), "discriminator": OptimizerConfig(lr=1e-3)}
    return TrainConfig(steps, 16, optimizers=optimizers, precision="32", clip=1.0)


def test_training_lowers_the_error_and_uses_the_codes(tmp_path):
    learner, images = objective(start=30), torch.stack([Blobs()[i]["image"] for i in range(64)])
    fit(learner, Blobs(), config(60), tmp_path, label="")
    tokenizer = learner.tokenizer.eval()
    with torch.inference_mode():
        indices = tokenizer.encode(images)
        error = (tokenizer.decode(indices) - images).square().mean()
    assert error < 0.7 * images.var()
    assert len(torch.cat([found.flatten() for found in indices]).unique()) > 12


@pytest.mark.parametrize("options", [{"quantizer": "vae"}, {"vocab_size": 16, "normalize": False}])
def test_one_stage_models_train_with_the_default_settings(options, tmp_path):
    torch.manual_seed(0)
    sizes = {"code_dim": 4, "target": "pixels", "in_channels": 1}
    model = TiTok(16, 4, 5, (16, 1, 2), (16, 1, 2), **sizes, **options)
    learner = TokenizerTraining(model, perceptual=PyramidLoss(), discriminator=PatchDiscriminator(1, 8, 1), adversarial_start=5)
    images = torch.stack([Blobs()[i]["image"] for i in range(64)])

    def error():
        with torch.inference_mode():
            return (model.eval()(images)[0] - images).square().mean()

    before = error()
    fit(learner, Blobs(), config(45), tmp_path, label="")  # past the step at which unused codes are replaced
    assert error() < before


def test_the_adaptive_weight_equalises_gradients_at_the_last_layer():
    layer = nn.Parameter(torch.randn(5))
    rebuilt, judged = (layer * 3).square().sum(), (layer * torch.arange(5.0)).sum()
    weight = adaptive_weight(rebuilt, judged, layer)
    ours, theirs = torch.autograd.grad(rebuilt, layer)[0], torch.autograd.grad(judged, layer)[0]
    assert torch.allclose((weight * theirs).norm(), ours.norm(), rtol=1e-4)
    assert adaptive_weight((layer * 1e9).sum(), (layer * 1e-9).sum(), layer) == 1e4


def test_the_discriminator_joins_at_its_step_and_judges_this_steps_reconstructions():
    learner = objective(start=2).train()
    batch = {"image": torch.rand(4, 1, 16, 16)}
    early = learner.loss(batch, "generator", Context(1, 10, 0))
    assert "fooled" not in early.logs
    late = learner.loss(batch, "generator", Context(2, 10, 0))
    assert {"fooled", "adversarial_weight"} <= set(late.logs)
    judged = learner.loss(batch, "discriminator", Context(2, 10, 0))
    assert judged.total.requires_grad
    gradients = torch.autograd.grad(judged.total, list(learner.tokenizer.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)
    assert [phase.start for phase in learner.phases()] == [0, 2]


def test_perceptual_losses_are_zero_for_equal_images_and_grow_with_the_difference():
    images = torch.rand(2, 3, 32, 32)

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def feature_maps(self, images):
            return [self.conv(images)]

    for loss in (PyramidLoss(), FeaturePerceptual(Maps())):
        assert loss(images, images).item() == pytest.approx(0, abs=1e-6)
        near, far = loss(images + 0.01 * torch.rand_like(images), images), loss(torch.rand_like(images), images)
        assert 0 < near < far
    assert not FeaturePerceptual(Maps()).train().network.training


def test_what_cannot_be_trained_is_named():
    with pytest.raises(InputError, match="Linear cannot be trained as a tokenizer: it has no features"):
        TokenizerTraining(nn.Linear(2, 2))
