"""TiTok (2406.07550, section 3): an image as a short sequence of codes, without a grid.

A ViT reads the patches beside K learned latent tokens and keeps only these; another ViT rebuilds every patch from their codes.
"proxy" decoders predict the codes of a MaskGIT-VQGAN per patch (stage 1 of the training); with a pixel decoder that VQGAN's
decoder turns the expected codes into an image (stage 2). "pixels" decoders predict the image directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.autoencoder import Decoder, maskgit_names, to_signed
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import Block, xavier
from paperworks.tokenizers.kl_autoencoder import GaussianPosterior
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN, autoencoder_sizes
from paperworks.tokenizers.protocol import TokenizerSpec, check_images, fingerprint
from paperworks.tokenizers.quantizers import Quantized, VectorQuantizer, with_hit_average

SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""width, blocks, heads"""


class LatentTransformer(nn.Module):
    """Class token, `patches` patch tokens and `latents` latent tokens through one ViT: what encoder and decoder share."""

    def __init__(self, patches: int, latents: int, size: tuple[int, int, int]):
        super().__init__()
        dim, depth, heads = size
        spread = dim**-0.5
        self.class_embedding = nn.Parameter(spread * torch.randn(1, dim))
        self.positional_embedding = nn.Parameter(spread * torch.randn(patches + 1, dim))
        self.latent_token_positional_embedding = nn.Parameter(spread * torch.randn(latents, dim))
        self.ln_pre = nn.LayerNorm(dim)
        self.transformer = nn.ModuleList(Block(dim, heads, 4 * dim) for _ in range(depth))
        self.ln_post = nn.LayerNorm(dim)

    def run(self, patches: Tensor, latents: Tensor) -> Tensor:
        """[B, n, dim] and [B, K, dim] -> [B, 1 + n + K, dim], not yet normalised."""
        first = self.class_embedding.expand(len(patches), 1, -1)
        grid = torch.cat((first, patches), 1) + self.positional_embedding
        x = self.ln_pre(torch.cat((grid, latents + self.latent_token_positional_embedding), 1))
        for block in self.transformer:
            x = block(x)
        return x


class TiTokEncoder(LatentTransformer):
    """Images [B, C, S, S] in [0, 1] and latent tokens [K, dim] -> what is quantised, [B, out, 1, K].

    legacy: the released first models hand [B, K, dim] on as if it were [B, dim, K] (a reshape, no transposition).
    """

    def __init__(
        self, image_size: int, patch_size: int, latents: int, size: tuple[int, int, int], out: int, channels: int, legacy: bool
    ):
        super().__init__((image_size // patch_size) ** 2, latents, size)
        self.legacy = legacy
        self.patch_embed = nn.Conv2d(channels, size[0], patch_size, patch_size)
        self.conv_out = nn.Conv2d(size[0], out, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = self.run(patches, latent_tokens.expand(len(images), -1, -1).to(patches.dtype))
        x = self.ln_post(x[:, 1 + patches.shape[1] :])
        x = x.reshape(len(x), x.shape[2], x.shape[1], 1) if self.legacy else x.transpose(1, 2)[..., None]
        return self.conv_out(x).transpose(2, 3)


class TiTokDecoder(LatentTransformer):
    """Quantised latents [B, code_dim, 1, K] -> logits of proxy codes [B, proxy_codes, h, w], or pixels [B, C, S, S] in about
    [0, 1] (proxy_codes=0)."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        latents: int,
        size: tuple[int, int, int],
        code_dim: int,
        channels: int,
        proxy_codes: int,
    ):
        super().__init__((image_size // patch_size) ** 2, latents, size)
        dim = size[0]
        self.side, self.patch_size, self.proxy_codes = image_size // patch_size, patch_size, proxy_codes
        self.decoder_embed = nn.Linear(code_dim, dim)
        self.mask_token = nn.Parameter(dim**-0.5 * torch.randn(1, 1, dim))
        if proxy_codes:
            self.ffn = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.Tanh(), nn.Conv2d(2 * dim, proxy_codes, 1))
            self.conv_out: nn.Module = nn.Identity()
        else:
            self.ffn = nn.Sequential(nn.Conv2d(dim, channels * patch_size**2, 1))
            self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, quantized: Tensor) -> Tensor:
        latents = self.decoder_embed(quantized.squeeze(2).transpose(1, 2).to(self.decoder_embed.weight.dtype))
        patches = self.mask_token.expand(len(latents), self.side**2, -1)
        x = self.ln_post(self.run(patches, latents)[:, 1 : 1 + self.side**2])
        x = self.ffn(x.transpose(1, 2).unflatten(2, (self.side, self.side)))
        if self.proxy_codes:
            return x
        # channels come as (row in the patch, column in the patch, colour)
        x = x.unflatten(1, (self.patch_size**2, -1)).transpose(1, 2).flatten(1, 2)
        return self.conv_out(F.pixel_shuffle(x, self.patch_size))


class TiTok(nn.Module, Pretrained):
    """Images [B, in_channels, image_size, image_size] in [0, 1] <-> `latents` codes, whatever the size.

    encoder, decoder: a named size or (width, blocks, heads). quantizer "vq" (vocab_size codes of code_dim numbers; normalize
    puts them on the unit sphere) or "vae" (a Gaussian of code_dim channels per latent, kl_weight). target: what the decoder
    predicts, "proxy" codes of a MaskGIT-VQGAN with proxy_codes codes or "pixels". legacy: see `TiTokEncoder`.
    pixel_decoder: sizes of that VQGAN's decoder (see `autoencoder_sizes`); with it proxy codes become images.
    """

    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 16,
        latents: int = 32,
        encoder: str | Sequence[int] = "base",
        decoder: str | Sequence[int] = "base",
        *,
        vocab_size: int = 4096,
        code_dim: int = 12,
        quantizer: Literal["vq", "vae"] = "vq",
        normalize: bool = True,
        beta: float = 0.25,
        kl_weight: float = 1e-6,
        target: Literal["proxy", "pixels"] = "proxy",
        proxy_codes: int = 1024,
        pixel_decoder: Mapping[str, Any] | None = None,
        legacy: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        if image_size % patch_size:
            raise InputError(f"image_size={image_size} does not divide into patches of {patch_size}")
        if quantizer not in ("vq", "vae"):
            raise InputError(f"quantizer={quantizer!r}: there are 'vq' and 'vae'")
        if target not in ("proxy", "pixels"):
            raise InputError(f"target={target!r}: there are 'proxy' and 'pixels'")
        self.image_size, self.patch_size, self.latents, self.in_channels = image_size, patch_size, latents, in_channels
        self.code_dim, self.kind, self.target = code_dim, quantizer, target
        first, second = _size(encoder), _size(decoder)
        out = code_dim if quantizer == "vq" else 2 * code_dim
        self.encoder = TiTokEncoder(image_size, patch_size, latents, first, out, in_channels, legacy)
        self.latent_tokens = nn.Parameter(first[0] ** -0.5 * torch.randn(latents, first[0]))
        self.quantize: Any
        if quantizer == "vq":
            self.quantize = VectorQuantizer(vocab_size, code_dim, normalize=normalize, beta=beta)
        else:
            self.quantize = GaussianPosterior(kl_weight)
        codes = proxy_codes if target == "proxy" else 0
        self.decoder = TiTokDecoder(image_size, patch_size, latents, second, code_dim, in_channels, codes)
        # from the released N(0, 0.02) latents of different images start nearly equal, which costs small runs their steps
        xavier(self.modules())
        self.pixel_quantize: VectorQuantizer | None = None
        self.pixel_decoder: Decoder | None = None
        if pixel_decoder is not None:
            sizes = autoencoder_sizes(**{"in_channels": in_channels, **pixel_decoder})
            self.pixel_quantize = VectorQuantizer(proxy_codes, sizes["z_channels"], frozen=True)
            self.pixel_decoder = Decoder(**sizes)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """Released weights with the authors' configuration as nested dictionaries (`config` or its parts `model`, `dataset`).

        sizes: (width, blocks, heads) of names other than small, base and large. Stage-1 weights load into a model without
        pixel decoder, finetuned ones into one with it.
        """
        config = official.get("config", official)
        part = config["model"]["vq_model"]
        sizes = {**SIZES, **official.get("sizes", {})}
        vae, legacy = part.get("quantize_mode", "vq") == "vae", part.get("is_legacy", True)
        pixel, codes = _pixel_sizes(state_dict, official), 1024
        if pixel:
            codes = len(state_dict["pixel_quantize.embedding.weight"])
        elif legacy:
            codes = len(state_dict["decoder.ffn.2.weight"])
        model = cls(
            config["dataset"]["preprocessing"]["crop_size"],
            part["vit_enc_patch_size"],
            part["num_latent_tokens"],
            sizes[part["vit_enc_model_size"]],
            sizes[part["vit_dec_model_size"]],
            vocab_size=part.get("codebook_size", 4096),
            code_dim=part["token_size"],
            quantizer="vae" if vae else "vq",
            normalize=part.get("use_l2_norm", False),
            beta=part.get("commitment_cost", 0.25),
            target="proxy" if legacy else "pixels",
            proxy_codes=codes,
            pixel_decoder=pixel,
            legacy=legacy,
            in_channels=state_dict["encoder.patch_embed.weight"].shape[1],
        )
        return load_official(model, with_hit_average(state_dict, model), rename=_ours)

    # --- training ---

    def features(self, images: Tensor) -> Tensor:
        """What is quantised: [B, K, code_dim], or moments [B, 2 code_dim, 1, K] of a VAE."""
        check_images(images, self.in_channels, self.patch_size)
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                f"images of {tuple(images.shape[-2:])} pixels, but positions are fixed for {self.image_size}: resize or crop"
            )
        z = self.encoder(images, self.latent_tokens)
        return z.squeeze(2).transpose(1, 2) if self.kind == "vq" else z

    def decode_logits(self, features: Tensor) -> Tensor:
        """Quantised features as the quantiser gives them -> what the decoder predicts (proxy logits or pixels)."""
        return self.decoder(features.transpose(1, 2)[:, :, None] if self.kind == "vq" else features)

    def decode_raw(self, features: Tensor) -> Tensor:
        """Quantised features -> images in about [0, 1], unbounded. Proxy logits become the expectation over the proxy codes,
        which the pixel decoder reads (the bridge between the two stages)."""
        made = self.decode_logits(features)
        if self.target == "pixels":
            return made
        if self.pixel_quantize is None or self.pixel_decoder is None:
            raise InputError(
                "this TiTok predicts proxy codes and has no pixel decoder: build it with pixel_decoder=sizes and train stage 2"
            )
        expected = made.float().softmax(1).movedim(1, -1) @ self.pixel_quantize.embedding.weight
        return self.pixel_decoder(expected.movedim(-1, 1).to(made.dtype))

    def decode_signed(self, features: Tensor) -> Tensor:
        """About [-1, 1], unbounded; for training."""
        return to_signed(self.decode_raw(features))

    @property
    def last_layer(self) -> Tensor:
        """The weight in front of the pixels."""
        part: Any = self.decoder.conv_out if self.pixel_decoder is None else self.pixel_decoder.conv_out
        return part.weight

    def start_second_stage(self, first: TiTok, vqgan: MaskGITVQGAN) -> None:
        """Take the weights of a finished stage 1, and codes and decoder of the VQGAN whose codes it predicts; encoder and
        codes are frozen from here on."""
        if self.pixel_decoder is None or self.pixel_quantize is None:
            raise InputError("a TiTok without pixel decoder has no second stage: build it with pixel_decoder=sizes")
        load_official(self, {**self.state_dict(), **first.state_dict()})
        load_official(self.pixel_decoder, vqgan.decoder.state_dict())
        load_official(self.pixel_quantize, vqgan.quantize.state_dict())
        self.freeze_codes()

    def freeze_codes(self) -> None:
        """Only the decoders train from here on."""
        for part in (self.encoder, self.quantize):
            part.requires_grad_(False)
        self.latent_tokens.requires_grad_(False)
        if isinstance(self.quantize, VectorQuantizer):
            self.quantize.frozen = True  # nor are they put elsewhere when they fall out of use

    # --- the tokenizer protocol ---

    @property
    def vocab_size(self) -> int:
        return self._codes().vocab_size

    @property
    def spec(self) -> TokenizerSpec:
        parts = ("quantize.embedding", "decoder.", "pixel_")
        marks = [(key, value) for key, value in self.state_dict().items() if key.startswith(parts) and "hit" not in key]
        size, channels, shapes = self.image_size, self.in_channels, ((self.latents,),)
        return TokenizerSpec("titok", size, channels, shapes, self.vocab_size, self.code_dim, fingerprint(marks))

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Tokens int64 [B, K]."""
        return [self._codes().encode(self.features(images))]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Images in [0, 1] of tokens [B, K] (or [B, 1, K])."""
        tokens = indices[0].squeeze(1) if indices[0].ndim == 3 else indices[0]
        if tokens.shape[1] != self.latents:
            raise InputError(f"{tokens.shape[1]} tokens an image, this tokenizer has {self.latents}")
        return self.decode_raw(self._codes().lookup(tokens)).clamp(0, 1)

    def decode_soft(self, weights: Sequence[Tensor]) -> Tensor:
        """Images of weights [B, K, V] over the codes."""
        return self.decode_raw(self._codes().soft_lookup(weights[0])).clamp(0, 1)

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        """Of a VAE: means [B, code_dim, 1, K]."""
        if self.kind != "vae":
            raise InputError("this TiTok has codes, not latents: use encode")
        return self.features(images).float().chunk(2, 1)[0]

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] of a VAE's latents [B, code_dim, 1, K]."""
        if self.kind != "vae":
            raise InputError("this TiTok has codes, not latents: use decode")
        return self.decode_raw(latents).clamp(0, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (about [0, 1]; proxy logits without pixel decoder) and the quantiser's record, for training."""
        quantized = self.quantize(self.features(images))
        bridge = self.target == "pixels" or self.pixel_decoder is not None
        return (self.decode_raw if bridge else self.decode_logits)(quantized.features), quantized

    def _codes(self) -> VectorQuantizer:
        if not isinstance(self.quantize, VectorQuantizer):
            raise InputError("this TiTok is a VAE and has no codes: use encode_latents and decode_latents")
        return self.quantize


def _size(given: str | Sequence[int]) -> tuple[int, int, int]:
    if isinstance(given, str):
        if given not in SIZES:
            raise InputError(f"size {given!r}: there are {', '.join(SIZES)}, or (width, blocks, heads)")
        return SIZES[given]
    width, blocks, heads = given
    return width, blocks, heads


def _pixel_sizes(state_dict: Mapping[str, Tensor], official: Mapping[str, Any]) -> dict[str, Any] | None:
    if "pixel_quantize.embedding.weight" not in state_dict:
        return None
    given = official.get("pixel_decoder", {})
    return {
        "z_channels": state_dict["pixel_quantize.embedding.weight"].shape[1],
        "ch": given.get("hidden_channels", 128),
        "ch_mult": tuple(given.get("channel_mult", (1, 1, 2, 2, 4))),
        "num_res_blocks": given.get("num_res_blocks", 2),
    }


def _ours(key: str) -> str:
    if key.startswith("pixel_decoder."):
        return "pixel_decoder." + maskgit_names(key.removeprefix("pixel_decoder."))
    for theirs, ours in (
        (".attn.in_proj_", ".attn.qkv."),
        (".attn.out_proj.", ".attn.proj."),
        (".ln_1.", ".norm1."),
        (".ln_2.", ".norm2."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    ):
        key = key.replace(theirs, ours)
    return key
