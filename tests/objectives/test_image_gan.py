"""Two sides of a GAN: who trains when, and that made images move towards the real ones."""

import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.layers.residual_discriminator import ResidualDiscriminator
from paperworks.objectives.adversarial import Adversarial
from paperworks.objectives.image_gan import ImageGAN
from paperworks.training import OptimizerConfig, TrainConfig, fit


class Flat(nn.Module):
    """Images of one learned brightness."""

    latent = 2

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return (self.level + 0.05 * latents[:, :1, None, None]).expand(-1, 1, 8, 8)


@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_made_images_become_as_bright_as_the_real_ones(loss, tmp_path):
    torch.manual_seed(0)
    generator = Flat()
    game = Adversarial(loss, r1=0.1, r1_every=2)
    objective = ImageGAN(generator, ResidualDiscriminator(8, 1, width=4), game)
    optimizer = OptimizerConfig("adam", lr=2e-2, betas=(0.0, 0.9))
    data = [{"image": torch.full((1, 8, 8), 0.75)} for _ in range(16)]
    config = TrainConfig(60, 8, optimizers={"main": optimizer, "discriminator": optimizer})
    fit(objective, data, config, tmp_path)
    assert 0.15 < float(generator.level.detach()) < 0.9  # real images are at 0.5 of [-1, 1]


def test_discriminators_see_the_spread_of_a_batch_and_check_sizes():
    torch.manual_seed(0)
    judge = ResidualDiscriminator(16, 3, width=4, widest=8)
    images = torch.rand(1, 3, 16, 16)
    alone = judge(images)
    assert alone.shape == (1, 1)
    assert torch.allclose(judge(images.expand(4, -1, -1, -1))[:1], alone, atol=1e-5)
    assert not torch.allclose(judge(torch.cat((images, 1 - images)))[:1], alone, atol=1e-5)
    with pytest.raises(InputError, match="size=24"):
        ResidualDiscriminator(24)
