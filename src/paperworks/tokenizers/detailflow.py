"""DetailFlow's tokenizer (2505.21473, section 3): a sequence of codes whose prefixes are the image at growing resolutions.

Two ViTs: the encoder's latent tokens look at the patches and, group by group, at earlier latents; the decoder rebuilds as many
patches as the length of the prefix stands for. For self-correction the encoder can also start from a prefix with an error in
it and find the later codes that make up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.adaln_transformer import Attend
from paperworks.layers.autoencoder import to_signed, to_unit
from paperworks.layers.block_causal import group_causal_mask
from paperworks.layers.positions import resized_positions
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import Block, full_attention, fuse_qkv, xavier
from paperworks.tokenizers.protocol import TokenizerSpec, check_images, fingerprint
from paperworks.tokenizers.quantizers import Quantized, VectorQuantizer, with_hit_average
from paperworks.tokenizers.resolution_map import ResolutionMap

NEAREST = 50
"""codes among which an error is drawn"""


def patches_and_latents(patches: int, mask: Tensor) -> Attend:
    """Patches look at patches alone, latents at all patches and where `mask` lets them: two products, no mask over both."""
    whole = F.pad(mask, (patches, 0), value=True)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        first = full_attention(query[:, :, :patches], key[:, :, :patches], value[:, :, :patches], scale)
        rest = F.scaled_dot_product_attention(query[:, :, patches:], key, value, attn_mask=whole.to(query.device), scale=scale)
        return torch.cat((first, rest), 2)

    return attend


class SigLIPStack(nn.Module):
    """Blocks of SigLIP 2 (2502.14786) with a square table of positions that is resized to any grid."""

    def __init__(self, side: int, latents: int, dim: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.side = side
        self.position_embedding = nn.Parameter(torch.randn(side * side, dim) * 0.02)
        self.latent_pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, latents, dim), std=0.02))
        self.layers = nn.ModuleList(Block(dim, heads, hidden, eps=1e-6, activation="gelu_tanh") for _ in range(depth))
        self.post_layernorm = nn.LayerNorm(dim, eps=1e-6)

    def run(self, patches: Tensor, latents: Tensor, grid: int, attend: Attend) -> Tensor:
        table = self.position_embedding.view(self.side, self.side, -1)
        positions = table.flatten(0, 1) if grid == self.side else resized_positions(table, (grid, grid))
        x = torch.cat((patches + positions, latents + self.latent_pos_embed[:, : latents.shape[1]]), 1)
        for block in self.layers:
            x = block(x, attend)
        return self.post_layernorm(x)


class DetailEncoder(SigLIPStack):
    """Images [B, C, S, S] in [-1, 1] -> latents [B, n, dim]."""

    def __init__(self, side: int, latents: int, size: tuple[int, int, int, int], patch: int, channels: int):
        super().__init__(side, latents, *size)
        self.patch = patch
        self.patch_embedding = nn.Linear(channels * patch**2, size[0])
        self.latent_tokens = nn.Parameter(torch.randn(1, latents, size[0]) * 0.02)
        self.refined_tokens = nn.Parameter(torch.randn(1, latents, size[0]) * 0.02)

    def forward(self, images: Tensor, mask: Tensor, prefix: Tensor | None = None) -> Tensor:
        """mask [n, n] of the latents; prefix [B, m, dim]: what stands in place of the first m latent tokens."""
        grid, count = images.shape[-1] // self.patch, len(mask)
        # a patch's numbers are ordered (row, column, colour)
        cut = F.pixel_unshuffle(images, self.patch).unflatten(1, (-1, self.patch**2)).transpose(1, 2).flatten(1, 2)
        patches = self.patch_embedding(cut.flatten(2).transpose(1, 2))
        if prefix is None:
            latents = self.latent_tokens[:, :count].expand(len(images), -1, -1)
        else:
            rest = self.refined_tokens[:, prefix.shape[1] : count].expand(len(images), -1, -1)
            latents = torch.cat((prefix, rest), 1)
        made = self.run(patches, latents, grid, patches_and_latents(grid * grid, mask))
        return made[:, grid * grid :]


class DetailDecoder(SigLIPStack):
    """Latents [B, n, dim] -> images [B, C, side, side] in about [-1, 1]."""

    def __init__(self, side: int, latents: int, size: tuple[int, int, int, int], patch: int, channels: int):
        super().__init__(side, latents, *size)
        self.patch = patch
        self.mask_token = nn.Parameter(torch.randn(1, 1, size[0]) * 0.02)
        self.to_pixel = nn.Linear(size[0], channels * patch**2)

    @property
    def last_layer(self) -> Tensor:
        return self.to_pixel.weight

    def forward(self, latents: Tensor, side: int) -> Tensor:
        grid = side // self.patch
        patches = self.mask_token.expand(len(latents), grid * grid, -1)
        made = self.to_pixel(self.run(patches, latents, grid, full_attention)[:, : grid * grid])
        made = made.transpose(1, 2).unflatten(2, (grid, grid)).unflatten(1, (self.patch**2, -1))
        return F.pixel_shuffle(made.transpose(1, 2).flatten(1, 2), self.patch)


class DetailFlow(nn.Module, Pretrained):
    """Images [B, in_channels, S, S] in [0, 1] <-> `latents` codes, of which every whole prefix decodes by itself.

    encoder, decoder: (width, blocks, heads, hidden width). group: tokens that a generator makes at once; causal: tokens at the
    start that it makes one by one (0: one group). positions: side of the encoder's and decoder's tables of positions.
    """

    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 16,
        latents: int = 128,
        group: int = 8,
        encoder: Sequence[int] = (1152, 12, 16, 4304),
        decoder: Sequence[int] = (768, 12, 12, 3072),
        *,
        vocab_size: int = 8192,
        code_dim: int = 8,
        beta: float = 0.25,
        codebook_weight: float = 1.0,
        causal: int = 0,
        power: float = 1.5,
        correction: bool = True,
        positions: int = 0,
        in_channels: int = 3,
    ):
        super().__init__()
        self.map = ResolutionMap(image_size, latents, group, patch_size, causal, power)
        self.image_size, self.patch_size, self.latents, self.in_channels = image_size, patch_size, latents, in_channels
        side = positions or image_size // patch_size
        first, second = _size(encoder), _size(decoder)
        self.encoder = DetailEncoder(side, latents, first, patch_size, in_channels)
        self.decoder = DetailDecoder(side, latents, second, patch_size, in_channels)
        self.quant_conv = nn.Linear(first[0], code_dim)
        self.post_quant_conv = nn.Linear(code_dim, second[0])
        self.refine_conv = nn.Linear(code_dim, first[0]) if correction else None
        self.quantize = VectorQuantizer(vocab_size, code_dim, normalize=True, beta=beta, codebook_weight=codebook_weight)
        xavier(self.modules())

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """`DetailFlow-*`'s tokenizer (key "model") with its argument names; sizes are read off the weights but for heads.
        The networks that its training aligns with are left out."""
        stem = "encoder.visual_model."
        dims = [state_dict[f"{part}.visual_model.post_layernorm.weight"].shape[0] for part in ("encoder", "decoder")]
        hidden = [
            state_dict[f"{part}.visual_model.encoder.layers.0.mlp.fc1.weight"].shape[0] for part in ("encoder", "decoder")
        ]
        depths = [_depth(state_dict, f"{part}.visual_model.encoder.layers.") for part in ("encoder", "decoder")]
        heads = official.get("heads", (16, 12))
        heads = (heads, heads) if isinstance(heads, int) else heads
        patch = official.get("patch", official.get("enc_patch_size", 16))
        positions = round(len(state_dict[f"{stem}embeddings.position_embedding.weight"]) ** 0.5)
        model = cls(
            official["image_size"],
            patch,
            official["num_latent_tokens"],
            official["group_size"],
            (dims[0], depths[0], heads[0], hidden[0]),
            (dims[1], depths[1], heads[1], hidden[1]),
            vocab_size=official["codebook_size"],
            code_dim=official["codebook_embed_dim"],
            beta=official.get("commit_beta", official.get("commit_loss_beta", 0.25)),
            codebook_weight=official.get("vq_loss_ratio", 1.0),
            causal=official.get("causal_num") or 0,
            correction="refine_conv.weight" in state_dict,
            positions=positions,
            in_channels=state_dict[f"{stem}embeddings.patch_embedding.weight"].shape[1] // patch**2,
        )
        dropped = (
            "repa_",
            "projection.",
            "global_token_proj.",
            "quantize.codebook_used",
            "decoder.visual_model.embeddings.patch",
        )
        kept = {key: value for key, value in state_dict.items() if not key.startswith(dropped) and ".head." not in key}
        weights = fuse_qkv(kept, ("q_proj", "k_proj", "v_proj"))
        return load_official(model, with_hit_average(weights, model), rename=_NAMES)

    # --- training ---

    def features(self, images: Tensor, count: int | None = None, prefix: Tensor | None = None) -> Tensor:
        """What is quantised: [B, n, code_dim] of the first `count` latents (all by default). prefix: codes [B, m, code_dim]
        that take the place of the first m."""
        self._check(images)
        count = count or self.latents
        mask = group_causal_mask(count, self.map.group, self.map.first)
        if prefix is not None:
            if self.refine_conv is None:
                raise InputError("this tokenizer was built without correction: it cannot start from a prefix")
            prefix = self.refine_conv(prefix)
        return self.quant_conv(self.encoder(to_signed(images), mask, prefix))

    def decode_signed(self, features: Tensor, side: int | None = None) -> Tensor:
        """Quantised features [B, n, code_dim] to images of `side` pixels, about [-1, 1], unbounded."""
        weight = self.post_quant_conv.weight
        return self.decoder(self.post_quant_conv(features.to(weight.dtype)), side or self.image_size)

    def nearby(self, features: Tensor, ranks: Tensor) -> Tensor:
        """int64 [B, n]: the code that is number `ranks` (from 0) among the nearest to features [B, n, code_dim]."""
        searched = F.normalize(features.detach().float(), dim=-1)
        count = min(NEAREST, self.vocab_size)
        return (searched @ self.quantize.codes().T).topk(count, -1).indices.gather(-1, ranks[..., None])[..., 0]

    def corrupt(self, images: Tensor, features: Tensor, clean: Quantized, start: int, ranks: Tensor) -> Corrected:
        """Sequences with an error from `start` on, and the codes after it that repair it (section 3.3).

        features: of the images; clean: their quantised form; ranks int64 [B, n]: which near code stands in for each token.
        """
        end = self.map.corrupted_end(start)
        wrong = self.nearby(features, ranks)
        searched = F.normalize(features.float(), dim=-1)
        replaced = searched + (self.quantize.lookup(wrong) - searched).detach()
        prefix = torch.cat((clean.features[:, :start], replaced[:, start:end]), 1).detach()
        later = self.features(images, features.shape[1], prefix)[:, end:]
        repaired = self.quantize(later)
        tokens = clean.indices[0]
        inputs = torch.cat((tokens[:, :start], wrong[:, start:end], repaired.indices[0]), 1)
        label = torch.cat((tokens[:, :end], repaired.indices[0]), 1)
        return Corrected(torch.cat((prefix, repaired.features), 1), repaired, inputs, label, start, end)

    # --- the tokenizer protocol ---

    @property
    def vocab_size(self) -> int:
        return self.quantize.vocab_size

    @property
    def spec(self) -> TokenizerSpec:
        parts = ("quantize.embedding", "post_quant_conv.", "decoder.")
        marks = [(key, value) for key, value in self.state_dict().items() if key.startswith(parts)]
        size, channels = self.image_size, self.in_channels
        shapes = ((self.latents,),)
        return TokenizerSpec("detailflow", size, channels, shapes, self.vocab_size, self.quantize.channels, fingerprint(marks))

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        return [self.quantize.encode(self.features(images))]

    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """Images [B, C, image_size, image_size] in [0, 1] of all tokens [B, latents]."""
        if indices[0].shape[1] != self.latents:
            raise InputError(
                f"{indices[0].shape[1]} tokens an image, this tokenizer has {self.latents}; decode_prefix takes fewer"
            )
        return to_unit(self.decode_signed(self.quantize.lookup(indices[0])))

    def decode_prefix(self, tokens: Tensor, count: int) -> Tensor:
        """Images in [0, 1] of the first `count` tokens, at the resolution these stand for (`map.decoded`)."""
        self.map.check(count)
        return to_unit(self.decode_signed(self.quantize.lookup(tokens[:, :count]), self.map.decoded(count)))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        quantized = self.quantize(self.features(images))
        return self.decode_signed(quantized.features), quantized

    def _check(self, images: Tensor) -> None:
        check_images(images, self.in_channels, self.patch_size)
        if images.shape[-1] != images.shape[-2] or images.shape[-1] > self.image_size:
            raise InputError(
                f"images of {tuple(images.shape[-2:])} pixels: square ones of at most {self.image_size} are needed"
            )


@dataclass(frozen=True)
class Corrected:
    """Features [B, n, code_dim] with an error at start:end and repaired codes after it; what a generator reads (`inputs`) and
    should predict (`label`), int64 [B, n]."""

    features: Tensor
    repaired: Quantized
    """of the later codes alone"""
    inputs: Tensor
    label: Tensor
    start: int
    end: int


def _size(given: Sequence[int]) -> tuple[int, int, int, int]:
    width, blocks, heads, hidden = given
    return width, blocks, heads, hidden


def _depth(state_dict: Mapping[str, Tensor], stem: str) -> int:
    return len({key.removeprefix(stem).split(".")[0] for key in state_dict if key.startswith(stem)})


_NAMES = {
    r"\.visual_model\.embeddings\.position_embedding\.weight$": ".position_embedding",
    r"\.visual_model\.embeddings\.patch_embedding\.": ".patch_embedding.",
    r"\.visual_model\.post_layernorm\.": ".post_layernorm.",
    r"\.visual_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.": r".layers.\1.norm\2.",
    r"\.visual_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.": r".layers.\1.attn.proj.",
    r"\.visual_model\.encoder\.layers\.(\d+)\.self_attn\.": r".layers.\1.attn.",
    r"\.visual_model\.encoder\.layers\.(\d+)\.mlp\.": r".layers.\1.mlp.",
    r"\.to_pixel\.model\.": ".to_pixel.",
}
"""released name -> name here"""
