"""UniRepLKNet (2311.15599; with 2410.08049, its journal form): few large depthwise kernels, depth for abstraction.

A block is a depthwise convolution (13x13 with dilated branches, or 3x3), batch norm, squeeze-and-excitation, and a perceptron
with global response norm. For inference everything but the gates and the response norm is folded into two products and one
convolution (`reparameterize`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import PackedLinear, Plan
from paperworks.backbones.protocol import Backbone, initialise
from paperworks.backbones.registry import Entry
from paperworks.backbones.staged import PooledBackbone, Stage
from paperworks.errors import InputError
from paperworks.layers.channel_attention import SqueezeExcite
from paperworks.layers.convolution import DepthwiseConv2d, same_padding
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.folding import fold_after, scale_and_shift
from paperworks.layers.large_kernel import ReparamDepthwise, dilated_reparam, fast_on_cpu
from paperworks.layers.mlp import NormHead
from paperworks.layers.norms import GlobalResponseNorm, LayerNorm2d
from paperworks.layers.pretrained import load_official


class UniRepLKNetBlock(nn.Module):
    """x + drop_path(gamma * bn(W2 GRN(GELU(W1 SE(bn(dw(x)))))) on [N, C, H, W] (section 3.1).

    kernel_size: 7 and more with dilated branches, 3 and 5 plain, 0 for no spatial mixing. deploy: the folded form.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-6,
        deploy: bool = False,
        mlp_ratio: int = 4,
    ):
        super().__init__()
        self.dwconv = _spatial(channels, kernel_size, deploy)
        self.norm = nn.Identity() if deploy or kernel_size == 0 else nn.BatchNorm2d(channels)
        self.se: nn.Module = SqueezeExcite(channels, channels // 4)
        self.pwconv1 = nn.Linear(channels, mlp_ratio * channels)
        self.grn = GlobalResponseNorm(mlp_ratio * channels, bias=not deploy)
        self.pwconv2 = nn.Linear(mlp_ratio * channels, channels, bias=deploy)
        self.norm2 = nn.Identity() if deploy else nn.BatchNorm2d(channels)
        scaled = layer_scale is not None and not deploy
        self.gamma = nn.Parameter(torch.full((channels,), float(layer_scale or 0))) if scaled else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm(self.dwconv(x))).permute(0, 2, 3, 1)
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))
        y = self.norm2(y.permute(0, 3, 1, 2))
        if self.gamma is not None:
            y = y * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(y)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold in place: branches, the norm after them, GRN's shift (W2 beta is a bias), the last norm and the layer scale."""
        if isinstance(self.dwconv, ReparamDepthwise):
            self.dwconv = self.dwconv.merged()
        if isinstance(self.norm, nn.BatchNorm2d):
            assert isinstance(self.dwconv, nn.Conv2d)
            fold_after(self.dwconv, self.norm)
            self.norm = nn.Identity()
        weight, bias = self.pwconv2.weight.double(), self.pwconv2.weight.new_zeros(len(self.pwconv2.weight)).double()
        if self.pwconv2.bias is not None:
            bias = bias + self.pwconv2.bias.double()
        if self.grn.beta is not None:
            bias = bias + weight @ self.grn.beta.flatten().double()
            self.grn.beta = None
        if isinstance(self.norm2, nn.BatchNorm2d):
            found = scale_and_shift(self.norm2)
            assert found is not None
            scale, shift = found
            weight, bias = weight * scale.view(-1, 1), bias * scale + shift
            self.norm2 = nn.Identity()
        if self.gamma is not None:
            weight, bias = weight * self.gamma.double().view(-1, 1), bias * self.gamma.double()
            self.gamma = None
        self.pwconv2.weight.copy_(weight)
        self.pwconv2.bias = nn.Parameter(bias.to(self.pwconv2.weight), requires_grad=self.pwconv2.weight.requires_grad)

    def for_inference(self, plan: Plan) -> nn.Module:
        self.reparameterize()
        plan.note("large-kernel block as one convolution and two packed products")
        if isinstance(self.dwconv, nn.Conv2d):
            self.dwconv = fast_on_cpu(self.dwconv)
        return _FastBlock(self, plan.dtype)


class _FastBlock(nn.Module):
    """The folded block on channels-last maps: packed products, activation and gains in place."""

    def __init__(self, block: UniRepLKNetBlock, dtype: torch.dtype):
        super().__init__()
        self.dwconv, self.se, self.grn = block.dwconv, block.se, block.grn
        self.first = PackedLinear(block.pwconv1.weight.to(dtype), block.pwconv1.bias.to(dtype))
        self.second = PackedLinear(block.pwconv2.weight.to(dtype), block.pwconv2.bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        mixed = self.se(self.dwconv(x)).permute(0, 2, 3, 1).reshape(-1, channels)
        hidden = torch.ops.aten.gelu_(self.first(mixed)).view(batch, height, width, -1)
        hidden *= self.grn.scale(hidden)
        out = self.second(hidden.view(-1, hidden.shape[-1])).view(batch, height, width, channels)
        return out.add_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UniRepLKNet(PooledBackbone):
    """[N, in_chans, H, W], H and W at least 32, -> [N, num_classes].

    kernel_sizes: per stage a size for all its blocks or one per block; by default the paper's (3 in stage 1, 13 elsewhere, and
    in the third stage of networks with 18 or 27 blocks every second or third one, guideline 4).
    stem_stride: 4, or 2 or 1 for small images. deploy: build the folded form, which released deploy files need.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = 1e-6,
        stem_stride: int = 4,
        deploy: bool = False,
    ):
        super().__init__()
        if len(depths) != len(dims):
            raise InputError(f"dims {tuple(dims)} for depths {tuple(depths)}: one width per stage")
        if stem_stride not in (1, 2, 4):
            raise InputError(f"stem_stride {stem_stride}: there are 1, 2 and 4")
        kernels = kernels_of(depths, kernel_sizes)
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = dims[-1]
        half = dims[0] // 2
        first, second = (2 if stem_stride > 1 else 1), (2 if stem_stride > 2 else 1)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, first, 1),
            LayerNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dims[0], 3, second, 1),
            LayerNorm2d(dims[0]),
        )
        stages: list[nn.Module] = []
        self.feature_info = []
        for stage, rates in enumerate(linear_rates(drop_path_rate, depths)):
            downsample: nn.Module = nn.Identity()
            if stage:
                conv = nn.Conv2d(dims[stage - 1], dims[stage], 3, 2, 1)
                downsample = nn.Sequential(conv, LayerNorm2d(dims[stage]))
            blocks = [
                UniRepLKNetBlock(dims[stage], size, rate, layer_scale, deploy) for size, rate in zip(kernels[stage], rates)
            ]
            stages.append(Stage(downsample, blocks))
            info = {"num_chs": dims[stage], "reduction": stem_stride << stage, "module": f"stages.{stage}", "index": stage}
            self.feature_info.append(info)
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes, drop=drop_rate)
        self.apply(initialise)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files and our own, in the form of training or of deployment: which one it is shows in the keys.

        official: constructor arguments, ours or the authors'. A last layer of another number of classes than num_classes is
        left out with a warning: the network keeps its random one.
        """
        deploy = not any(TRAINED.search(key) for key in state_dict)
        given = {AUTHORS.get(name, name): value for name, value in official.items() if name not in WITHOUT_EFFECT}
        if given.setdefault("deploy", deploy) != deploy:
            form, remedy = ("deployment", "True") if deploy else ("training", "False, then reparameterize()")
            raise InputError(f"these weights are in the form of {form}: load them with deploy={remedy}")
        model = cls(**given)
        kernel = {r"\.lk_origin\.": "." if deploy else ".origin.conv."}
        return load_official(model, with_fitting_head(model, state_dict), rename={**RENAME, **kernel})

    def reparameterize(self) -> Self:
        """Fold every block in place (for inference, or to save the small form); returns the network."""
        for module in self.modules():
            if isinstance(module, UniRepLKNetBlock):
                module.reparameterize()
        if hasattr(self, "_hub_mixin_config") and isinstance(self._hub_mixin_config, dict):
            self._hub_mixin_config["deploy"] = True  # a saved folder builds this form again
        return self

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith((".grn.gamma", ".grn.beta"))}


def with_fitting_head(model: Backbone, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' or our weights (last layer `head` or `head.fc2`), where that layer's number of classes is the network's;
    otherwise with the network's own last layer in its place."""
    last = [key for key in state_dict if re.fullmatch(r"head\.(fc2\.)?(weight|bias)", key)]
    theirs = {len(state_dict[key]) for key in last}
    if theirs <= {model.num_classes}:
        return dict(state_dict)
    if model.num_classes:
        warnings.warn(
            f"the last layer of these weights has {max(theirs)} classes, the network {model.num_classes}: "
            "it starts from random weights and needs training",
            stacklevel=3,
        )
    own = {f"head.fc2.{name}": value for name, value in model.get_classifier().state_dict().items()}
    return {key: value for key, value in state_dict.items() if key not in last} | own


def kernels_of(depths: Sequence[int], given: Sequence[int | Sequence[int]] | None) -> list[list[int]]:
    """Kernel size of every block, per stage."""
    if given is None:
        third = {18: [13, 3] * 9, 27: [13, 3, 3] * 9}
        return [
            [3] * depth if stage == 0 else third.get(depth, [13] * depth) if stage == 2 else [13] * depth
            for stage, depth in enumerate(depths)
        ]
    if len(given) != len(depths):
        raise InputError(f"kernel_sizes has {len(given)} entries for {len(depths)} stages")
    found = []
    for stage, (sizes, depth) in enumerate(zip(given, depths)):
        listed = [sizes] * depth if isinstance(sizes, int) else list(sizes)
        if len(listed) == 1:
            listed *= depth
        if len(listed) != depth:
            raise InputError(f"kernel_sizes of stage {stage + 1} has {len(listed)} entries for {depth} blocks")
        found.append(listed)
    return found


def _spatial(channels: int, kernel_size: int, deploy: bool) -> nn.Module:
    if kernel_size == 0:
        return nn.Identity()
    padding = same_padding("UniRepLKNetBlock", kernel_size)
    if kernel_size >= 7 and not deploy:
        return dilated_reparam(channels, kernel_size)
    if deploy:
        return DepthwiseConv2d(channels, kernel_size)
    return nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=False)


TRAINED = re.compile(r"\.dwconv\.origin(_bn)?\.|\.(act\.1|grn)\.beta$")
"""keys of the form of training, the authors' and ours"""

AUTHORS = {"layer_scale_init_value": "layer_scale"}
"""constructor arguments of the authors' code that have another name here"""

WITHOUT_EFFECT = ("attempt_use_lk_impl", "use_sync_bn", "with_cp", "init_cfg", "head_init_scale")
"""the authors' switches for a CUDA kernel, several cards, memory and initial weights"""

RENAME = {
    r"^downsample_layers\.0\.": "stem.",
    r"^downsample_layers\.(\d+)\.": r"stages.\1.downsample.",
    r"^stages\.(\d+)\.(\d+)\.": r"stages.\1.blocks.\2.",
    r"\.dil_(conv|bn)_(k\d+_\d+)\.": r".branches.\2.\1.",
    r"\.origin_bn\.": ".origin.bn.",
    r"\.pwconv1\.1\.": ".pwconv1.",
    r"\.act\.1\.": ".grn.",
    r"\.pwconv2\.0\.": ".pwconv2.",
    r"\.pwconv2\.2\.": ".norm2.",
    r"\.se\.down\.": ".se.fc1.",
    r"\.se\.up\.": ".se.fc2.",
    r"^norm\.": "head.norm.",
    r"^head\.(weight|bias)$": r"head.fc2.\1",
}

CFG = {"first_conv": "stem.0", "classifier": "head.fc2"}


def _entry(depths: Sequence[int], width: int, top1: float, size: int = 224) -> Entry:
    cfg = {**CFG, "input_size": (3, size, size), "pool_size": (size // 32, size // 32)}
    dims = tuple(width << stage for stage in range(4))
    return Entry(UniRepLKNet, {"depths": tuple(depths), "dims": dims}, cfg, top1)


SMALL, LARGE = (3, 3, 18, 3), (3, 3, 27, 3)

ENTRIES: dict[str, Entry] = {
    "unireplknet_a": _entry((2, 2, 6, 2), 40, 77.0),
    "unireplknet_f": _entry((2, 2, 6, 2), 48, 78.6),
    "unireplknet_p": _entry((2, 2, 6, 2), 64, 80.2),
    "unireplknet_n": _entry((2, 2, 8, 2), 80, 81.6),
    "unireplknet_t": _entry(SMALL, 80, 83.2),
    "unireplknet_s": _entry(LARGE, 96, 83.9),
    "unireplknet_b": _entry(LARGE, 128, 87.4, 384),
    "unireplknet_l": _entry(LARGE, 192, 87.9, 384),
    "unireplknet_xl": _entry(LARGE, 256, 88.0, 384),
}
