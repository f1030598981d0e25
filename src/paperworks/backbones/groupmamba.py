"""GroupMamba (2407.13772): four groups of channels, each scanned in a direction of its own, modulated by channel affinities.

Maps are [N, C, H, W] between modules and rows of channels within them, so that channels-last maps are never copied. Module
names are those of the released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import PackedLinear, Plan
from paperworks.backbones.fused_tokens import packed, packed_after_norm
from paperworks.backbones.protocol import Backbone, per_stage
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.cross_scan import GroupScan, GroupWeights, ScanWeights, group_scan, group_weights
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.mlp import make_classifier
from paperworks.layers.norms import LayerNorm2d
from paperworks.layers.pretrained import load_official
from paperworks.layers.transformer import FeedForward

EPS = 1e-5
"""of every layer norm"""


# --- the mixer --------------------------------------------------------------------------------------------------------------


class GroupMambaLayer(GroupScan):
    """Rows [N, H, W, dim] -> the same (section 3.3, figure 3a).

    out = proj(norm(scan(norm(x)) * skip_scale * norm(x) * affinity)): one norm, used twice; the scan's result is multiplied
    with its input; the affinity of a channel comes from the means of all (equation 4). affinity: False leaves it out.
    """

    def __init__(self, dim: int, directions: Sequence[int] = (1, 2, 3, 4), *, affinity: bool = True):
        super().__init__(dim, directions)
        self.norm: nn.Module = nn.LayerNorm(dim, eps=EPS)
        self.affinity = affinity
        if affinity:
            if dim < 16:
                raise InputError(
                    f"{dim} channels leave none when they are reduced 16 times for the affinities; take 16 or more"
                )
            self.fc1 = nn.Linear(dim, dim // 16)
            self.fc2 = nn.Linear(dim // 16, dim)
        self.proj = nn.Linear(dim, dim)
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(self.modulated(self.norm(x), group_weights(self.groups()))))

    def modulated(self, x: Tensor, weights: GroupWeights) -> Tensor:
        """What lies between the two uses of the norm."""
        scale: Tensor = self.skip_scale
        if self.affinity:
            scale = scale * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((1, 2))))))[:, None, None]
        return group_scan(x, weights, self.directions) * (x * scale)

    def for_inference(self, plan: Plan) -> nn.Module:
        return FrozenMambaLayer(self, plan)


class FrozenMambaLayer(nn.Module):
    """The layer with the groups' weights put side by side once, its norm's second use inside the product behind it."""

    def __init__(self, layer: GroupMambaLayer, plan: Plan):
        super().__init__()
        weights = group_weights(layer.groups())
        for name, value in [*weights._asdict().items(), *weights.scan._asdict().items()]:
            if isinstance(value, Tensor):
                self.register_buffer(f"_{name}", value.detach().contiguous())
        assert isinstance(layer.norm, nn.LayerNorm) and isinstance(layer.proj, nn.Linear)
        self.proj = packed_after_norm(layer.norm, layer.proj, plan)
        for number in range(1, 5):
            delattr(layer, f"mamba_g{number}")
        layer.proj = nn.Identity()  # type: ignore[assignment]
        self.layer = layer
        plan.note("four scans with their weights side by side")

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.layer.modulated(self.layer.norm(x), self._weights()).view(-1, x.shape[3])
        return self.proj(F.layer_norm(mixed, mixed.shape[1:], eps=EPS)).view(x.shape)

    def _weights(self) -> GroupWeights:
        def kept(name: str) -> Tensor:
            return self.get_buffer(f"_{name}")

        scan = ScanWeights(*(kept(name) for name in ScanWeights._fields))
        return GroupWeights(**{name: kept(name) for name in GroupWeights._fields if name != "scan"}, scan=scan)


# --- blocks -----------------------------------------------------------------------------------------------------------------


class Depthwise(nn.Module):
    """3x3, of rows [N, H, W, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvFeedForward(nn.Module):
    """Linear, depthwise 3x3, GELU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1: nn.Module = nn.Linear(dim, hidden)
        self.dwconv = Depthwise(hidden)
        self.fc2: nn.Module = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """[N, C, H, W]: x + attn(x), then x + mlp(norm(x)). The mixer norms its input itself."""

    def __init__(self, dim: int, hidden: int, directions: Sequence[int], *, affinity: bool = True, drop_path: float = 0.0):
        super().__init__()
        self.attn: nn.Module = GroupMambaLayer(dim, directions, affinity=affinity)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = ConvFeedForward(dim, hidden)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)
        rows = rows + self.drop_path(self.attn(rows))
        rows = rows + self.drop_path(self.mlp(self.norm2(rows)))
        return rows.permute(0, 3, 1, 2)

    def for_inference(self, plan: Plan) -> nn.Module:
        return FusedBlock(self, plan)


class FusedBlock(nn.Module):
    """A block in evaluation: norms inside packed products, activation and residuals in place."""

    def __init__(self, block: Block, plan: Plan):
        super().__init__()
        assert isinstance(block.attn, GroupMambaLayer)
        self.attn = block.attn.for_inference(plan)
        self.fc1, self.fc2 = _first(block.norm2, block.mlp.fc1, plan), _second(block.mlp.fc2, plan)
        self.dwconv = block.mlp.dwconv
        plan.note("feed-forward as two packed products, norm folded, activation and residual in place")

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)
        shape = rows.shape
        rows = self.attn(rows).add_(rows).view(-1, shape[3])
        hidden = self.fc1(F.layer_norm(rows, shape[3:], eps=EPS))
        hidden = torch.ops.aten.gelu_(self.dwconv(hidden.view(*shape[:3], -1)))
        return self.fc2(hidden.reshape(len(rows), -1)).add_(rows).view(shape).permute(0, 3, 1, 2)


def _first(norm: nn.Module, layer: nn.Module, plan: Plan) -> PackedLinear:
    assert isinstance(norm, nn.LayerNorm) and isinstance(layer, nn.Linear)
    return packed_after_norm(norm, layer, plan)


def _second(layer: nn.Module, plan: Plan) -> PackedLinear:
    assert isinstance(layer, nn.Linear)
    return packed(layer, plan)


class ClassBlock(nn.Module):
    """The mean of a map [N, 1, 1, dim] goes through a mixer and an MLP; both results are normed before they are added."""

    def __init__(self, dim: int, hidden: int, directions: Sequence[int], *, affinity: bool = True):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.attn = GroupMambaLayer(dim, directions, affinity=affinity)
        self.mlp = FeedForward(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.mlp(self.norm2(x))


class Stem(nn.Module):
    """[N, in_chans, H, W] -> [N, dim, H / 4, W / 4]: a 7x7 of stride 2, two 3x3, a 3x3 of stride 2, norm. strides: of first and
    last."""

    def __init__(self, in_chans: int, hidden: int, dim: int, strides: Sequence[int] = (2, 2)):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, size, stride in ((in_chans, 7, strides[0]), (hidden, 3, 1), (hidden, 3, 1)):
            layers += [nn.Conv2d(inputs, hidden, size, stride, size // 2, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(True)]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(hidden, dim, 3, strides[1], 1)
        self.norm = LayerNorm2d(dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(self.conv(x)))


class Downsample(nn.Module):
    """Halving between stages."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.norm = LayerNorm2d(outputs, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


# --- the network ------------------------------------------------------------------------------------------------------------


class GroupMamba(Backbone):
    """[N, in_chans, H, W], any size from 32 pixels up (with the default strides), -> [N, num_classes].

    Per stage: embed_dims, depths, mlp_ratios. distillation: a second classifier that learns from a teacher; evaluation takes
    the mean of both. stem_strides: (2, 2) in the paper, (1, 1) or (1, 2) for small images. directions, affinity: see
    `GroupMambaLayer`. Feature maps of all stages but the last are normed.
    """

    blocks_pattern = r"^block(\d+)\.(\d+)"

    def __init__(
        self,
        stem_hidden_dim: int = 32,
        embed_dims: Sequence[int] = (64, 128, 348, 448),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        depths: Sequence[int] = (3, 4, 9, 3),
        *,
        distillation: bool = True,
        directions: Sequence[int] = (1, 2, 3, 4),
        affinity: bool = True,
        stem_strides: Sequence[int] = (2, 2),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        count = len(depths)
        dims, ratios = per_stage("embed_dims", list(embed_dims), count), per_stage("mlp_ratios", list(mlp_ratios), count)
        if len(stem_strides) != 2:
            raise InputError(f"stem_strides {tuple(stem_strides)}: two, of the stem's first and last convolution")
        self.num_classes, self.in_chans, self.distillation = num_classes, in_chans, distillation
        self.feature_info = []
        for index, rates in enumerate(linear_rates(drop_path_rate, depths)):
            dim, number = dims[index], index + 1
            first = index == 0
            embed = Stem(in_chans, stem_hidden_dim, dim, stem_strides) if first else Downsample(dims[index - 1], dim)
            hidden = int(dim * ratios[index])
            blocks = [Block(dim, hidden, directions, affinity=affinity, drop_path=rate) for rate in rates]
            self.add_module(f"patch_embed{number}", embed)
            self.add_module(f"block{number}", nn.ModuleList(blocks))
            self.add_module(f"norm{number}", LayerNorm2d(dim, EPS) if number < count else nn.LayerNorm(dim, eps=EPS))
            reduction = stem_strides[0] * stem_strides[1] * 2**index
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"norm{number}", "index": index})
        self.num_features = self.head_hidden_size = dims[-1]
        last = ClassBlock(dims[-1], int(dims[-1] * ratios[-1]), directions, affinity=affinity)
        self.post_network: nn.Module = nn.ModuleList([last])
        self.head = make_classifier(self.num_features, num_classes)
        self.dist_head = make_classifier(self.num_features, num_classes) if distillation else nn.Identity()
        self.apply(_initialise)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files. A teacher's classifier for other classes, or one that is not asked for, is left out."""
        model = cls(**official)
        weights, own = dict(state_dict), model.state_dict()
        for name in ("dist_head.weight", "dist_head.bias"):
            if name in own and (name not in weights or weights[name].shape != own[name].shape):
                weights[name] = own[name]
        return load_official(model, weights, ignore=() if model.distillation else ("dist_head.",))

    # --- forward passes ---------------------------------------------------------------------------------------------------

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last map -> class block of its mean, norm, classifier; with distillation the mean of both classifiers."""
        token = self._token(x)
        if pre_logits or not self.distillation:
            return token if pre_logits else self.head(token)
        return (self.head(token) + self.dist_head(token)) / 2

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image -> logits of the classifier, and of the one that learns from the teacher."""
        if not self.distillation:
            raise InputError("this network has no classifier for a teacher: build it with distillation=True")
        token = self._token(self._features(x))
        return self.head(token), self.dist_head(token)

    def _token(self, x: Tensor) -> Tensor:
        token = x.mean((2, 3))[:, None, None]
        assert isinstance(self.post_network, nn.ModuleList)
        for block in self.post_network:
            token = block(token)
        return self.get_submodule(f"norm{len(self.feature_info)}")(token)[:, 0, 0]

    # --- the rest of timm's protocol --------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return self.get_submodule("patch_embed1")

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        count = len(self.feature_info)
        found: list[list[nn.Module]] = []
        for number in range(1, count + 1):
            blocks = self.get_submodule(f"block{number}")
            assert isinstance(blocks, nn.ModuleList)
            before = [] if number == 1 else [self.get_submodule(f"patch_embed{number}")]
            norm = self.get_submodule(f"norm{number}")
            found.append([*before, *blocks, *([norm] if isinstance(norm, LayerNorm2d) else [])])
        return found

    def keep_levels(self, count: int) -> None:
        for number in range(count + 1, len(self.feature_info) + 1):
            for name in ("patch_embed", "block", "norm"):
                delattr(self, f"{name}{number}")
        self.feature_info = self.feature_info[:count]
        self.post_network = nn.ModuleList()

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        if global_pool not in (None, "", "avg"):
            raise InputError(f"global_pool {global_pool!r}: GroupMamba classifies by the mean of its map, 'avg'")
        some = next(self.parameters())
        self.num_classes = num_classes
        self.head = make_classifier(self.head_hidden_size, num_classes).to(some.device, some.dtype)
        if self.distillation:
            self.dist_head = make_classifier(self.head_hidden_size, num_classes).to(some.device, some.dtype)
        for head in (self.head, self.dist_head):
            head.apply(_initialise)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return {"stem": r"^patch_embed1", "blocks": r"^(?:block|patch_embed|norm)(\d+)"}
        later = (r"^(?:patch_embed|norm)(\d+)", (0,))
        return {"stem": r"^patch_embed1", "blocks": [later, (self.blocks_pattern, None), (r"^post_network", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """What governs the state."""
        return {name for name, _ in self.named_parameters() if name.endswith(("A_logs", "Ds"))}


def _initialise(module: nn.Module) -> None:
    """Linear layers from a truncated normal of deviation 0.02, convolutions from N(0, sqrt(2 / fan out)), no biases. What the
    scans learn keeps its own start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


CFG = {"first_conv": "patch_embed1.conv.0", "classifier": "head"}

ENTRIES: dict[str, Entry] = {
    "groupmamba_tiny": Entry(GroupMamba, {}, CFG, 83.3),
    "groupmamba_small": Entry(
        GroupMamba, {"stem_hidden_dim": 64, "embed_dims": (64, 128, 348, 512), "depths": (3, 4, 16, 3)}, CFG, 83.9
    ),
    "groupmamba_base": Entry(
        GroupMamba, {"stem_hidden_dim": 64, "embed_dims": (96, 192, 424, 512), "depths": (3, 6, 21, 3)}, CFG, 84.5
    ),
}
