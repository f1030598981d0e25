"""TiC (2310.04134): a network whose only spatial attention is MSA-Conv, so that images of any size go through unchanged.

The authors released the operator and one layer, no network. Stages, widths, and how the cyclic shifts and the inter-pooling are
placed follow the abstract's words and are ours; the names say so by carrying no number of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.protocol import initialise, per_stage
from paperworks.backbones.registry import Entry
from paperworks.backbones.staged import PooledBackbone, Stage
from paperworks.errors import InputError
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.mlp import ConvMlp, NormHead
from paperworks.layers.msa_conv import MSAConv2d, as_pair
from paperworks.layers.norms import LayerNorm2d


class TiCBlock(nn.Module):
    """x + proj(mix(norm(x))), then x + mlp(norm(x)), on [N, C, H, W].

    mixing "attention" is MSA-Conv, "convolution" a plain depthwise one of the same kernel (the ablation's other side). shift:
    see `MSAConv2d`. pool: the mixing happens on a map averaged over pool x pool cells and is spread back (inter-pooling): a
    window then covers pool times more in each direction.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        kernel_size: int = 3,
        dilation: int = 1,
        kind: str = "standard",
        shift: int = 0,
        pool: int = 1,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mixing: str = "attention",
    ):
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        if mixing == "attention":
            self.attn: nn.Module = MSAConv2d(channels, kernel_size, dilation, heads, kind, shift)  # type: ignore[arg-type]
        elif mixing == "convolution":
            rows, columns = as_pair(kernel_size)
            padding = (dilation * (rows // 2), dilation * (columns // 2))
            self.attn = nn.Conv2d(channels, channels, (rows, columns), padding=padding, dilation=dilation, groups=channels)
        else:
            raise InputError(f"mixing {mixing!r}: there are 'attention' and 'convolution'")
        self.proj = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.mlp = ConvMlp(channels, int(mlp_ratio * channels))
        self.pool = pool
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.pool > 1:
            y = F.avg_pool2d(y, self.pool, ceil_mode=True, count_include_pad=False)
            y = F.interpolate(self.proj(self.attn(y)), size=x.shape[2:], mode="nearest")
        else:
            y = self.proj(self.attn(y))
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TiC(PooledBackbone):
    """[N, in_chans, H, W], H and W at least the last reduction (32 by default), -> [N, num_classes]; no table of positions.

    Per stage one value or a list: heads, kernel_sizes, dilations (every second block of a stage takes it, the others 1).
    shift: cells of the cyclic shift in every second block; 0 for none. pool: of the inter-pooling in every third block; 1 for
    none. mixing: "attention", or "convolution" for the ablation.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 256, 512),
        heads: int | Sequence[int] = (2, 4, 8, 16),
        kernel_sizes: int | Sequence[int] = 7,
        dilations: int | Sequence[int] = 1,
        kind: str = "standard",
        shift: int = 2,
        pool: int = 2,
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mixing: str = "attention",
    ):
        super().__init__()
        lists = {"dims": dims, "heads": heads, "kernel_sizes": kernel_sizes, "dilations": dilations}
        dims, heads, kernel_sizes, dilations = (per_stage(name, given, len(depths)) for name, given in lists.items())
        if shift < 0 or pool < 1:
            raise InputError(f"shift {shift} and pool {pool}: shift counts cells from 0, pool from 1")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = dims[-1]
        self.stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], patch_size, patch_size), LayerNorm2d(dims[0]))
        stages: list[nn.Module] = []
        self.feature_info = []
        for stage, rates in enumerate(linear_rates(drop_path_rate, depths)):
            width = dims[stage]
            downsample: nn.Module = nn.Identity()
            if stage:
                downsample = nn.Sequential(LayerNorm2d(dims[stage - 1]), nn.Conv2d(dims[stage - 1], width, 2, 2))
            blocks = [
                TiCBlock(
                    width,
                    heads[stage],
                    kernel_sizes[stage],
                    dilations[stage] if number % 2 else 1,
                    kind,
                    shift if number % 2 else 0,
                    pool if number % 3 == 2 or (number == 0 and len(rates) < 3) else 1,
                    mlp_ratio,
                    rate,
                    mixing,
                )
                for number, rate in enumerate(rates)
            ]
            stages.append(Stage(downsample, blocks))
            info = {"num_chs": width, "reduction": patch_size << stage, "module": f"stages.{stage}", "index": stage}
            self.feature_info.append(info)
        self.stages = nn.Sequential(*stages)
        self.head = NormHead(dims[-1], num_classes, drop=drop_rate)
        self.apply(initialise)


CFG = {"first_conv": "stem.0", "classifier": "head.fc2"}

ENTRIES: dict[str, Entry] = {
    "tic_tiny": Entry(TiC, {}, CFG),
    "tic_small": Entry(TiC, {"depths": (2, 2, 18, 2)}, CFG),
    "tic_tiny_dilated": Entry(TiC, {"kernel_sizes": (5, 5, 5, 3), "dilations": (3, 2, 2, 1)}, CFG),
    "tic_tiny_depthwise": Entry(TiC, {"kind": "depthwise"}, CFG),
}
