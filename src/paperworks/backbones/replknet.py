"""RepLKNet (2203.06717, taken up by 2410.08049): 31x31 depthwise kernels with a parallel 5x5 that merges into them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import Plan
from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import Entry
from paperworks.backbones.unireplknet import with_fitting_head
from paperworks.errors import InputError
from paperworks.layers.convolution import ConvNorm, DepthwiseConv2d
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.folding import fold_after, fold_before
from paperworks.layers.large_kernel import ReparamDepthwise, fast_on_cpu
from paperworks.layers.mlp import PoolHead
from paperworks.layers.pretrained import load_official


class LargeKernelBlock(nn.Module):
    """x + drop_path(bn(1x1(relu(dw(relu(bn(1x1(bn(x)))))))): the identity shortcut is vital (guideline 2)."""

    def __init__(
        self, channels: int, width: int, kernel_size: int, small_kernel: int | None, drop_path: float, deploy: bool = False
    ):
        super().__init__()
        self.prelkb_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = ConvNorm(channels, width, 1)
        branches = [] if small_kernel is None else [(small_kernel, 1)]
        self.large_kernel: nn.Module = (
            DepthwiseConv2d(width, kernel_size) if deploy else ReparamDepthwise(width, kernel_size, branches)
        )
        self.pw2 = ConvNorm(width, channels, 1, activation=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw1(self.prelkb_bn(x))
        return x + self.drop_path(self.pw2(F.relu(self.large_kernel(y))))

    def reparameterize(self) -> None:
        if isinstance(self.large_kernel, ReparamDepthwise):
            self.large_kernel = self.large_kernel.merged()

    def for_inference(self, plan: Plan) -> nn.Module:
        self.reparameterize()
        assert isinstance(self.large_kernel, nn.Conv2d)
        self.large_kernel = fast_on_cpu(self.large_kernel)
        self.prelkb_bn = _fold_around(self.prelkb_bn, self.pw1, self.pw2)
        plan.note("large-kernel block as three convolutions")
        return self


class ConvFFN(nn.Module):
    """x + drop_path(bn(1x1(gelu(bn(1x1(bn(x)))))))."""

    def __init__(self, channels: int, hidden: int, drop_path: float):
        super().__init__()
        self.preffn_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = ConvNorm(channels, hidden, 1, activation=False)
        self.pw2 = ConvNorm(hidden, channels, 1, activation=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.pw2(F.gelu(self.pw1(self.preffn_bn(x)))))

    def for_inference(self, plan: Plan) -> nn.Module:
        self.preffn_bn = _fold_around(self.preffn_bn, self.pw1, self.pw2)
        plan.note("perceptron as two convolutions")
        return self


def _fold_around(before: nn.Module, *layers: ConvNorm) -> nn.Module:
    """Fold each layer's norm, and the norm before the first; what takes that norm's place."""
    for layer in layers:
        if isinstance(layer.bn, nn.BatchNorm2d):
            fold_after(layer.conv, layer.bn)
            layer.bn = nn.Identity()
    if isinstance(before, nn.BatchNorm2d) and fold_before(before, layers[0].conv):
        return nn.Identity()
    return before


class RepLKStage(nn.Module):
    """Pairs of a large-kernel block and a perceptron."""

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class RepLKNet(Backbone):
    """[N, in_chans, H, W], H and W at least 32, -> [N, num_classes].

    large_kernel_sizes, layers, channels: per stage. small_kernel: of the parallel branch, None for none (XL). dw_ratio: width
    of the depthwise layers over the stage's. stem_stride 4, or 2 or 1 for small images. deploy: the merged form.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        large_kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        layers: Sequence[int] = (2, 2, 18, 2),
        channels: Sequence[int] = (128, 256, 512, 1024),
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        ffn_ratio: int = 4,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        stem_stride: int = 4,
        deploy: bool = False,
    ):
        super().__init__()
        if not len(large_kernel_sizes) == len(layers) == len(channels):
            raise InputError(
                f"large_kernel_sizes {tuple(large_kernel_sizes)}, layers {tuple(layers)}, channels {tuple(channels)}: "
                "one entry per stage each"
            )
        if stem_stride not in (1, 2, 4):
            raise InputError(f"stem_stride {stem_stride}: there are 1, 2 and 4")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        base, first, last = channels[0], (2 if stem_stride > 1 else 1), (2 if stem_stride > 2 else 1)
        self.stem = nn.Sequential(
            ConvNorm(in_chans, base, 3, first),
            ConvNorm(base, base, 3, groups=base),
            ConvNorm(base, base, 1),
            ConvNorm(base, base, 3, last, groups=base),
        )
        rates = linear_rates(drop_path_rate, layers)
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        self.feature_info = []
        for stage, (size, width) in enumerate(zip(large_kernel_sizes, channels)):
            blocks: list[nn.Module] = []
            for rate in rates[stage]:  # the same for both halves of a pair
                blocks.append(LargeKernelBlock(width, int(width * dw_ratio), size, small_kernel, rate, deploy))
                blocks.append(ConvFFN(width, width * ffn_ratio, rate))
            self.stages.append(RepLKStage(blocks))
            if stage + 1 < len(layers):
                after = channels[stage + 1]
                self.transitions.append(nn.Sequential(ConvNorm(width, after, 1), ConvNorm(after, after, 3, 2, groups=after)))
            info = {"num_chs": width, "reduction": stem_stride << stage, "module": f"stages.{stage}", "index": stage}
            self.feature_info.append(info)
        self.norm: nn.Module = nn.BatchNorm2d(channels[-1])  # part of the head: maps are taken before it
        self.head = PoolHead(channels[-1], num_classes, drop=drop_rate)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' files and our own, in the form of training or merged: which one it is shows in the keys.

        official: constructor arguments, ours or the authors'. A last layer of another number of classes than num_classes is
        left out with a warning: the network keeps its random one.
        """
        deploy = any(MERGED.search(key) for key in state_dict)
        given = {AUTHORS.get(name, name): value for name, value in official.items() if name not in WITHOUT_EFFECT}
        if given.setdefault("deploy", deploy) != deploy:
            form, remedy = ("merged", "True") if deploy else ("in the form of training", "False, then reparameterize()")
            raise InputError(f"these weights are {form}: load them with deploy={remedy}")
        model = cls(**given)
        rename = {
            r"large_kernel\.lkb_origin\.": "large_kernel.origin.",
            r"large_kernel\.small_conv\.": f"large_kernel.branches.k{given.get('small_kernel', 5)}_1.",
            r"large_kernel\.lkb_reparam\.": "large_kernel.",
            r"^head\.(weight|bias)$": r"head.fc2.\1",
        }
        return load_official(model, with_fitting_head(model, state_dict), rename=rename)

    def reparameterize(self) -> Self:
        """Merge every small kernel into its large one, in place; returns the network."""
        for module in self.modules():
            if isinstance(module, LargeKernelBlock):
                module.reparameterize()
        if hasattr(self, "_hub_mixin_config") and isinstance(self._hub_mixin_config, dict):
            self._hub_mixin_config["deploy"] = True
        return self

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    blocks_pattern = r"^stages\.(\d+)\.blocks\.(\d+)"

    def stem_module(self) -> nn.Module:
        return self.stem

    def levels(self) -> list[list[nn.Module]]:
        found: list[list[nn.Module]] = []
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, RepLKStage)
            found.append([*([self.transitions[number - 1]] if number else []), *stage.blocks])
        return found

    def keep_levels(self, count: int) -> None:
        self.stages, self.transitions = self.stages[:count], self.transitions[: count - 1]
        self.norm = nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(self.norm(x), pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        return self.head.fc2

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.head = PoolHead(self.num_features, num_classes, global_pool or "avg", self.drop_rate)
        self.head_hidden_size = self.head.num_features


MERGED = re.compile(r"large_kernel\.(lkb_reparam\.)?(weight|bias)$")
"""keys of the merged form, the authors' and ours"""

AUTHORS = {"in_channels": "in_chans", "small_kernel_merged": "deploy"}
"""constructor arguments of the authors' code that have another name here"""

WITHOUT_EFFECT = ("use_checkpoint", "use_sync_bn")
"""the authors' switches for memory and several cards"""

CFG = {"first_conv": "stem.0.conv", "classifier": "head.fc2"}


def _at(size: int) -> dict[str, Any]:
    return {**CFG, "input_size": (3, size, size), "pool_size": (size // 32, size // 32), "crop_pct": 1.0}


ENTRIES: dict[str, Entry] = {
    "replknet_31b": Entry(RepLKNet, {}, CFG),
    "replknet_31l": Entry(RepLKNet, {"channels": (192, 384, 768, 1536)}, _at(384)),
    "replknet_xl": Entry(
        RepLKNet,
        {
            "large_kernel_sizes": (27, 27, 27, 13),
            "channels": (256, 512, 1024, 2048),
            "small_kernel": None,
            "dw_ratio": 1.5,
        },
        _at(320),
    ),
}
