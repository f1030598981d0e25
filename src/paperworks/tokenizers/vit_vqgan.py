"""ViT-VQGAN's tokenizer (2110.04627, section 3.1): a ViT on patches, few-dimensional codes on the unit sphere, a ViT back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.autoencoder import to_signed
from paperworks.layers.positions import sincos_2d
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import Block, xavier
from paperworks.tokenizers.protocol import TokenizerSpec, check_images, fingerprint
from paperworks.tokenizers.quantizers import (
    GumbelQuantizer,
    Quantized,
    ResidualQuantizer,
    VectorQuantizer,
    with_hit_average,
)


class ViTStack(nn.Module):
    """Fixed positions, pre-norm blocks with tanh in their MLPs, a last norm."""

    def __init__(self, side: int, dim: int, depth: int, heads: int, mlp_dim: int, head_dim: int, activation: Any = "tanh"):
        super().__init__()
        self.positions = nn.Parameter(sincos_2d(side, side, dim)[None], requires_grad=False)
        project = not (heads == 1 and head_dim == dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_dim, head_dim=head_dim, qkv_bias=False, activation=activation, project_out=project)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, side x side, dim] -> the same."""
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ViTVQGAN(nn.Module, Pretrained):
    """Images [B, in_channels, image_size, image_size] in [0, 1] <-> (image_size / patch_size)^2 tokens.

    encoder, decoder: dim, depth, heads, mlp_dim and head_dim (64) of each. code_dim: of a code (the paper's factorised 32).
    quantizer: "vq", "residual" (num_quantizers levels over one table, one token map per level) or "gumbel".
    """

    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 8,
        encoder: Mapping[str, int] | None = None,
        decoder: Mapping[str, int] | None = None,
        *,
        code_dim: int = 32,
        vocab_size: int = 8192,
        quantizer: Literal["vq", "residual", "gumbel"] = "vq",
        num_quantizers: int = 1,
        beta: float = 0.25,
        normalize: bool = True,
        in_channels: int = 3,
    ):
        super().__init__()
        if image_size % patch_size:
            raise InputError(f"image_size={image_size} does not divide into patches of {patch_size}")
        if quantizer == "residual" and num_quantizers < 1:
            raise InputError("a residual quantiser needs num_quantizers of at least 1")
        self.image_size, self.patch_size, self.in_channels = image_size, patch_size, in_channels
        side = image_size // patch_size
        first, second = _stack(encoder), _stack(decoder or encoder)
        self.to_patches = nn.Conv2d(in_channels, first["dim"], patch_size, patch_size)
        self.encoder = ViTStack(side, **first)
        self.pre_quant = nn.Linear(first["dim"], code_dim)
        kinds = {
            "vq": lambda: VectorQuantizer(
                vocab_size, code_dim, normalize=normalize, beta=beta, straight_through="raw", start=0.0
            ),
            "residual": lambda: ResidualQuantizer(
                num_quantizers, vocab_size, code_dim, shared=True, normalize=normalize, beta=beta
            ),
            "gumbel": lambda: GumbelQuantizer(vocab_size, code_dim, normalize=normalize),
        }
        if quantizer not in kinds:
            raise InputError(f"quantizer={quantizer!r}: there are {', '.join(kinds)}")
        self.quantize: Any = kinds[quantizer]()
        self.post_quant = nn.Linear(code_dim, second["dim"])
        self.stack = ViTStack(side, **second)
        self.decoder = PixelHead(second["dim"], in_channels, patch_size, side)
        xavier(self.modules())
        nn.init.xavier_uniform_(self.to_patches.weight.view(first["dim"], -1))
        nn.init.xavier_uniform_(self.decoder.to_pixel.weight.view(second["dim"], -1))

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """Weights of thuanz123/enhancing-transformers with its argument names (`quantizer` with embed_dim and n_embed)."""
        given = dict(official.pop("quantizer"))
        residual = bool(given.get("use_residual"))
        options: dict[str, Any] = {
            "code_dim": given["embed_dim"],
            "vocab_size": given["n_embed"],
            "quantizer": "residual" if residual else official.pop("kind", "vq"),
            "num_quantizers": given.get("num_quantizers") or 1,
            "beta": official.pop("beta", given.get("beta", 0.25)),
            "normalize": given.get("use_norm", True),
        }
        model = cls(
            official.pop("image_size"), official.pop("patch_size"), official.pop("encoder"), official.pop("decoder"), **options
        )
        weights = {key: value for key, value in state_dict.items() if not key.startswith("loss.")}
        table_name = "books.0.embedding.weight" if residual else "embedding.weight"
        return load_official(model, with_hit_average(weights, model), rename=lambda key: _ours(key, table_name))

    @property
    def vocab_size(self) -> int:
        return self.quantize.vocab_size

    @property
    def spec(self) -> TokenizerSpec:
        side = self.image_size // self.patch_size
        names = ("quantize.", "post_quant.", "stack.", "decoder.")
        marks = [(key, value) for key, value in self.state_dict().items() if key.startswith(names) and "hit" not in key]
        shapes = ((side, side),) * self.quantize.levels
        size, channels = self.image_size, self.in_channels
        return TokenizerSpec("vitvq", size, channels, shapes, self.vocab_size, self.quantize.channels, fingerprint(marks))

    # --- training ---

    def features(self, images: Tensor) -> Tensor:
        """What is quantised: [B, n, code_dim]."""
        self._check(images)
        return self.pre_quant(self.encoder(self.to_patches(images).flatten(2).transpose(1, 2)))

    def decode_signed(self, features: Tensor) -> Tensor:
        """Quantised features [B, n, code_dim] to about [-1, 1], unbounded; the network itself works in [0, 1]."""
        return to_signed(self.decode_raw(features))

    def decode_raw(self, features: Tensor) -> Tensor:
        """About [0, 1], unbounded."""
        return self.decoder(self.stack(self.post_quant(features.to(self.post_quant.weight.dtype))))

    # --- the tokenizer protocol ---

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Tokens int64 [B, n] (of every level, coarse to fine, for a residual quantiser)."""
        found = self.quantize.encode(self.features(images))
        return found if isinstance(found, list) else [found]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Images [B, C, H, W] in [0, 1] of tokens [B, n] per map."""
        tokens = (self.image_size // self.patch_size) ** 2
        if any(found.shape[1] != tokens for found in indices):
            raise InputError(f"token maps of {[found.shape[1] for found in indices]} tokens, this tokenizer has {tokens}")
        quantize = self.quantize
        features = quantize.lookup(indices) if isinstance(quantize, ResidualQuantizer) else quantize.lookup(indices[0])
        return self.decode_raw(features).clamp(0, 1)

    def decode_soft(self, weights: Sequence[Tensor]) -> Tensor:
        """Images of weights [B, n, V] over the codes."""
        assert isinstance(self.quantize, VectorQuantizer)
        return self.decode_raw(self.quantize.soft_lookup(weights[0])).clamp(0, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (about [0, 1]) and the quantiser's record, for training."""
        quantized = self.quantize(self.features(images))
        return self.decode_raw(quantized.features), quantized

    def _check(self, images: Tensor) -> None:
        check_images(images, self.in_channels, self.patch_size)
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                f"images of {tuple(images.shape[-2:])} pixels, but positions are fixed for {self.image_size}: resize or crop"
            )


class PixelHead(nn.Module):
    """Tokens to patches of pixels by a transposed convolution."""

    def __init__(self, dim: int, channels: int, patch_size: int, side: int):
        super().__init__()
        self.side = side
        self.to_pixel = nn.ConvTranspose2d(dim, channels, patch_size, patch_size)

    @property
    def last_layer(self) -> Tensor:
        return self.to_pixel.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.to_pixel(x.transpose(1, 2).unflatten(2, (self.side, self.side)))


def _stack(given: Mapping[str, int] | None) -> dict[str, Any]:
    part: dict[str, Any] = dict(given or BASE)
    part["head_dim"] = part.pop("dim_head", part.get("head_dim", 64))
    part.pop("dropout", None)
    return part


SMALL = {"dim": 512, "depth": 8, "heads": 8, "mlp_dim": 2048}
BASE = {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072}
LARGE = {"dim": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120}
"""the paper's table 1"""


def _ours(key: str, table: str) -> str:
    key = key.replace("encoder.to_patch_embedding.0.", "to_patches.").replace("decoder.to_pixel.1.", "decoder.to_pixel.")
    key = key.replace("quantizer.embedding.weight", f"quantize.{table}")
    key = key.replace("encoder.en_pos_embedding", "encoder.positions").replace("decoder.de_pos_embedding", "stack.positions")
    found = re.fullmatch(r"(encoder|decoder)\.transformer\.(.*)", key)
    if not found:
        return key
    rest = re.sub(r"^layers\.(\d+)\.0\.norm\.", r"blocks.\1.norm1.", found[2])
    rest = re.sub(r"^layers\.(\d+)\.1\.norm\.", r"blocks.\1.norm2.", rest)
    rest = re.sub(r"^layers\.(\d+)\.0\.fn\.to_qkv\.", r"blocks.\1.attn.qkv.", rest)
    rest = re.sub(r"^layers\.(\d+)\.0\.fn\.to_out\.", r"blocks.\1.attn.proj.", rest)
    rest = re.sub(r"^layers\.(\d+)\.1\.fn\.net\.0\.", r"blocks.\1.mlp.fc1.", rest)
    rest = re.sub(r"^layers\.(\d+)\.1\.fn\.net\.2\.", r"blocks.\1.mlp.fc2.", rest)
    return ("encoder." if found[1] == "encoder" else "stack.") + rest
