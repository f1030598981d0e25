"""ResFormer (2212.00776): a vision transformer for any image size, because none of its positions is tied to a grid.

Global positions (section 3.3) are a sine map of the grid, stretched to its size, through a depthwise convolution; local ones
are a depthwise convolution of the values within every attention. Tokens are [N, 1 + h * w, C], the class token first. How it is
trained over several sizes at once is `objectives.multi_resolution`. Module names are those of the released files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.class_token import ClassTokenBackbone, Grid
from paperworks.backbones.fused import Plan
from paperworks.backbones.fused_tokens import FusedMlp, packed, packed_after_norm
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.convolution import DepthwiseConv2d
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.mlp import make_classifier
from paperworks.layers.pretrained import load_official
from paperworks.layers.transformer import Attention, FeedForward

EPS = 1e-6
"""of every layer norm"""


# --- positions --------------------------------------------------------------------------------------------------------------


def sine_map(grid: Grid, dim: int, device: torch.device | None = None) -> Tensor:
    """[dim, h, w]: the first half of the channels encodes the row, the second half the column; sines and cosines alternate.

    Row i of h stands at 2 pi i / h, i = 1 ... h: the whole map is passed through once whatever its size. The frequencies fall
    from 1 as 10000^(-2j / (dim / 2)).
    """
    frequencies = 10000 ** (-torch.arange(dim // 4, dtype=torch.float32, device=device) * 4 / dim)

    def along(count: int) -> Tensor:
        places = torch.arange(1, count + 1, dtype=torch.float32, device=device) / (count + 1e-6) * (2 * math.pi)
        angles = places[:, None] * frequencies
        return torch.stack((angles.sin(), angles.cos()), 2).flatten(1).T

    height, width = grid
    rows, columns = along(height)[:, :, None], along(width)[:, None, :]
    return torch.cat((rows.expand(-1, -1, width), columns.expand(-1, height, -1)))


class GlobalPosition(nn.Module):
    """Grid -> positions [1, h * w, dim]: the sine map through a 3x3 depthwise convolution. Maps are kept per grid."""

    KEPT = 32
    """grids; an evaluation goes through a dozen sizes again and again"""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.embed_layer = DepthwiseConv2d(dim, 3)
        self._maps: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, grid: Grid) -> Tensor:
        return self.embed_layer(self._map(grid)[None]).flatten(2).transpose(1, 2)

    def _map(self, grid: Grid) -> Tensor:
        weight = self.embed_layer.weight
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return sine_map(grid, self.dim, weight.device).to(weight.dtype)
        key = (*grid, weight.dtype, weight.device)
        if key not in self._maps:
            if len(self._maps) >= self.KEPT:
                self._maps.pop(next(iter(self._maps)))
            with torch.inference_mode(False), torch.no_grad():  # what inference mode makes could not be trained with later
                self._maps[key] = sine_map(grid, self.dim, weight.device).to(weight.dtype)
        return self._maps[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}


class LocalAttention(Attention):
    """Self-attention whose result gets a 3x3 depthwise convolution of the patches' values added, before the projection.

    All heads share the kernels [head_dim, 1, 3, 3], which start at zero. The class token gets nothing added.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True, dropout: float = 0.0, attention_dropout: float = 0.0):
        super().__init__(dim, heads, qkv_bias=qkv_bias, dropout=dropout)
        self.attention_dropout = attention_dropout
        self.get_v = DepthwiseConv2d(self.head_dim, 3)
        nn.init.zeros_(self.get_v.weight)
        assert self.get_v.bias is not None
        nn.init.zeros_(self.get_v.bias)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        return F.dropout(self.proj(self.mix(self.qkv(x), grid)), self.dropout, self.training)

    def mix(self, qkv: Tensor, grid: Grid) -> Tensor:
        """[N, 1 + h * w, 3C] -> [N, 1 + h * w, C]: softmax(q k / sqrt(d)) v + conv(v)."""
        q, k, v = qkv.unflatten(2, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2)
        local = self.local(qkv[:, 1:, -mixed.shape[2] :], grid)
        if not torch.is_grad_enabled():
            mixed[:, 1:] += local
            return mixed
        return mixed + F.pad(local, (0, 0, 1, 0))

    def local(self, values: Tensor, grid: Grid) -> Tensor:
        """[N, h * w, C] -> the same. Patches of all channels in a row are a channels-last map already: one convolution with the
        kernels repeated for every head needs no transposition."""
        assert self.get_v.bias is not None
        maps = values.transpose(1, 2).unflatten(2, grid)
        weight, bias = self.get_v.weight.repeat(self.heads, 1, 1, 1), self.get_v.bias.repeat(self.heads)
        return F.conv2d(maps, weight, bias, padding=1, groups=len(weight)).flatten(2).transpose(1, 2)


# --- blocks -----------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = LocalAttention(dim, heads, qkv_bias=qkv_bias, dropout=dropout, attention_dropout=attention_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim, hidden, dropout=dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def for_inference(self, plan: Plan) -> nn.Module:
        return FusedLocalBlock(self, plan)


class FusedLocalBlock(nn.Module):
    """A block in evaluation: norms' gains and shifts inside the products, packed products, GELU and residuals in place."""

    def __init__(self, block: Block, plan: Plan):
        super().__init__()
        attn = block.attn
        assert isinstance(attn.proj, nn.Linear)
        self.qkv = packed_after_norm(block.norm1, attn.qkv, plan)
        self.proj = packed(attn.proj, plan)
        self.mlp = FusedMlp(block.norm2, block.mlp.fc1, block.mlp.fc2, plan)
        del attn.qkv, attn.proj
        self.attn = attn  # for its mix
        plan.note("transformer block as four packed products, norms folded, activation and residuals in place")

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        count, tokens, dim = x.shape
        rows = x.reshape(-1, dim)
        qkv = self.qkv(F.layer_norm(rows, (dim,), eps=EPS)).view(count, tokens, -1)
        mixed = self.attn.mix(qkv, grid).reshape(-1, dim)
        return self.mlp(self.proj(mixed).add_(rows)).view(count, tokens, dim)


# --- the network ------------------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """[N, in_chans, H, W] -> [N, dim, ceil(H / patch), ceil(W / patch)]; zeros complete the patches on the right and below."""

    def __init__(self, patch: int, in_chans: int, dim: int):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        # the stride leaves out what of this padding makes no whole patch; an exported graph has it for every size
        fixed = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if fixed or x.shape[2] % self.patch or x.shape[3] % self.patch:
            x = F.pad(x, (0, self.patch - 1, 0, self.patch - 1))
        return self.proj(x)


class ResFormer(ClassTokenBackbone):
    """[N, in_chans, H, W], any size of at least one patch, -> [N, num_classes].

    `forward_features` gives the normed tokens [N, 1 + h * w, embed_dim] as timm's vision transformers do, class token first;
    `forward_intermediates` gives the patches of every block as maps [N, embed_dim, h, w].

    drop_rate: after the positions, of projections and MLPs. drop_path_rate: of the last block, growing linearly from 0.
    """

    blocks_pattern = r"^blocks\.(\d+)"

    def __init__(
        self,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        _check(patch_size, embed_dim, depth, num_heads)
        self.num_classes, self.in_chans, self.patch_size = num_classes, in_chans, patch_size
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed: nn.Module = GlobalPosition(embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                int(embed_dim * mlp_ratio),
                qkv_bias=qkv_bias,
                dropout=drop_rate,
                attention_dropout=attn_drop_rate,
                drop_path=rate,
            )
            for rate in linear_rates(drop_path_rate, (depth,))[0]
        )
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=EPS)
        self.head = make_classifier(embed_dim, num_classes)
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{index}", "index": index}
            for index in range(depth)
        ]
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(_initialise)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files. Their `img_size` changes nothing in the network and is passed over."""
        official.pop("img_size", None)
        return load_official(cls(**official), state_dict)

    # --- forward passes ---------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Image -> tokens with global positions; the class token has none."""
        maps = self._enter(x)
        grid = (maps.shape[2], maps.shape[3])
        patches = maps.flatten(2).transpose(1, 2) + self.pos_embed(grid)
        tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), patches), 1)
        return self.pos_drop(tokens), grid

    def steps(self, grid: Grid) -> list[tuple[nn.Module, Grid]]:
        return [(block, grid) for block in self.blocks]

    def last_norm(self) -> nn.Module:
        return self.norm

    def init_head(self, head: nn.Module) -> None:
        head.apply(_initialise)

    # --- the rest of timm's protocol --------------------------------------------------------------------------------------

    def keep_levels(self, count: int) -> None:
        self.blocks = self.blocks[:count]
        self.feature_info = self.feature_info[:count]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^cls_token|^pos_embed|^patch_embed", "blocks": [(self.blocks_pattern, None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Positions and class token, as in the authors' training."""
        parts = ("pos_embed", "get_v", "cls_token")
        return {name for name, _ in self.named_parameters() if any(part in name for part in parts)}


def _check(patch: int, dim: int, depth: int, heads: int) -> None:
    if patch < 1 or depth < 1 or heads < 1:
        raise InputError(f"patch_size={patch}, depth={depth}, num_heads={heads}: each is at least 1")
    if dim % 4:
        raise InputError(f"embed_dim={dim}: rows and columns take sines and cosines each, so it divides by 4")
    if dim % heads or dim // heads % 2:
        raise InputError(f"embed_dim={dim} with num_heads={heads}: every head needs the same even width")


def _initialise(module: nn.Module) -> None:
    """Linear layers from a truncated normal of deviation 0.02; convolutions keep torch's own start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


CFG = {"first_conv": "patch_embed.proj", "classifier": "head", "pool_size": None}

ENTRIES: dict[str, Entry] = {
    # accuracies at 224 pixels of the weights trained at 128, 160 and 224
    "resformer_tiny_patch16": Entry(ResFormer, {"embed_dim": 192, "num_heads": 3}, CFG, 73.85),
    "resformer_small_patch16": Entry(ResFormer, {"embed_dim": 384, "num_heads": 6}, CFG, 82.16),
    "resformer_base_patch16": Entry(ResFormer, {"embed_dim": 768, "num_heads": 12}, CFG, 82.72),
}
