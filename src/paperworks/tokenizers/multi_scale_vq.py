"""VAR's tokenizer (2404.02905, section 3.1): a CNN autoencoder around the multi-scale residual quantiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.autoencoder import Decoder, Encoder, to_signed, to_unit
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.tokenizers.multi_scale_quantizer import MultiScaleVQ, Phi, Quantized, phi_index, with_usage
from paperworks.tokenizers.protocol import TokenizerSpec, check_images, fingerprint

__all__ = ["MultiScaleVQ", "MultiScaleVQVAE", "Phi", "Quantized", "phi_index", "scales_for"]

PUBLISHED = {
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    64: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}


def scales_for(side: int) -> tuple[int, ...]:
    """Growing sides of token maps that end at a feature map of `side`: the published ones for 16, 32 and 64, else 1, 2, 3, 4
    and then steps of about 1.4."""
    if side < 1:
        raise InputError(f"a feature map of side {side} has no tokens: the image is too small for this many halvings")
    if side in PUBLISHED:
        return PUBLISHED[side]
    sides = [side]
    while sides[0] > 4:
        sides.insert(0, max(4, round(sides[0] / 2**0.5)))
    return tuple(range(1, sides[0])) + tuple(sides)


class MultiScaleVQVAE(nn.Module, Pretrained):
    """Images in [0, 1] <-> token maps. The first arguments are the released code's; the ones after `dropout` make it small.

    The image's side is patch_nums[-1] x patch x 2^(len(ch_mult) - 1). `patch`: see the Encoder.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 160,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        v_patch_nums: Sequence[int] = PUBLISHED[16],
        *,
        using_znorm: bool = False,
        beta: float = 0.25,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
        quant_conv_ks: int = 3,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        dropout: float = 0.0,
        in_channels: int = 3,
        groups: int = 32,
        patch: int = 1,
    ):
        super().__init__()
        shape: dict[str, Any] = {
            "ch": ch,
            "ch_mult": tuple(ch_mult),
            "num_res_blocks": num_res_blocks,
            "z_channels": z_channels,
            "in_channels": in_channels,
            "attention": using_sa,
            "middle_attention": using_mid_sa,
            "dropout": dropout,
            "groups": groups,
            "patch": patch,
        }
        self.downsampling = patch * 2 ** (len(ch_mult) - 1)
        self.in_channels = in_channels
        self.encoder = Encoder(**shape)
        self.decoder = Decoder(**shape)
        self.quantize = MultiScaleVQ(
            vocab_size,
            z_channels,
            v_patch_nums,
            using_znorm=using_znorm,
            beta=beta,
            quant_resi=quant_resi,
            share_quant_resi=share_quant_resi,
            default_qresi_counts=default_qresi_counts,
        )
        self.quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=quant_conv_ks // 2)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=quant_conv_ks // 2)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official_kwargs: Any) -> MultiScaleVQVAE:
        """From a released `vae_ch160v4096z32.pth`; `official_kwargs` as given to the released constructor."""
        model = cls(**{name: value for name, value in official_kwargs.items() if name != "test_mode"})
        return load_official(model, with_usage(state_dict, model.quantize, "quantize."))

    @property
    def patch_nums(self) -> tuple[int, ...]:
        return self.quantize.patch_nums

    @property
    def vocab_size(self) -> int:
        return self.quantize.vocab_size

    @property
    def channels(self) -> int:
        """Of the codes and feature maps."""
        return self.quantize.channels

    @property
    def image_size(self) -> int:
        return self.patch_nums[-1] * self.downsampling

    @property
    def spec(self) -> TokenizerSpec:
        meaning = [(name, value) for name, value in self.quantize.named_parameters()]
        return TokenizerSpec(
            kind="multiscale",
            image_size=self.image_size,
            image_channels=self.in_channels,
            shapes=tuple((side, side) for side in self.patch_nums),
            vocab_size=self.vocab_size,
            code_channels=self.channels,
            codes=fingerprint(meaning),
        )

    def features(self, images: Tensor) -> Tensor:
        """The encoder's map [B, C, h, w] of images [B, in_channels, H, W] in [0, 1]."""
        return self.quant_conv(self.encoder(to_signed(images)))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Token maps, int64 [B, s * s] per scale, of images [B, in_channels, image_size, image_size] in [0, 1]."""
        check_images(images, self.in_channels, self.downsampling)
        return self.quantize.tokenize(self.features(images))[0]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Images in [0, 1] of token maps."""
        return self.decode_features(self.quantize.features_of(indices)[-1])

    def decode_features(self, features: Tensor) -> Tensor:
        """Images in [0, 1] of accumulated features."""
        return to_unit(self.decode_signed(features))

    def decode_signed(self, features: Tensor) -> Tensor:
        """The decoder's raw output, about [-1, 1] and unbounded."""
        return self.decoder(self.post_quant_conv(features))

    # --- what generators ask a tokenizer for: the quantiser's, see there ---

    def begin(self, rows: int) -> Tensor:
        return self.quantize.begin(rows)

    def codes(self) -> Tensor:
        return self.quantize.codes()

    def lookup(self, indices: Tensor) -> Tensor:
        return self.quantize.lookup(indices)

    def accumulate(self, scale: int, vectors: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.quantize.accumulate(scale, vectors, features)

    def next_inputs(self, indices: Sequence[Tensor]) -> Tensor:
        return self.quantize.next_inputs(indices)
