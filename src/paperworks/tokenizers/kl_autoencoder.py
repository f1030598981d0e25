"""An autoencoder with a Gaussian latent (latent diffusion 2112.10752, section 3.1): the continuous tokenizer of xAR and MAR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.autoencoder import Decoder, Encoder, ldm_weights, to_signed, to_unit
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.tokenizers.protocol import check_images
from paperworks.tokenizers.quantizers import Quantized


class GaussianPosterior(nn.Module):
    """In the place of a quantiser: moments [B, 2 C, h, w] become a sample (training) or the mean; the loss is `weight` times
    the divergence from N(0, 1), summed over an image. It has no codes, so the health of a code book is always fine."""

    def __init__(self, weight: float = 1e-6):
        super().__init__()
        if weight < 0:
            raise InputError(f"kl_weight={weight} must not be negative")
        self.weight = weight

    def forward(self, moments: Tensor, noise: Tensor | None = None) -> Quantized:
        """noise: standard normal numbers in the shape of the mean, to sample with them; drawn here while training."""
        mean, log_variance = self.parts(moments)
        if noise is None and self.training:
            noise = torch.randn_like(mean)
        made = mean if noise is None else mean + noise * (log_variance / 2).exp()
        divergence = _divergence(mean, log_variance).sum((1, 2, 3))
        return Quantized(made, self.weight * divergence.mean(), [], [])

    @staticmethod
    def parts(moments: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, [B, C, h, w], float32."""
        mean, log_variance = moments.float().chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    @classmethod
    def divergence(cls, moments: Tensor) -> Tensor:
        """From N(0, 1), of every value: [B, C, h, w]."""
        return _divergence(*cls.parts(moments))

    def usage(self) -> Tensor:
        return torch.ones(())

    def hits(self, indices: Sequence[Tensor]) -> Tensor:
        return torch.zeros(1)

    def note_hits(self, hits: Tensor, step: int) -> None:
        """No codes, no counts."""


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


class KLAutoencoder(nn.Module, Pretrained):
    """Images [B, in_channels, H, W] in [0, 1] <-> latents [B, latent_channels, H / d, W / d] of deviation about 1.

    Latents leave multiplied by `scale`, which `set_scale` measures on data (the released VAE uses 0.2325). Architecture as the
    autoencoder's; `objectives.tokenizer_training` trains it.
    """

    scale: Tensor

    def __init__(
        self,
        image_size: int = 256,
        latent_channels: int = 16,
        *,
        kl_weight: float = 1e-6,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        groups: int = 32,
        patch: int = 1,
        in_channels: int = 3,
    ):
        super().__init__()
        self.image_size, self.in_channels, self.latent_channels = image_size, in_channels, latent_channels
        self.downsampling = patch * 2 ** (len(ch_mult) - 1)
        if image_size % self.downsampling:
            raise InputError(f"image_size={image_size} does not divide by {self.downsampling}, which the encoder shrinks it by")
        shared: dict[str, Any] = {
            "ch": ch,
            "ch_mult": tuple(ch_mult),
            "num_res_blocks": num_res_blocks,
            "in_channels": in_channels,
            "middle_attention": True,
            "groups": groups,
            "patch": patch,
        }
        # as the released one: attention at the lowest resolution of the encoder alone
        self.encoder = Encoder(z_channels=latent_channels, double_z=True, attention=True, **shared)
        self.decoder = Decoder(z_channels=latent_channels, attention=False, **shared)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.quantize = GaussianPosterior(kl_weight)
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], scale: float = 0.2325, **official: Any) -> Self:
        """MAR's KL-16 (key "model" of its file) or another autoencoder of latent diffusion of that form."""
        model = cls(**official)
        weights = {key: value for key, value in ldm_weights(state_dict).items() if not key.startswith("loss.")}
        return load_official(model, {**weights, "scale": torch.tensor(scale)})

    @property
    def side(self) -> int:
        """Of the latent grid."""
        return self.image_size // self.downsampling

    # --- training ---

    def features(self, images: Tensor) -> Tensor:
        """Moments [B, 2 latent_channels, h, w]."""
        check_images(images, self.in_channels, self.downsampling)
        return self.quant_conv(self.encoder(to_signed(images)))

    def decode_signed(self, features: Tensor) -> Tensor:
        """Unscaled latents to about [-1, 1], unbounded."""
        return self.decoder(self.post_quant_conv(features.to(self.post_quant_conv.weight.dtype)))

    @torch.no_grad()
    def set_scale(self, images: Tensor, batch_size: int = 200) -> None:
        """From the deviation of the latents of images [N, C, H, W]."""
        means = [self.features(part).chunk(2, 1)[0].float() for part in images.split(batch_size)]
        self.scale.copy_(1 / torch.cat(means).std().clamp(min=1e-6))

    # --- images and latents ---

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the posterior in the scale of latents, both [B, latent_channels, h, w]."""
        mean, log_variance = self.quantize.parts(self.features(images))
        return mean * self.scale, (log_variance / 2).exp() * self.scale

    def encode_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[B, latent_channels, h, w]: the posterior's mean, or a sample of it with a generator."""
        mean, deviation = self.encode_moments(images)
        if generator is None:
            return mean
        return mean + deviation * torch.randn(mean.shape, generator=generator, device=mean.device)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1]."""
        if latents.shape[1] != self.latent_channels:
            raise InputError(f"latents have {latents.shape[1]} channels, this autoencoder {self.latent_channels}")
        return to_unit(self.decode_signed(latents / self.scale))
