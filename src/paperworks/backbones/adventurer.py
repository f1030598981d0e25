"""Adventurer (2410.07599), the state-space network with which patches shrink to single pixels (2502.03738).

Its cost is linear in the number of patches. Tokens are [N, h * w + 1, C], row by row, the class token LAST: it is the only one
that has seen all the others. In every block their mean goes first, so that the first patches know something too ("heading
average"), and in some blocks the patches run backwards. Module names are those of the released files, `mlp` apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.class_token import ClassTokenBackbone, Grid
from paperworks.backbones.fused import PackedLinear, Plan
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.mamba2 import Mamba2
from paperworks.layers.mlp import make_classifier
from paperworks.layers.positions import resized_positions
from paperworks.layers.pretrained import load_official
from paperworks.layers.stretches import by_stretches
from paperworks.layers.transformer import GatedFeedForward
from paperworks.layers.windows import exporting

Flip = Literal["official", "alternate", "never"]

EPS = 1e-5
"""of every norm"""


def flipped_layers(flip: Flip, depth: int) -> list[bool]:
    """Per layer whether patches run backwards. "official": the third and the fourth only, which is what the released weights
    were trained with; "alternate": every second layer, which is what the paper describes; "never"."""
    if flip not in ("official", "alternate", "never"):
        raise InputError(f"flip {flip!r}: there are 'official', 'alternate' and 'never'")
    return [{"official": index // 2 == 1, "alternate": index % 2 == 1, "never": False}[flip] for index in range(depth)]


def turn_patches(x: Tensor) -> Tensor:
    """All tokens but the last in reverse order."""
    if not exporting() and x.shape[1] < 2:
        raise InputError("patches can be turned around only before a class token, which comes last")
    return torch.cat((x[:, :-1].flip(1), x[:, -1:]), 1)


# --- blocks -----------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the mixer sees the mean token first."""

    def __init__(self, dim: int, hidden: int, state: int, head_dim: int, *, rms_norm: bool = True, drop_path: float = 0.0):
        super().__init__()
        norm = nn.RMSNorm if rms_norm else nn.LayerNorm
        self.mixer = Mamba2(dim, state, head_dim, eps=EPS)
        self.norm = norm(dim, eps=EPS)
        self.mlp = GatedFeedForward(dim, hidden, bias=True)
        self.norm_mlp = norm(dim, eps=EPS)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        x = x + self.drop_path(mixed(self.mixer, self.norm(x), flip))
        # paths are dropped for an image, not for a stretch of it
        return self._mlp(x) if self.training else by_stretches(self._mlp, x, self.mlp.fc1.out_features)

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))

    def for_inference(self, plan: Plan) -> nn.Module:
        return FusedBlock(self, plan) if isinstance(self.norm, nn.RMSNorm) else self


def mixed(mixer: nn.Module, h: Tensor, flip: bool) -> Tensor:
    """Heading average, mixer, its first output dropped; all on turned patches where `flip`."""
    h = turn_patches(h) if flip else h
    h = mixer(torch.cat((h.mean(1, keepdim=True), h), 1))[:, 1:]
    return turn_patches(h) if flip else h


class FusedBlock(nn.Module):
    """A block in evaluation: gains of norms inside the products, packed products, both halves of the gated MLP in one."""

    def __init__(self, block: Block, plan: Plan):
        super().__init__()
        mixer, mlp = block.mixer, block.mlp
        self.mixer = mixer
        mixer.in_proj = _after_gain(block.norm, [mixer.in_proj], plan)  # type: ignore[assignment]
        mixer.out_proj = _after_gain(mixer.norm, [mixer.out_proj], plan)  # type: ignore[assignment]
        mixer.norm = nn.RMSNorm(mixer.inner, EPS, elementwise_affine=False)
        self.into = _after_gain(block.norm_mlp, [mlp.gate, mlp.fc1], plan)
        self.out = _packed([mlp.fc2], plan)
        plan.note("Mamba-2 block as four packed products, gains of norms folded, activations and residuals in place")

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        dim = x.shape[2:]
        x = mixed(self._mix, F.rms_norm(x, dim, eps=EPS), flip).add_(x)  # type: ignore[arg-type]
        return by_stretches(self._mlp, x, 2 * self.out.weight.shape[1])

    def _mix(self, h: Tensor) -> Tensor:
        mixer = self.mixer
        return mixer.between(
            h,
            lambda part: mixer.in_proj(part.reshape(-1, part.shape[2])).view(*part.shape[:2], -1),
            lambda gated: mixer.out_proj(mixer.norm(gated).flatten(0, 1)).view(*gated.shape[:2], -1),
        )

    def _mlp(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[2])
        gate, hidden = self.into(F.rms_norm(rows, rows.shape[1:], eps=EPS)).chunk(2, -1)
        return self.out(F.silu(gate).mul_(hidden)).add_(rows).view(x.shape)


def _after_gain(norm: nn.Module, layers: Sequence[nn.Linear], plan: Plan) -> PackedLinear:
    """The layers' outputs side by side, the norm's gain taken into their weights."""
    gain = norm.weight
    assert isinstance(gain, Tensor)
    return _packed(layers, plan, gain)


def _packed(layers: Sequence[nn.Linear], plan: Plan, gain: Tensor | None = None) -> PackedLinear:
    weight = torch.cat([layer.weight.detach() for layer in layers]).double()
    weight = weight if gain is None else weight * gain.double()
    bias = torch.cat([weight.new_zeros(len(each.weight)) if each.bias is None else each.bias.detach() for each in layers])
    return PackedLinear(weight.to(plan.dtype), bias.to(plan.dtype))


# --- the network ------------------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """[N, in_chans, H, W] -> [N, dim, H / patch, W / patch]."""

    def __init__(self, patch: int, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Adventurer(ClassTokenBackbone):
    """[N, in_chans, H, W] -> [N, num_classes]. Images of another size than img_size get its positions stretched to theirs;
    patches have to divide them.

    `forward_features` gives the normed tokens [N, h * w + 1, embed_dim], class token last; `forward_intermediates` gives the
    patches of every block as maps [N, embed_dim, h, w]. mamba_d_state, headdim: of the mixer. flip: see `flipped_layers`.
    """

    class_token_last = True
    blocks_pattern = r"^layers\.(\d+)"

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        *,
        mamba_d_state: int = 64,
        headdim: int = 64,
        mlp_ratio: float = 2.5,
        rms_norm: bool = True,
        flip: Flip = "official",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if patch_size < 1 or depth < 1 or height % patch_size or width % patch_size or not height * width:
            raise InputError(
                f"patch_size={patch_size}, img_size={height}x{width}, depth={depth}: patches have to divide the image"
            )
        self.num_classes, self.in_chans, self.patch_size = num_classes, in_chans, patch_size
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens, self.num_suffix_tokens = 0, 1
        self.grid: Grid = (height // patch_size, width // patch_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, embed_dim))
        hidden = int(mlp_ratio * embed_dim)
        self.layers = nn.ModuleList(
            Block(embed_dim, hidden, mamba_d_state, headdim, rms_norm=rms_norm, drop_path=rate)
            for rate in linear_rates(drop_path_rate, (depth,))[0]
        )
        self.flips = flipped_layers(flip, depth)
        self.norm_f: nn.Module = (nn.RMSNorm if rms_norm else nn.LayerNorm)(embed_dim, eps=EPS)
        self.head = make_classifier(embed_dim, num_classes)
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"layers.{index}", "index": index}
            for index in range(depth)
        ]
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.layers:
            # every block adds to the residual stream: the more blocks, the less each
            assert isinstance(module, Block)
            module.mixer.out_proj.weight.data.div_(math.sqrt(len(self.layers)))
        conv = self.patch_embed.proj
        nn.init.trunc_normal_(conv.weight, std=(conv.in_channels * self.patch_size**2) ** -0.5)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        self.head.apply(_initialise_head)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files, or ours. Positions trained at another size are stretched to img_size; the class token's is the
        last row."""
        model = cls(**official)
        weights = dict(state_dict)
        table = weights.get("pos_embed")
        if table is not None and table.shape != model.pos_embed.shape and table.shape[2:] == model.pos_embed.shape[2:]:
            weights["pos_embed"] = _stretched(table, _square(table.shape[1] - 1), model.grid)
        return load_official(model, weights, rename=NAMES)

    # --- forward passes ---------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Image -> tokens with positions, class token last."""
        maps = self._enter(x)
        grid = (maps.shape[2], maps.shape[3])
        tokens = torch.cat((maps.flatten(2).transpose(1, 2), self.cls_token.expand(x.shape[0], -1, -1)), 1)
        # an exported graph takes any size
        same = not exporting() and grid == self.grid
        table = self.pos_embed if same else _stretched(self.pos_embed, self.grid, grid)
        return tokens + table, grid

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.shape[2] % self.patch_size or x.shape[3] % self.patch_size:
            raise InputError(
                f"an image of {x.shape[2]}x{x.shape[3]} does not divide into patches of {self.patch_size}; resize or pad it"
            )

    def steps(self, grid: Grid) -> list[tuple[nn.Module, bool]]:
        return list(zip(self.layers, self.flips))

    def last_norm(self) -> nn.Module:
        return self.norm_f

    def init_head(self, head: nn.Module) -> None:
        head.apply(_initialise_head)

    # --- the rest of timm's protocol --------------------------------------------------------------------------------------

    def keep_levels(self, count: int) -> None:
        self.layers, self.flips = self.layers[:count], self.flips[:count]
        self.feature_info = self.feature_info[:count]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^cls_token|^pos_embed|^patch_embed", "blocks": [(self.blocks_pattern, None), (r"^norm_f", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Positions, class token, and what governs the state."""
        ends = ("pos_embed", "cls_token", "A_log", ".D", "dt_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(ends)}


def _stretched(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions [1, h * w + 1, C] for another grid; the last row, the class token's, stays."""
    patches = resized_positions(table[0, :-1].unflatten(0, old), new)
    return torch.cat((patches, table[0, -1:]))[None]


def _square(count: int) -> Grid:
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"the file's pos_embed has {count} patches, which is no square grid")
    return side, side


def _initialise_head(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


NAMES = {r"\.mlp\.w1\.": ".mlp.gate.", r"\.mlp\.w2\.": ".mlp.fc1.", r"\.mlp\.w3\.": ".mlp.fc2."}
"""the authors' names of the gated MLP's layers"""

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 256},
    "small": {"embed_dim": 512},
    "base": {"embed_dim": 768},
    "large": {"embed_dim": 1024, "depth": 24},
}
TOP1 = {
    "tiny_patch16_224": 78.2,
    "small_patch16_224": 81.8,
    "base_patch16_224": 82.6,
    "large_patch16_224": 83.4,
    "base_patch16_384": 84.2,
    "base_patch8_224": 83.9,
    "base_patch8_448": 84.8,
    "tiny_patch1_64": 77.4,
    "tiny_patch1_128": 80.7,
    "tiny_patch1_224": 81.9,
    "small_patch1_64": 80.5,
    "small_patch1_128": 81.4,
    "small_patch1_224": 83.8,
    "base_patch1_64": 80.9,
    "base_patch1_128": 82.4,
    "base_patch1_224": 84.6,
}
"""by size, patch and image as the authors print it"""


def _entry(name: str, top1: float) -> Entry:
    size, patch, pixels = name.split("_")
    arguments = {**SIZES[size], "patch_size": int(patch.removeprefix("patch")), "img_size": int(pixels)}
    crop = 0.875 if pixels == "64" else 1.0
    cfg = {"first_conv": "patch_embed.proj", "classifier": "head", "pool_size": None, "crop_pct": crop}
    return Entry(Adventurer, arguments, {**cfg, "input_size": (3, int(pixels), int(pixels))}, top1)


ENTRIES: dict[str, Entry] = {f"adventurer_{name}": _entry(name, top1) for name, top1 in TOP1.items()}
