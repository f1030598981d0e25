"""VQGAN (2012.09841) with any of this library's quantisers; with the projected one it is VQGAN-LC (2406.11837)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.autoencoder import Decoder, Encoder, ldm_weights, to_signed, to_unit
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.tokenizers.projected_quantizer import ProjectedQuantizer
from paperworks.tokenizers.protocol import TokenizerSpec, check_images, fingerprint
from paperworks.tokenizers.quantizers import VectorQuantizer, with_hit_average

Kind = Literal["projected", "projected_mlp", "fc", "fc_l2", "ema", "fixed"]


class VQGANLC(nn.Module, Pretrained):
    """Images [B, in_channels, H, W] in [0, 1], H = W = image_size <-> a square map of tokens.

    kind: "projected" (the paper: a frozen table through a trained projector; "projected_mlp" with a hidden layer), and its
    baselines: "fc" (trained codes), "fc_l2" (the same on the unit sphere), "ema", "fixed" (random codes).
    vocab_size, table_width: of the frozen table; `set_table` fills it. ch ... groups: the autoencoder's (see its docs).
    """

    def __init__(
        self,
        image_size: int = 256,
        vocab_size: int = 100_000,
        table_width: int = 768,
        embed_dim: int = 8,
        *,
        kind: Kind = "projected",
        start: Literal["data", "paper"] = "data",
        z_channels: int = 256,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention: bool = True,
        groups: int = 32,
        patch: int = 1,
        in_channels: int = 3,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.image_size, self.in_channels, self.kind = image_size, in_channels, kind
        self.downsampling = patch * 2 ** (len(ch_mult) - 1)
        if image_size % self.downsampling:
            raise InputError(f"image_size={image_size} does not divide by {self.downsampling}, which the encoder shrinks it by")
        shared: dict[str, Any] = {
            "ch": ch,
            "ch_mult": tuple(ch_mult),
            "num_res_blocks": num_res_blocks,
            "in_channels": in_channels,
            "z_channels": z_channels,
            "attention": attention,
            "middle_attention": True,
            "dropout": dropout,
            "groups": groups,
            "patch": patch,
        }
        self.encoder, self.decoder = Encoder(**shared), Decoder(**shared)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.quantize = make_quantizer(kind, vocab_size, table_width, embed_dim, start)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """Weights of the authors' VQModel with its argument names (`ddconfig`, n_vision_words ...). Discriminator and
        perceptual loss are left out."""
        dd = official["ddconfig"]
        resolution = dd["resolution"]
        levels = [resolution // 2**level for level in range(len(dd["ch_mult"]))]
        listed = set(dd.get("attn_resolutions") or ())
        above = sorted(listed.intersection(levels[:-1]))
        if above:  # a listed resolution that the network never has does nothing, as in the released f8 configuration
            raise InputError(f"attn_resolutions={above}: attention is built at the lowest resolution, {levels[-1]}, only")
        tuning = official.get("tuning_codebook", 0)
        kinds: dict[int, Kind] = {-1: "fc", -2: "fixed", 1: "fc"}
        kind: Kind = kinds.get(tuning, "projected_mlp" if official.get("use_cblinear") == 2 else "projected")
        model = cls(
            resolution,
            official["n_vision_words"],
            official.get("codebook_dim", 768),
            official["embed_dim"],
            kind=kind,
            z_channels=dd["z_channels"],
            ch=dd["ch"],
            ch_mult=dd["ch_mult"],
            num_res_blocks=dd["num_res_blocks"],
            attention=levels[-1] in listed,
            in_channels=dd["in_channels"],
            dropout=dd.get("dropout", 0.0),
        )
        dropped = ("discriminator.", "perceptual_loss.")
        weights = {key: value for key, value in ldm_weights(state_dict).items() if not key.startswith(dropped)}
        table = "embedding.weight" if isinstance(model.quantize, VectorQuantizer) else "tok_embeddings.weight"

        def ours(key: str) -> str:
            if key == "tok_embeddings.weight":
                return f"quantize.{table}"
            return f"quantize.{key}" if key.startswith("codebook_projection.") else key

        return load_official(model, with_hit_average(weights, model), rename=ours)

    def set_table(self, table: Tensor) -> None:
        """Fill the frozen table, for instance with `class_wise_centres` of any network's features."""
        if not isinstance(self.quantize, ProjectedQuantizer):
            raise InputError(f"kind={self.kind!r} has no frozen table")
        self.quantize.set_table(table)

    @property
    def vocab_size(self) -> int:
        return self.quantize.vocab_size

    @property
    def spec(self) -> TokenizerSpec:
        side = self.image_size // self.downsampling
        marks = [(key, value) for key, value in self.quantize.state_dict().items() if "hit" not in key]
        size, channels = self.image_size, self.in_channels
        kind = f"vqgan-{self.kind}"
        return TokenizerSpec(kind, size, channels, ((side, side),), self.vocab_size, self.quantize.channels, fingerprint(marks))

    # --- training ---

    def features(self, images: Tensor) -> Tensor:
        """What is quantised: [B, h, w, embed_dim]."""
        check_images(images, self.in_channels, self.downsampling)
        return self.quant_conv(self.encoder(to_signed(images))).permute(0, 2, 3, 1)

    def decode_signed(self, features: Tensor) -> Tensor:
        """Quantised features [B, h, w, embed_dim] to about [-1, 1], unbounded."""
        features = features.to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(features.permute(0, 3, 1, 2)))

    # --- the tokenizer protocol ---

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """One map of tokens, int64 [B, h w]."""
        return [self.quantize.encode(self.features(images)).flatten(1)]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Images [B, C, H, W] in [0, 1] of tokens [[B, h w]]."""
        return self._decode(self.quantize.lookup(indices[0]))

    def decode_soft(self, weights: Sequence[Tensor]) -> Tensor:
        """Images of weights [[B, h w, V]] over the codes."""
        return self._decode(self.quantize.soft_lookup(weights[0]))

    def _decode(self, vectors: Tensor) -> Tensor:
        side = self.image_size // self.downsampling
        if vectors.shape[1] != side * side:
            raise InputError(f"{vectors.shape[1]} tokens an image, this tokenizer has {side * side}")
        return to_unit(self.decode_signed(vectors.unflatten(1, (side, side))))


def make_quantizer(
    kind: Kind, vocab_size: int, table_width: int, channels: int, start: Any
) -> ProjectedQuantizer | VectorQuantizer:
    if kind in ("projected", "projected_mlp"):
        projector: Literal["linear", "mlp"] = "linear" if kind == "projected" else "mlp"
        return ProjectedQuantizer((vocab_size, table_width), channels, projector=projector, start=start)
    weights: dict[str, Any] = {"beta": 1.0, "codebook_weight": 0.33}
    if kind == "fc":
        return VectorQuantizer(vocab_size, channels, **weights)
    if kind == "fc_l2":
        return VectorQuantizer(vocab_size, channels, normalize=True, **weights)
    if kind == "ema":
        return VectorQuantizer(vocab_size, channels, beta=1.0, ema=0.99)
    if kind == "fixed":
        return VectorQuantizer(vocab_size, channels, beta=1.0, frozen=True)
    raise InputError(f"kind={kind!r}: there are projected, projected_mlp, fc, fc_l2, ema and fixed")
